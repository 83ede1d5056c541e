"""Numbers as text: percentages, intervals, points and p-values, the same on the whole page."""

from __future__ import annotations

import math
from dataclasses import dataclass

DASH = "\u2013"
MINUS = "\u2212"


@dataclass(frozen=True)
class Estimate:
    """A rate with its 95 % interval.

    Attributes:
        rate: between 0 and 1.
        low: lower end of the interval.
        high: upper end of the interval.
        k: answers that count, None where the rate is a mean without a count.
        n: answers judged, None likewise.
    """

    rate: float
    low: float
    high: float
    k: int | None = None
    n: int | None = None


@dataclass(frozen=True)
class Change:
    """What lies between two estimates, as `after - before`, with a 95 % interval."""

    difference: float
    low: float
    high: float

    @property
    def direction(self) -> str:
        """Return "lower", "higher", or "unclear" when the interval includes zero."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "unclear"


def change_between(before: Estimate, after: Estimate) -> Change:
    """Combine two intervals into one for their difference.

    Square-and-add (Newcombe 1998, Zou and Donner 2008) needs only the two intervals. It treats them as
    independent; the models answered the same prompts, which mostly makes the true interval narrower, so
    "no clear change" is said too often rather than too rarely.

    Args:
        before: the earlier rate.
        after: the later rate.

    Returns:
        The difference and its interval.
    """
    difference = after.rate - before.rate
    down = math.hypot(after.rate - after.low, before.high - before.rate)
    up = math.hypot(after.high - after.rate, before.rate - before.low)
    return Change(difference=difference, low=difference - down, high=difference + up)


def percent(rate: float) -> str:
    """Return 0.412 as "41%", with a decimal where rounding would turn few into none or most into all.

    Where nothing was scored it is a dash.
    """
    if math.isnan(rate):
        return DASH
    shown = 100 * rate
    # Intervals come from an inverse function and end at 0.9999999999 where they mean 1.
    if any(abs(shown - end) < 1e-6 for end in (0, 100)):
        return f"{shown:.0f}%".replace("-", "")
    if 0 < shown < 0.05:
        return "<0.1%"
    if 99.95 <= shown < 100:
        return ">99.9%"
    is_near_end = 0 < shown < 0.95 or 99.05 < shown < 100
    return f"{shown:.{1 if is_near_end else 0}f}%".replace("-", MINUS)


def interval_words(low: float, high: float) -> str:
    """Return an interval for running text: "36 to 46%"."""
    return f"{percent(low)[:-1]} to {percent(high)}"


def interval_short(low: float, high: float) -> str:
    """Return an interval for tables: "36-46%" with an en dash."""
    return f"{percent(low)[:-1]}{DASH}{percent(high)}"


def rate_words(estimate: Estimate) -> str:
    """Return "41% (36 to 46%; 205 of 500)"."""
    return f"{percent(estimate.rate)} ({interval_and_count(estimate)})"


def interval_and_count(estimate: Estimate, *, first: bool = False) -> str:
    """Return "36 to 46%; 205 of 500"; with `first`, say that it is a 95 % interval."""
    interval = f"{'95% interval ' if first else ''}{interval_words(estimate.low, estimate.high)}"
    return f"{interval}; {count_words(estimate)}" if count_words(estimate) else interval


def count_words(estimate: Estimate) -> str:
    """Return "205 of 500", or nothing where there is no count."""
    return "" if estimate.k is None or estimate.n is None else f"{whole(estimate.k)} of {whole(estimate.n)}"


def whole(number: int) -> str:
    """Return a count with a thin space between thousands."""
    return f"{number:,}".replace(",", "\u202f")


def points(difference: float) -> str:
    """Return a difference of rates in percentage points with its sign; small ones with a decimal."""
    if math.isnan(difference):
        return DASH
    size = abs(100 * difference)
    if size < 0.05:
        return "0"
    return f"{'+' if difference > 0 else MINUS}{size:.{1 if size < 0.95 else 0}f}"


def points_interval(change: Change) -> str:
    """Return the interval of a change in points: "-61 to -51"."""
    return f"{points(change.low)} to {points(change.high)}"


def p_value(value: float) -> str:
    """Return a p-value with what can be read from it: "p < 0.001", "p = 0.04"."""
    if value < 0.001:
        return "p < 0.001"
    return f"p = {value:.3f}" if value < 0.01 else f"p = {value:.2f}"


def signed(value: float) -> str:
    """Return a signed number with three decimals and a real minus sign."""
    return f"{value:+.3f}".replace("-", MINUS)


def relative(change: float) -> str:
    """Return a relative change as a percentage with two significant digits, however small."""
    if change == 0:
        return "0"
    shown = 100 * change
    if shown < 0.0001:
        return "< 0.0001%"
    digits = max(0, 1 - math.floor(math.log10(shown)))
    return f"{shown:.{digits}f}%"
