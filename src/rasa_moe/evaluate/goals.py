"""Rates before and after where one goal is asked several times, in families or in wordings.

Shape letters: F families, G goals, W wordings of a goal within one family.

Rows of one goal rise and fall together. A test that takes them for independent finds differences between
models that are alike, so here goals are drawn, and their signs flipped, whole.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from rasa_moe.evaluate.statistics import (
    Floats,
    PairedChange,
    Rate,
    draw_goals,
    family_mean,
    newcombe_interval,
    paired_change,
    rate_of,
    weighted_family_means,
)

_RESAMPLES = 2000
_FLIPS = 9999


def by_goal(families: Iterable[Iterable[tuple[Hashable, float | None]]]) -> Floats:
    """Lay out the rows of families by goal.

    Args:
        families: Of each family its rows, as goal and outcome (0, 1, or None for unscored).

    Returns:
        (F,G,W) float64 of 0, 1 and NaN. Goals are those of all families, in order of appearance; W is the
        most rows that one family has of one goal, and NaN fills up where there are fewer.
    """
    column: dict[Hashable, int] = {}
    cells: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
    num_families = 0
    for family in families:
        for goal, outcome in family:
            place = num_families, column.setdefault(goal, len(column))
            cells[place].append(math.nan if outcome is None else outcome)
        num_families += 1
    num_wordings = max((len(outcomes) for outcomes in cells.values()), default=1)
    laid_out: Floats = np.full((num_families, len(column), num_wordings), np.nan)
    for (row, goal_index), outcomes in cells.items():
        laid_out[row, goal_index, : len(outcomes)] = outcomes
    return laid_out


def goal_rate(outcomes: Sequence[float | None], *, goals: Sequence[Hashable], seed: int = 0) -> Rate:
    """Summarise the outcomes of rows, counting goals whole.

    Where every goal has one row this is `rate_of`. Else k, n and rate are those of the rows, and the interval
    draws whole goals.

    Args:
        outcomes: N outcomes, row by row.
        goals: N labels.
        seed: Equal seeds give equal results.

    Raises:
        ValueError: Lengths differ.
    """
    rows, laid_out = rate_of(outcomes), by_goal([zip(goals, outcomes, strict=True)])  # type: ignore[arg-type]
    if laid_out.shape[-1] == 1 or rows.n == 0:
        return rows
    whole = family_mean(laid_out, seed=seed)
    return replace(rows, ci_low=whole.ci_low, ci_high=whole.ci_high)


def goal_change(
    before: Sequence[float | None],
    after: Sequence[float | None],
    *,
    goals: Sequence[Hashable],
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedChange:
    """Compare the same rows before and after, counting goals whole.

    Where every goal has one row this is `paired_change`. Else counts and difference are those of the rows,
    the interval draws whole goals and the p-value flips the sign of whole goals.

    Args:
        before: N outcomes, row by row.
        after: N outcomes of the same rows in the same order.
        goals: N labels.
        confidence: Coverage of the interval.
        seed: Equal seeds give equal results.

    Raises:
        ValueError: Lengths differ.
    """
    rows = paired_change(before, after, confidence=confidence)  # type: ignore[arg-type]
    first, second = (by_goal([zip(goals, values, strict=True)]) for values in (before, after))
    if first.shape[-1] == 1 or rows.n == 0:
        return rows
    is_missing = np.isnan(first - second)
    first[is_missing] = second[is_missing] = np.nan
    half = goal_half_width(second, first, confidence=confidence, seed=seed)
    return replace(
        rows,
        ci_low=max(-1.0, rows.difference - half),
        ci_high=min(1.0, rows.difference + half),
        p_value=sign_flip_p_value(second, first, seed=seed),
    )


def goal_half_width(first: Floats, second: Floats, *, confidence: float = 0.95, seed: int = 0) -> float:
    """Return how far the difference of two rates may be off, over goals drawn with replacement.

    Never 0, since goals that agree so far need not go on agreeing.

    Args:
        first: (F,G) or (F,G,W) outcomes; at least one must be scored in both.
        second: The same shape, the same rows.
        confidence: Coverage of the interval.
        seed: Equal seeds give equal results.

    Returns:
        Half the width of the interval of the first rate less the second.
    """
    weights = draw_goals(first.shape[1], resamples=_RESAMPLES, seed=seed)
    spread = float(np.nanstd(weighted_family_means(first, weights) - weighted_family_means(second, weights)))
    num_goals = int((~np.isnan(_rows_of_goals(first - second))).any(axis=0).sum())
    if spread > 1e-12 and num_goals > 1:
        return spread * float(stats.t.ppf((1 + confidence) / 2, num_goals - 1))
    # All goals alike: as if each were one pair of outcomes.
    asked_once = np.ones((1, first.shape[1]))
    one, other = (
        round(float(weighted_family_means(values, asked_once)[0]) * num_goals) for values in (first, second)
    )
    low, high = newcombe_interval(
        kept=min(one, other),
        gained=max(one - other, 0),
        lost=max(other - one, 0),
        n=num_goals,
        confidence=confidence,
    )
    return max(high - (one - other) / num_goals, (one - other) / num_goals - low)


def sign_flip_p_value(first: Floats, second: Floats, *, seed: int = 0) -> float:
    """Test whether the goals' mean differences centre on 0, by flipping the sign of whole goals.

    Args:
        first: (F,G) or (F,G,W) outcomes.
        second: The same shape, the same rows.
        seed: Of the flips, which are drawn where goals are too many to try all.

    Returns:
        The two-sided p-value; 1 where fewer than two goals are scored in both, which no flip can tell apart.
    """
    by_row = _rows_of_goals(first - second)
    observed = ~np.isnan(by_row)
    counts = observed.sum(axis=0)
    of_goals = np.where(observed, by_row, 0.0).sum(axis=0)[counts > 0] / counts[counts > 0]
    if len(of_goals) < 2 or not of_goals.any():
        return 1.0
    result = stats.permutation_test(
        (of_goals,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_FLIPS,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _rows_of_goals(values: Floats) -> Floats:
    """Put families and wordings on one axis: (F,G) or (F,G,W) -> (F*W,G)."""
    rows: Floats = np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])
    return rows
