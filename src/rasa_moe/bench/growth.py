"""How time and kept memory grow with experts selected, experts per layer, length and pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from rasa_moe.bench.contenders import learned_half
from rasa_moe.bench.figures import Figure, Result, Spread, interleaved
from rasa_moe.bench.models import SIZES, Dimensions, olmoe, token_ids
from rasa_moe.bench.routing import discrepancy
from rasa_moe.moe import ExpertId, ExpertSlices, discover

NAME = "growth"
# Doubling the size may cost this power of 2; 1 is linear, the rest is noise.
_LINEAR = 1.1


def bench(size: str) -> Result:
    """Measure exponents: the slope of log time, and of log bytes kept for backward, over log size."""
    base = SIZES["tiny" if size == "tiny" else "quick"]
    rows, repeats = (1, 1) if size == "tiny" else (2, 5)
    lengths = (8, 16) if size == "tiny" else (64, 128, 256, 512)
    selected = (1, 2, 4) if size == "tiny" else (2, 4, 8, 16, 32)
    layers = (8, 16) if size == "tiny" else (16, 32, 64, 128)
    pairs = (10, 20) if size == "tiny" else (100, 200, 400, 800)
    steps = {
        "experts selected": {n: _Step(base, selected=n, rows=rows, length=lengths[0]) for n in selected},
        "experts per layer": {
            n: _Step(replace(base, experts=n), selected=n // 8, rows=rows, length=lengths[0]) for n in layers
        },
        "sequence length": {n: _Step(base, selected=base.experts // 8, rows=rows, length=n) for n in lengths},
    }
    figures = []
    for what, by_size in steps.items():
        figures.append(_figure(f"time of a repair step over {what}", _exponent(by_size, repeats=repeats)))
        kept = {n: float(step.kept_bytes()) for n, step in by_size.items()}
        figures.append(_figure(f"bytes kept for backward over {what}", Spread.of([slope(kept)])))
    rates = {n: torch.rand(2 * n, base.layers, base.experts) for n in pairs}
    counting = {n: (lambda n=n: discrepancy(rates[n])) for n in pairs}
    figures.append(_figure("time of AAD over pairs", _exponent(counting, repeats=repeats)))
    return Result(
        name=NAME,
        conditions=(
            f"{base}, fp32, {rows} texts of {lengths[0]} tokens unless varied; selected {selected}, per "
            f"layer {layers} (an eighth trained), lengths {lengths}, pairs {pairs}; {repeats} interleaved "
            "rounds"
        ),
        figures=tuple(figures),
    )


class _Step:
    """Forward and backward of a repair step of one size."""

    def __init__(self, dimensions: Dimensions, *, selected: int, rows: int, length: int) -> None:
        self._model = olmoe(dimensions)
        chosen = [ExpertId(row, e) for row in range(dimensions.layers) for e in range(selected)]
        self._slices = ExpertSlices(discover(self._model), chosen)
        self._ids = token_ids(dimensions, rows=rows, length=length)

    def __call__(self) -> None:
        with self._slices:
            learned_half(self._model, self._ids).backward()  # type: ignore[no-untyped-call]
        for parameter in self._slices.parameters():
            parameter.grad = None

    def kept_bytes(self) -> int:
        """Return the bytes that autograd keeps for backward, each storage once, weights left out."""
        weights = {p.data_ptr() for p in (*self._model.parameters(), *self._slices.parameters())}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with self._slices, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = learned_half(self._model, self._ids)
        del loss
        return sum(kept.values())


def _exponent(work: Mapping[int, Callable[[], Any]], *, repeats: int) -> Spread:
    seconds = interleaved({str(size): job for size, job in work.items()}, repeats=repeats)
    return Spread.of([slope({size: seconds[str(size)][n] for size in work}) for n in range(repeats)])


def slope(values: Mapping[int, float]) -> float:
    """Return the least-squares slope of log value over log size."""
    x = [math.log(size) for size in values]
    y = [math.log(value) for value in values.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def _figure(name: str, value: Spread) -> Figure:
    return Figure(bench=NAME, name=name, value=value, unit="exponent", target=_LINEAR)
