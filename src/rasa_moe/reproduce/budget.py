"""How long the cells will take: said before the first of them, from measured seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rasa_moe.config import Config
from rasa_moe.data.source import load_source
from rasa_moe.reproduce.cells import Cell, suites_of
from rasa_moe.reproduce.protocol import BASE, METHODS

# Measured with one thread on the built-in models; `_PROBE_SECONDS` is what `probe` took there.
_CHAT_SECONDS = 0.0032
_PROMPT_SECONDS = 0.0026
_CELL_SECONDS = 0.5
_PROBE_SECONDS = 0.0118
# Work on one chat relative to supervised training: rerouting's second forward, for example.
_EFFORT = {
    "rasa": 0.92,
    "rasa_replay": 0.96,
    "rasa_low_rank": 0.92,
    "rasa_paper": 0.53,
    "lora": 1.08,
    "lora_held": 1.27,
    "random_experts": 0.92,
    "affinity_experts": 0.78,
    "experts_only": 0.79,
    "routers_only": 0.69,
}
_PAIRS_WON, _COPIES_WON = 0.9, 0.75


def probe() -> float:
    """Return the seconds of a fixed piece of single-threaded arithmetic, the best of five."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    matrix = torch.ones(384, 384)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(12):
            matrix = (matrix @ matrix).clamp(max=1.0)
        seconds.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    return min(seconds)


def estimated_seconds(cells: Sequence[Cell], *, workers: int, slowness: float) -> float:
    """Estimate how long cells take together.

    Args:
        cells: What is still to do.
        workers: Processes that share them.
        slowness: Seconds of `probe` here over those where the constants were measured.
    """
    return slowness * sum(map(cell_seconds, cells)) / workers


def slowness() -> float:
    """Return how many times slower this machine is than the one of the constants; above 1 is slower."""
    return probe() / _PROBE_SECONDS


def cell_seconds(cell: Cell) -> float:
    """Estimate one cell on the machine of the constants."""
    return _CELL_SECONDS + _CHAT_SECONDS * _chats(cell) + _PROMPT_SECONDS * num_prompts(cell)


def _chats(cell: Cell) -> float:
    """Return how many chats pass through the model forwards and backwards."""
    if cell.method in (BASE, "steering"):
        return 0.0
    settings = cell.config.align
    beside_each_pair = 2 + settings.retain_per_pair + (settings.recovery_weight > 0)
    return (
        _EFFORT.get(cell.method, 1.0)
        * _num_pairs(cell)
        * beside_each_pair
        * _epochs(cell.method, cell.config)
    )


def _num_pairs(cell: Cell) -> int:
    source = load_source(cell.config.data.source, families=cell.families)
    families = len(source.families("train"))
    goals = sum(
        row.kind == "harmful" and row.split == "train" and row.family == "plain" for row in source.rows
    )
    won = _PAIRS_WON + _COPIES_WON * cell.config.collect.mutations
    pairs = max(1, round(cell.goal_share * goals * families * won))
    return pairs if cell.pairs is None else min(pairs, cell.pairs)


def _epochs(name: str, config: Config) -> float:
    method = next(method for method in METHODS if method.name == name)
    if method.rival in (None, "random_experts"):
        # A router epoch takes its targets first and sees jailbreaks alone: about as long as a repair epoch.
        return config.align.rounds * (config.align.repair_epochs + 0.9 * config.align.router_epochs)
    if method.rival in ("full", "full_no_retain"):
        return config.full.epochs
    return float(getattr(config.rivals, method.rival).epochs)


def num_prompts(cell: Cell) -> int:
    """Return how many prompts a cell asks."""
    return len({row.id for suite in suites_of(cell) for row in suite.rows})
