"""Intervals and tests for rates of yes-or-no outcomes; what scipy has is called, not rewritten.

Shape letters: F families, G goals, W wordings of a goal within one family, B resamples.

An outcome is 1 or 0, and NaN (or None) where a judge could not decide. Unscored outcomes are left out of a
rate and counted beside it; they never count as safe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
_EVENTS_OF_DOUBT = 3.0
_ROUNDING = 1e-24  # of a variance of rates: far above that of rounding, far below any of outcomes


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Hold k of n with an interval. With n = 0 the rate is NaN and the interval is everything."""

    k: int
    n: int
    unscored: int
    rate: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True, kw_only=True)
class PairedChange:
    """Hold how the same rows changed from before to after.

    Attributes:
        n: Rows scored both times; the others are in `unscored`.
        unscored: Rows left out because one of the two outcomes is missing.
        gained: Rows that went from 0 to 1.
        lost: Rows that went from 1 to 0.
        difference: Rate after minus rate before.
        ci_low: Lower end of Newcombe's interval of the difference.
        ci_high: Upper end.
        p_value: Of McNemar's exact two-sided test.
    """

    n: int
    unscored: int
    gained: int
    lost: int
    difference: float
    ci_low: float
    ci_high: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class FamilyMean:
    """Hold the mean of several families' rates, each family counting the same.

    Attributes:
        rate: Mean over families of the family's own rate.
        ci_low: Lower end of the interval.
        ci_high: Upper end.
        families: Number of families with at least one scored outcome.
        goals: Number of goals with at least one scored outcome; the sampling unit.
        n: Number of scored outcomes.
        effective_n: How many independent outcomes the interval is worth.
    """

    rate: float
    ci_low: float
    ci_high: float
    families: int
    goals: int
    n: int
    effective_n: float


def wilson(k: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Bound a proportion by Wilson's score interval; (0, 1) when nothing was observed."""
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(k, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def rate_of(outcomes: ArrayLike, *, confidence: float = 0.95) -> Rate:
    """Summarise outcomes of independent rows.

    Args:
        outcomes: (N,) of 0, 1, and NaN or None for unscored.
        confidence: Coverage of the interval.
    """
    values = _outcomes(outcomes, num_axes=(1,))
    scored = values[~np.isnan(values)]
    k, n = int(scored.sum()), len(scored)
    low, high = wilson(k, n, confidence=confidence)
    rate = k / n if n else math.nan
    return Rate(k=k, n=n, unscored=len(values) - n, rate=rate, ci_low=low, ci_high=high)


def paired_change(before: ArrayLike, after: ArrayLike, *, confidence: float = 0.95) -> PairedChange:
    """Compare the same rows before and after.

    Rows unscored on either side are left out of both. Exact McNemar: among the rows that changed, were gains
    and losses equally likely? With none changed, p is 1.

    Args:
        before: (N,) outcomes, row by row.
        after: (N,) outcomes of the same rows in the same order.
        confidence: Coverage of the interval.
    """
    first, second = (_outcomes(values, num_axes=(1,)) for values in (before, after))
    if first.shape != second.shape:
        raise ValueError(f"paired outcomes need equal lengths, got {len(first)} and {len(second)}")
    scored = ~(np.isnan(first) | np.isnan(second))
    first, second = first[scored], second[scored]
    gained, lost = int(((first == 0) & (second == 1)).sum()), int(((first == 1) & (second == 0)).sum())
    kept = int(((first == 1) & (second == 1)).sum())
    n = len(first)
    low, high = newcombe_interval(kept=kept, gained=gained, lost=lost, n=n, confidence=confidence)
    return PairedChange(
        n=n,
        unscored=len(scored) - n,
        gained=gained,
        lost=lost,
        difference=(gained - lost) / n if n else math.nan,
        ci_low=low,
        ci_high=high,
        p_value=float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    )


def newcombe_interval(
    *, kept: int, gained: int, lost: int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Bound the difference (after - before) of paired proportions; (-1, 1) when nothing was observed.

    Newcombe's method 10 (Statistics in Medicine 17, 1998, 2635-2650): the widths of the two rates' Wilson
    intervals are squared and added, less what their correlation phi explains. A positive phi is corrected
    towards 0.

    Args:
        kept: Rows that are 1 both times.
        gained: Rows that went from 0 to 1.
        lost: Rows that went from 1 to 0.
        n: All rows.
        confidence: Coverage of the interval.
    """
    if n == 0:
        return -1.0, 1.0
    num_before, num_after = kept + lost, kept + gained
    neither = n - kept - gained - lost
    covariance = kept * neither - gained * lost
    corrected = max(covariance - n / 2, 0.0) if covariance > 0 else float(covariance)
    spread = math.sqrt(num_before * (n - num_before) * num_after * (n - num_after))
    phi = corrected / spread if spread else 0.0
    before_low, before_high = wilson(num_before, n, confidence=confidence)
    after_low, after_high = wilson(num_after, n, confidence=confidence)
    before, after = num_before / n, num_after / n
    below = _combine(after - after_low, before_high - before, phi=phi)
    above = _combine(after_high - after, before - before_low, phi=phi)
    return after - before - below, after - before + above


def family_mean(
    outcomes: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> FamilyMean:
    """Average the rates of families that were asked the same goals.

    The goals are the sample: one goal's outcomes in several families rise and fall together. The variance of
    the mean is therefore measured by drawing whole goals with replacement. The interval is that of Korn and
    Graubard (Survey Methodology 24, 1998): the variance is turned into the number of independent outcomes
    that would give it, and the exact (Clopper-Pearson) interval is taken at that number. A percentile
    interval would collapse to a point where a repair succeeds: 0 of 40 goals would be reported as 0 to 0.

    The families are taken as given: the interval says nothing about families that were not asked.

    Args:
        outcomes: (F, G) of 0, 1, and NaN where a family lacks the goal or the judge could not decide; or
            (F, G, W), where a family's rate is that of its rows: a goal with more of them weighs more.
        confidence: Coverage of the interval.
        resamples: B.
        seed: Equal seeds give equal results.
    """
    values = _outcomes(outcomes, num_axes=(2, 3))
    observed = np.any(~np.isnan(values), axis=tuple(range(2, values.ndim)))  # (F, G)
    values = values[observed.any(axis=1)][:, observed.any(axis=0)]
    num_families, num_goals = values.shape[:2]
    n = int((~np.isnan(values)).sum())
    if n == 0:
        return FamilyMean(rate=math.nan, ci_low=0.0, ci_high=1.0, families=0, goals=0, n=0, effective_n=0.0)
    rate = float(weighted_family_means(values, np.ones((1, num_goals)))[0])
    means = weighted_family_means(values, draw_goals(num_goals, resamples=resamples, seed=seed))
    effective_n = _effective_n(rate, float(np.nanvar(means)), n=n, num_goals=num_goals)
    low, high = _clopper_pearson(
        rate, _shrunk_for_few_goals(effective_n, n=n, num_goals=num_goals, confidence=confidence), confidence
    )
    return FamilyMean(
        rate=rate,
        ci_low=low,
        ci_high=high,
        families=num_families,
        goals=num_goals,
        n=n,
        effective_n=effective_n,
    )


def draw_goals(num_goals: int, *, resamples: int, seed: int) -> Floats:
    """Draw G goals with replacement B times; (B, G) float64, how often each goal was drawn."""
    draws = np.random.default_rng(seed).multinomial(
        num_goals, np.full(num_goals, 1 / num_goals), size=resamples
    )
    return draws.astype(np.float64)


def weighted_family_means(outcomes: Floats, goal_weights: Floats) -> Floats:
    """Average over families under each weighting of the goals.

    Args:
        outcomes: (F, G) or (F, G, W) float64 of 0, 1 and NaN.
        goal_weights: (B, G) float64, such as `draw_goals` gives.

    Returns:
        (B,) float64: mean over families of the weighted rate. A family whose observed goals were not drawn is
        left out of that resample; NaN if that is every family.
    """
    observed = ~np.isnan(outcomes)
    wordings = tuple(range(2, outcomes.ndim))
    hits = goal_weights @ np.where(observed, outcomes, 0.0).sum(axis=wordings).T  # (B, F)
    totals = goal_weights @ observed.sum(axis=wordings, dtype=np.float64).T  # (B, F)
    drawn = totals > 0
    rates = np.divide(hits, totals, out=np.zeros_like(hits), where=drawn)
    num_drawn = drawn.sum(axis=1)
    means: Floats = np.full(len(goal_weights), np.nan)
    np.divide(rates.sum(axis=1), num_drawn, out=means, where=num_drawn > 0)
    return means


def adjusted_p_values(p_values: Sequence[float]) -> list[float]:
    """Bound the false discovery rate over many tests (Benjamini-Hochberg); results in input order."""
    if not p_values:
        return []
    return [float(value) for value in stats.false_discovery_control(p_values, method="bh")]


def _outcomes(values: ArrayLike, *, num_axes: tuple[int, ...]) -> Floats:
    """Turn True, False, 0, 1, None and NaN into float64 and refuse everything else."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in num_axes:
        wanted = " or ".join(map(str, num_axes))
        raise ValueError(f"outcomes must have {wanted} axes, got shape {array.shape}")
    if not bool((np.isnan(array) | (array == 0) | (array == 1)).all()):
        raise ValueError("an outcome must be 0, 1, or missing")
    return array


def _combine(first: float, second: float, *, phi: float) -> float:
    """Add two one-sided widths whose estimates correlate by phi."""
    return math.sqrt(max(first**2 - 2 * phi * first * second + second**2, 0.0))


def _effective_n(rate: float, variance: float, *, n: int, num_goals: int) -> float:
    """Count the independent outcomes that would make the mean vary as it does; at most n.

    How goals cluster is measured by what happened: without an event (or with every family all or nothing) it
    is unknown, and one event alone looks as if goals did not cluster at all. So the variance inflation that
    is measured is averaged, event by event, with that of goals that answer alike in all their rows, which
    counts as `_EVENTS_OF_DOUBT` events. Without any only the number of goals is claimed.
    """
    if variance < _ROUNDING:
        return float(num_goals)
    events, alike = min(rate, 1 - rate) * n, n / num_goals
    measured = max(variance * n / (rate * (1 - rate)), 1.0)
    return n / ((events * measured + _EVENTS_OF_DOUBT * alike) / (events + _EVENTS_OF_DOUBT))


def _shrunk_for_few_goals(effective_n: float, *, n: int, num_goals: int, confidence: float) -> float:
    """Pay for estimating the variance from few goals: shrink by the squared ratio of t quantiles."""
    if num_goals < 2:
        return min(effective_n, 1.0)
    upper = (1 + confidence) / 2
    ratio = stats.t.ppf(upper, max(n - 1, 1)) / stats.t.ppf(upper, num_goals - 1)
    return effective_n * float(ratio) ** 2


def _clopper_pearson(rate: float, n: float, confidence: float) -> tuple[float, float]:
    """Give the exact interval for a number of outcomes that need not be whole."""
    tail = (1 - confidence) / 2
    k = rate * n
    low = float(stats.beta.ppf(tail, k, n - k + 1)) if k > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return low, high
