"""What a bench returns: figures with their targets, floors and conditions; and how times are paired."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Hold the median of repeated measurements, the lowest and the highest."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise measurements."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Hold one measured figure.

    Attributes:
        bench: Name of the bench.
        name: What was measured, and against what.
        value: The measurements.
        unit: "x" for ratios, "s", "bytes", or "exponent".
        target: The limit, or None where a figure is there to be read beside others.
        at_least: Whether the target is a lower limit.
        floor: What arithmetic says cannot be undercut, in words with numbers; "" where there is none.
    """

    bench: str
    name: str
    value: Spread
    unit: str
    target: float | None = None
    at_least: bool = False
    floor: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        if self.target is None:
            return None
        return self.value.median >= self.target if self.at_least else self.value.median <= self.target

    def to_json(self) -> dict[str, Any]:
        """Return the figure as plain values."""
        return {**asdict(self), "is_met": self.is_met}


@dataclass(frozen=True, kw_only=True)
class Result:
    """Hold what one bench found.

    Attributes:
        name: The bench.
        conditions: Sizes and settings, in one sentence.
        figures: What was measured.
    """

    name: str
    conditions: str
    figures: tuple[Figure, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        figures = [figure.to_json() for figure in self.figures]
        return {"name": self.name, "conditions": self.conditions, "figures": figures}


def interleaved(contenders: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, list[float]]:
    """Time contenders in turn, so that whatever else the machine does falls on all of them alike.

    Every contender runs once before, unmeasured. Every other round is in the reverse order.

    Returns:
        Name -> seconds of each round.
    """
    for work in contenders.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(repeats):
        names = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            start = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Return the ratio of two contenders, round by round."""
    return Spread.of([a / b for a, b in zip(numerator, denominator, strict=True)])
