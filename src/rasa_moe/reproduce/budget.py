"""How long the cells will take: said before the first of them, from measured seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rasa_moe.data.source import load_source
from rasa_moe.reproduce.cells import Cell, suites_of
from rasa_moe.reproduce.protocol import BASE
from rasa_moe.reproduce.shared import routing_folder

# Measured with one thread on the built-in models; `_PROBE_SECONDS` is what `probe` took there.
_CHAT_SECONDS = 0.0036
_PROMPT_SECONDS = 0.0031
_CELL_SECONDS = 0.5
_PROBE_SECONDS = 0.019
# Work on one chat relative to supervised training: rerouting's second forward, for example.
_EFFORT = {
    "rasa": 1.5,
    "rasa_replay": 1.45,
    "rasa_no_attention": 1.05,
    "rasa_paper": 0.38,
    "full_no_retain": 0.2,
    "lora": 1.08,
    "random_experts": 1.32,
    "attention_only": 1.2,
    "affinity_experts": 0.78,
    "experts_only": 0.79,
    "routers_only": 0.65,
    "router_kl": 1.06,
    "rerouting": 1.3,
}
# A router epoch takes its targets first and sees prompts alone.
_ROUTING_EFFORT = 0.69
_PAIRS_WON, _COPIES_WON = 0.9, 0.75


def probe() -> float:
    """Return the seconds of a fixed piece of single-threaded training, the best of five.

    As in the cells, small tensors pass many operations: how fast a core multiplies large matrices would say
    little.
    """
    import torch
    from torch.nn import functional

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    states = torch.full((1024, 128), 0.01)
    weights = [torch.full((128, 128), 0.01, requires_grad=True) for _ in range(16)]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        hidden = states
        for weight in weights:
            hidden = hidden + functional.silu(hidden @ weight) * states
        hidden.sum().backward()  # type: ignore[no-untyped-call]
        seconds.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    return min(seconds)


def estimated_seconds(cells: Sequence[Cell], *, workers: int, slowness: float) -> float:
    """Estimate how long cells take together.

    Args:
        cells: What is still to do; a consistent routing that they share counts once.
        workers: Processes that share them.
        slowness: Seconds of `probe` here over those where the constants were measured.
    """
    shared = {routing_folder(cell, Path()): cell for cell in cells}
    routing = sum(routing_seconds(cell) for place, cell in shared.items() if place is not None)
    return slowness * (routing + sum(map(cell_seconds, cells))) / workers


def slowness() -> float:
    """Return how many times slower this machine is than the one of the constants; above 1 is slower."""
    return probe() / _PROBE_SECONDS


def cell_seconds(cell: Cell) -> float:
    """Estimate one cell on the machine of the constants."""
    return _CELL_SECONDS + _CHAT_SECONDS * _chats(cell) + _PROMPT_SECONDS * num_prompts(cell)


def routing_seconds(cell: Cell) -> float:
    """Estimate the consistent routing that a cell takes, on the machine of the constants."""
    settings = cell.config.align
    return _CHAT_SECONDS * _ROUTING_EFFORT * settings.rounds * settings.router_epochs * _chats_of_epoch(cell)


def _chats(cell: Cell) -> float:
    """Return how many chats pass through the model forwards and backwards in the cell itself."""
    if cell.method in (BASE, "steering"):
        return 0.0
    return _EFFORT.get(cell.method, 1.0) * _epochs(cell) * _chats_of_epoch(cell)


def _chats_of_epoch(cell: Cell) -> int:
    settings = cell.config.align
    return _num_pairs(cell) * (2 + settings.retain_per_pair + (settings.recovery_weight > 0))


def _num_pairs(cell: Cell) -> int:
    source = load_source(cell.config.data.source, families=cell.families)
    families = len(source.families("train"))
    goals = sum(
        row.kind == "harmful" and row.split == "train" and row.family == "plain" for row in source.rows
    )
    won = _PAIRS_WON + _COPIES_WON * cell.config.collect.mutations
    pairs = max(1, round(cell.goal_share * goals * families * won))
    return pairs if cell.pairs is None else min(pairs, cell.pairs)


def _epochs(cell: Cell) -> float:
    config, method = cell.config, cell.how()
    if method.rival is None or method.is_repair:
        routed_here = config.align.router_epochs if routing_folder(cell, Path()) is None else 0
        return config.align.rounds * (config.align.repair_epochs + _ROUTING_EFFORT * routed_here)
    if method.rival in ("full", "full_no_retain"):
        return config.full.epochs
    return float(getattr(config.rivals, method.rival).epochs)


def num_prompts(cell: Cell) -> int:
    """Return how many prompts a cell asks."""
    return len({row.id for suite in suites_of(cell) for row in suite.rows})
