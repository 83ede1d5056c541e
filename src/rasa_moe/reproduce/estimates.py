"""Rates, and differences of rates, over several trainings of one method: goals and seeds both vary.

Shape letters: S seeds, F families, G goals.

Every training answers the same goals, and one goal asked in several families rises and falls together. So
goals are drawn whole, over families and seeds together (`evaluate.statistics.family_mean`): that is how sure
the rate of *these trainings* is. How much trainings differ is the t interval of the mean over seeds. The two
half-widths are squared and added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from rasa_moe.evaluate.statistics import (
    Floats,
    draw_goals,
    family_mean,
    newcombe_interval,
    paired_change,
    weighted_family_means,
)

CONFIDENCE = 0.95
_RESAMPLES = 2000
_FLIPS = 9999


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Hold a rate over seeds, families and goals.

    Attributes:
        rate: Mean over seeds of the mean over families; NaN if nothing was scored.
        ci_low: Lower end of the 95 % interval, over goals and seeds.
        ci_high: Upper end.
        seeds: S.
        seed_sd: Standard deviation between seeds; NaN for one seed.
        n: Scored outcomes.
    """

    rate: float
    ci_low: float
    ci_high: float
    seeds: int
    seed_sd: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Hold how one method differs from another on the same prompts.

    Attributes:
        difference: Rate of the first minus rate of the second.
        ci_low: Lower end of the 95 % interval, over goals and seeds.
        ci_high: Upper end.
        p_value: Of a two-sided test that flips the sign of whole goals; speaks of these trainings.
        seeds_lower: Seeds in which McNemar's exact test on the same prompts finds the first clearly lower
            (p < .05).
        seeds_higher: The same, higher.
        seeds: Seeds of both.
    """

    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    seeds_lower: int
    seeds_higher: int
    seeds: int


def mean_over_seeds(outcomes: Floats) -> Mean:
    """Estimate a rate.

    Args:
        outcomes: (S,F,G) of 0, 1 and NaN.
    """
    by_seed = np.array([_family_rate(one) for one in outcomes])
    goals = family_mean(outcomes.reshape(-1, outcomes.shape[-1]), resamples=_RESAMPLES)
    rate = float(by_seed.mean()) if len(by_seed) else math.nan
    if math.isnan(rate):
        return Mean(
            rate=rate,
            ci_low=0.0,
            ci_high=1.0,
            seeds=len(by_seed),
            seed_sd=math.nan,
            n=0,
        )
    spread = _seed_half_width(by_seed)
    return Mean(
        rate=rate,
        ci_low=max(0.0, rate - math.hypot(max(rate - goals.ci_low, 0.0), spread)),
        ci_high=min(1.0, rate + math.hypot(max(goals.ci_high - rate, 0.0), spread)),
        seeds=len(by_seed),
        seed_sd=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else math.nan,
        n=goals.n,
    )


def difference_over_seeds(first: Floats, second: Floats) -> Difference:
    """Compare two methods on the same prompts.

    Args:
        first: (S,F,G) outcomes.
        second: (S,F,G) outcomes of the same prompts; seed s of one is held against seed s of the other.

    Raises:
        ValueError: Shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"methods to compare need the same prompts and seeds: {first.shape}, {second.shape}")
    pairs = list(zip(first, second, strict=True))
    by_seed = np.array([_family_rate(one) - _family_rate(other) for one, other in pairs])
    num_goals = first.shape[-1]
    stacked = [outcomes.reshape(-1, num_goals) for outcomes in (first, second)]
    weights = draw_goals(num_goals, resamples=_RESAMPLES, seed=0)
    resampled = weighted_family_means(stacked[0], weights) - weighted_family_means(stacked[1], weights)
    half = math.hypot(_goal_half_width(stacked[0], stacked[1], resampled), _seed_half_width(by_seed))
    changes = [paired_change(other.ravel(), one.ravel()) for one, other in pairs]
    value = float(by_seed.mean())
    return Difference(
        difference=value,
        ci_low=max(-1.0, value - half),
        ci_high=min(1.0, value + half),
        p_value=_sign_flip_p_value(stacked[0] - stacked[1]),
        seeds_lower=sum(change.p_value < 0.05 and change.difference < 0 for change in changes),
        seeds_higher=sum(change.p_value < 0.05 and change.difference > 0 for change in changes),
        seeds=len(pairs),
    )


def _family_rate(outcomes: Floats) -> float:
    """Return the mean over families of each family's own rate: (F,G) -> scalar."""
    return float(weighted_family_means(outcomes, np.ones((1, outcomes.shape[1])))[0])


def _goal_half_width(first: Floats, second: Floats, resampled: Floats) -> float:
    """Return the half-width over goals; never 0, since goals that agree so far need not go on agreeing.

    Args:
        first: (rows, G).
        second: (rows, G).
        resampled: (B,) differences of the two when goals are drawn with replacement.
    """
    num_goals = int((~np.isnan(first - second)).any(axis=0).sum())
    spread = float(np.nanstd(resampled))
    if spread > 1e-12 and num_goals > 1:
        return spread * float(stats.t.ppf((1 + CONFIDENCE) / 2, num_goals - 1))
    # All goals alike: as if each were one pair of outcomes.
    one, other = (round(_family_rate(values) * num_goals) for values in (first, second))
    low, high = newcombe_interval(
        kept=min(one, other),
        gained=max(one - other, 0),
        lost=max(other - one, 0),
        n=num_goals,
    )
    return max(high - (one - other) / num_goals, (one - other) / num_goals - low)


def _seed_half_width(by_seed: Floats) -> float:
    if len(by_seed) < 2:
        return 0.0
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(by_seed) - 1))
    return quantile * float(by_seed.std(ddof=1)) / math.sqrt(len(by_seed))


def _sign_flip_p_value(differences: Floats) -> float:
    """Test whether the goals' mean differences centre on 0: (rows, G) -> p."""
    observed = ~np.isnan(differences)
    asked = observed.any(axis=0)
    sums = np.where(observed, differences, 0.0).sum(axis=0)[asked]
    by_goal = sums / observed.sum(axis=0)[asked]
    if not by_goal.any():
        return 1.0
    result = stats.permutation_test(
        (by_goal,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_FLIPS,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)
