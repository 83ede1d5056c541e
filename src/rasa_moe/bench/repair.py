"""The expert repair step beside its floor, full fine-tuning, gradient masking, LoRA and module freezing.

Each contender is a process of its own, because peak memory is the process' peak; rounds take turns.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from rasa_moe.bench.contenders import CONTENDERS, Task
from rasa_moe.bench.figures import Figure, Result, Spread, ratio
from rasa_moe.bench.floor import beside_floor
from rasa_moe.bench.models import SIZES
from rasa_moe.bench.processes import in_process

NAME = "repair"
_OURS, _OURS_BF16 = "slices", "slices, bf16 base"
# As repair is by default.
_OURS_ATTENTION = "slices and attention, bf16 base"
_OURS_THIN = "slices of rank 8, bf16 base"
_OURS_8, _OURS_4 = "slices, 8-bit base", "slices, 4-bit base"
_FULL, _FULL_BF16 = "full fine-tuning", "full fine-tuning, bf16"
# Ours, what it is compared with, and the limit of its time.
_COMPARED: tuple[tuple[str, str, float | None], ...] = (
    (_OURS, _FULL, 0.5),
    (_OURS_BF16, _FULL_BF16, 0.5),
    (_OURS_ATTENTION, _FULL_BF16, 0.5),
    (_OURS, "gradient masking", 1.0),
    (_OURS, "LoRA", 1.0),
    (_OURS, "module freezing", 1.0),
    (_OURS_ATTENTION, _OURS_BF16, None),
    (_OURS_THIN, _OURS_BF16, None),
    (_OURS_8, _OURS_BF16, None),
    (_OURS_4, _OURS_BF16, None),
)
_MEMORY_LIMIT, _FLOOR_LIMIT = 0.35, 1.15
_FLOOR_ROUNDS = 3
_GIGA = 1e9


def bench(size: str) -> Result:
    """Measure seconds of a step and peak memory of every contender.

    Raises:
        RunError: A contender's process ended without a result.
    """
    dimensions = SIZES[size]
    rounds, steps = (1, 1) if size == "tiny" else (2, 2)
    rows, length = (2, 16) if size == "tiny" else (4, 64)
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    peaks: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(rounds):
        names = list(CONTENDERS)
        for name in names if number % 2 == 0 else reversed(names):
            task = Task(name, dimensions, rows=rows, length=length, steps=steps)
            found = in_process("rasa_moe.bench.contenders", asdict(task), name=name)
            seconds[name].append(min(found["seconds"]))
            peaks[name].append(found["peak_bytes"])
    task = Task(_OURS, dimensions, rows=rows, length=length, steps=steps)
    return Result(
        name=NAME,
        conditions=(
            f"{dimensions}; {len(task.chosen)} experts of each layer trained, {rows} x {length} tokens a "
            "step, loss on the second half of each text; full fine-tuning is transformers' Trainer with "
            "fused AdamW and grouped_mm experts, fp32 weights, with bf16=True where bf16 is said; the others "
            "share one loop with fused AdamW, fp32 unless named, and trained slices are always fp32; "
            f"{rounds} rounds of one process per contender, best of {steps} steps after one unmeasured; "
            "memory is the peak resident set of the process, Python and libraries included (and the bf16 "
            "weights of an 8-bit or 4-bit base, which wait in the CPU's memory); the floor takes "
            f"turns with slices in one process, {rows} x {4 * length} tokens, {_FLOOR_ROUNDS} rounds"
        ),
        figures=(*_beside_floor(task), *_times(seconds, task), *_memory(peaks, task)),
    )


def _beside_floor(task: Task) -> list[Figure]:
    figures = []
    for name, dtype in ((_OURS, torch.float32), (_OURS_BF16, torch.bfloat16)):
        seconds = beside_floor(_floor_task(task), repeats=_FLOOR_ROUNDS, dtype=dtype)
        figures.append(
            Figure(
                bench=NAME,
                name=f"forward and backward of {name} / the same with nothing else",
                value=ratio(seconds["slices"], seconds["floor"]),
                unit="x",
                target=_FLOOR_LIMIT,
                floor="forward, gradients of activations and of the chosen rows: "
                f"{Spread.of(seconds['floor']).median:.3g} s",
            )
        )
    return figures


def _floor_task(task: Task) -> Task:
    """Return a pass of four times the tokens; casting slices to bf16 costs the same whatever their number."""
    return replace(task, length=4 * task.length)


def _times(seconds: dict[str, list[float]], task: Task) -> list[Figure]:
    figures = [
        Figure(
            bench=NAME,
            name=f"time of {ours} / {other}",
            value=ratio(seconds[ours], seconds[other]),
            unit="x",
            target=limit,
            floor=_time_floor(task) if (ours, other) == (_OURS, _FULL) else "",
        )
        for ours, other, limit in _COMPARED
    ]
    figures += [
        Figure(bench=NAME, name=f"step of {name}", value=Spread.of(values), unit="s")
        for name, values in seconds.items()
    ]
    return figures


def _memory(peaks: dict[str, list[float]], task: Task) -> list[Figure]:
    values, sliced = task.dimensions.num_values, _sliced_values(task)
    figures = []
    for ours, full, base in (
        (_OURS_BF16, _FULL_BF16, 2),
        (_OURS_ATTENTION, _FULL_BF16, 2),
        (_OURS, _FULL, 4),
    ):
        least = base * values + 16 * sliced
        floor = (
            f"weights, gradients and moments: {least / _GIGA:.2f} GB against {16 * values / _GIGA:.2f} GB, "
            f"{least / (16 * values):.3f}x"
        )
        figures.append(
            Figure(
                bench=NAME,
                name=f"peak memory of {ours} / {full}",
                value=ratio(peaks[ours], peaks[full]),
                unit="x",
                target=_MEMORY_LIMIT,
                floor=floor,
            )
        )
    figures += [
        Figure(bench=NAME, name=f"peak memory of {name}", value=Spread.of(peak), unit="bytes")
        for name, peak in peaks.items()
    ]
    return figures


def _sliced_values(task: Task) -> int:
    return task.dimensions.layers * len(task.chosen) * task.dimensions.expert_values


def _time_floor(task: Task) -> str:
    """Count multiplications: forward, gradients of activations and of selected weights."""
    size, tokens = task.dimensions, task.rows * task.length
    experts = size.top_k * size.expert_values
    layer = experts + size.attention_values
    head = size.vocabulary * size.hidden // 2  # of the half that is learned
    forward = size.layers * layer + head
    # In the lowest layer gradient goes no further than the experts' inner activations.
    activations = (size.layers - 1) * layer + head + experts // 3
    selected = size.layers * experts * len(task.chosen) // size.experts
    ours, full = forward + activations + selected, 3 * forward
    return (
        f"{2 * tokens * ours / _GIGA:.0f} GFLOP against {2 * tokens * full / _GIGA:.0f}, {ours / full:.2f}x, "
        f"and AdamW reads and writes {28 * _sliced_values(task) / _GIGA:.2f} GB "
        f"against {28 * size.num_values / _GIGA:.2f}"
    )
