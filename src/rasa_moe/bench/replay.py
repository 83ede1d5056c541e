"""A replay of the audit, in one model whose rows are exchanged, beside one in two whole models.

Each is a process of its own, started as `python -m rasa_moe.bench.replay JSON`, and prints one line of JSON.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rasa_moe.audit.components import difference
from rasa_moe.bench.figures import Figure, Result, Spread, ratio
from rasa_moe.bench.models import SIZES, Dimensions, olmoe, token_ids
from rasa_moe.bench.processes import in_process
from rasa_moe.moe import ExpertId, MoeMap, Piece, discover, record, replay, swapped

NAME = "audit"
_SHARE = 0.125
_OURS, _TWO = "one model", "two models"
_TEXTS, _PROMPT, _TOKENS, _ROUNDS = 4, 32, 8, 3
_LIMIT = 0.2


def bench(size: str) -> Result:
    """Measure memory beyond the base model, and seconds of a token, of both.

    Raises:
        RunError: A process ended without a result.
    """
    rounds = 1 if size == "tiny" else _ROUNDS
    found: dict[str, list[dict[str, float]]] = {_OURS: [], _TWO: []}
    for _ in range(rounds):
        for name, results in found.items():
            results.append(in_process("rasa_moe.bench.replay", [name, size], name=name))
    weights = found[_OURS][0]["weight_bytes"]
    figures = [
        Figure(
            bench=NAME,
            name=f"memory of {name} beyond the base model / its weights",
            value=Spread.of([result["more_bytes"] / weights for result in results]),
            unit="x",
            target=_LIMIT if name == _OURS else None,
            floor=f"the rows that differ, {results[0]['row_bytes'] / weights:.3f}x" if name == _OURS else "",
        )
        for name, results in found.items()
    ]
    seconds = {name: [result["seconds"] for result in results] for name, results in found.items()}
    figures.append(
        Figure(
            bench=NAME,
            name=f"time of a replayed token, {_OURS} / {_TWO}",
            value=ratio(seconds[_OURS], seconds[_TWO]),
            unit="x",
        )
    )
    return Result(
        name=NAME,
        conditions=(
            f"{SIZES[size]}, bf16; an eighth of the experts differ; {_TEXTS} texts of {_PROMPT} tokens, "
            f"{_TOKENS} more replayed with a cache; {rounds} interleaved rounds of one process each; memory "
            "is the peak resident set after the base model was built, less the resident set then"
        ),
        figures=tuple(figures),
    )


def measure(name: str, dimensions: Dimensions) -> dict[str, float]:
    """Replay some tokens; the model that routes is the base, the one that answers has other experts."""
    model = olmoe(dimensions, dtype=torch.bfloat16)
    moe = discover(model)
    pieces = _pieces(moe, share=_SHARE)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    before = _resident("VmRSS")
    seconds = _REPLAYS[name](model, moe, pieces, token_ids(dimensions, rows=_TEXTS, length=_PROMPT))
    return {
        "weight_bytes": sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()),
        "row_bytes": sum(piece.values.numel() * piece.values.element_size() for piece in pieces),
        "more_bytes": _resident("VmHWM") - before,
        "seconds": seconds,
    }


def _pieces(moe: MoeMap, *, share: float) -> list[Piece]:
    chosen = list(range(max(1, round(share * moe.num_experts))))
    return [
        Piece(f"{layer.experts_name}.{name}", chosen, 1.5 * tensor.detach()[chosen])
        for layer in moe.layers
        for name, tensor in layer.experts.named_parameters()
    ]


def _exchanged(model: Any, moe: MoeMap, pieces: list[Piece], ids: torch.Tensor) -> float:
    experts = [ExpertId(layer.index, row) for layer in moe.layers for row in pieces[0].rows or ()]
    changes = difference(moe, pieces, experts=experts)
    turns = (lambda: changes.become(()), lambda: changes.become(changes.components))
    with changes.mixed(()):
        return _timed((model, model), (moe, moe), turns, ids)


def _copied(model: Any, moe: MoeMap, pieces: list[Piece], ids: torch.Tensor) -> float:
    base = copy.deepcopy(model)
    with swapped(model, pieces):
        return _timed((base, model), (discover(base), moe), (lambda: None, lambda: None), ids)


_REPLAYS = {_OURS: _exchanged, _TWO: _copied}


@torch.no_grad()
def _timed(
    models: tuple[Any, Any],
    moes: tuple[MoeMap, MoeMap],
    turns: tuple[Callable[[], None], Callable[[], None]],
    ids: torch.Tensor,
) -> float:
    """Return the seconds of a token after the prompt: one model routes and the other answers, in turn."""
    caches: list[Any] = [None, None]
    started = 0.0
    for step in range(_TOKENS + 1):
        if step == 1:
            started = time.perf_counter()
        turns[0]()
        with record(moes[0], models[0]) as trace:
            caches[0] = models[0](input_ids=ids, past_key_values=caches[0], use_cache=True).past_key_values
        turns[1]()
        with replay(moes[1], trace):
            output = models[1](input_ids=ids, past_key_values=caches[1], use_cache=True)
        caches[1] = output.past_key_values
        ids = output.logits[:, -1:].argmax(dim=-1)
    return (time.perf_counter() - started) / _TOKENS


def _resident(which: str) -> int:
    """Return the resident bytes of this process: now ("VmRSS"), or the most so far ("VmHWM")."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{which}:")[2].split()[0]) * 1024


if __name__ == "__main__":
    asked, asked_size = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps(measure(asked, SIZES[asked_size])) + "\n")
