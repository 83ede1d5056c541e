"""Rates, and differences of rates, over several trainings of one method: goals and seeds both vary.

Shape letters: S seeds, F families, G goals, W wordings of a goal within one family.

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

from rasa_moe.evaluate.goals import goal_half_width, sign_flip_p_value
from rasa_moe.evaluate.statistics import Floats, family_mean, weighted_family_means

CONFIDENCE = 0.95
_RESAMPLES = 2000
_CLEAR = 0.05


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
        difference: Rate of the first minus rate of the second; NaN if no prompt was scored for both, or a
            seed has no rate. The interval is then (-1, 1) and the p-value 1.
        ci_low: Lower end of the 95 % interval, over goals and seeds.
        ci_high: Upper end.
        p_value: Of a two-sided test that flips the sign of whole goals; speaks of these trainings.
        seeds_lower: Seeds in which the same test finds the first clearly lower on its own (p < .05).
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
        outcomes: (S,F,G) or (S,F,G,W) of 0, 1 and NaN.
    """
    by_seed = np.array([_family_rate(one) for one in outcomes])
    goals = family_mean(outcomes.reshape(-1, *outcomes.shape[2:]), resamples=_RESAMPLES)
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
        first: (S,F,G) or (S,F,G,W) outcomes.
        second: The same shape, outcomes of the same prompts; seed s of one is held against seed s of the
            other.

    Raises:
        ValueError: Shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"methods to compare need the same prompts and seeds: {first.shape}, {second.shape}")
    pairs = list(zip(first, second, strict=True))
    by_seed = np.array([_family_rate(one) - _family_rate(other) for one, other in pairs])
    value = float(by_seed.mean())
    if math.isnan(value) or np.isnan(first - second).all():
        return _nothing_to_compare(len(pairs))
    ours, theirs = (outcomes.reshape(-1, *outcomes.shape[2:]) for outcomes in (first, second))
    half = math.hypot(goal_half_width(ours, theirs, confidence=CONFIDENCE), _seed_half_width(by_seed))
    is_clear = np.array([sign_flip_p_value(one, other) < _CLEAR for one, other in pairs])
    return Difference(
        difference=value,
        ci_low=max(-1.0, value - half),
        ci_high=min(1.0, value + half),
        p_value=sign_flip_p_value(ours, theirs),
        seeds_lower=int((is_clear & (by_seed < 0)).sum()),
        seeds_higher=int((is_clear & (by_seed > 0)).sum()),
        seeds=len(pairs),
    )


def _nothing_to_compare(seeds: int) -> Difference:
    return Difference(
        difference=math.nan,
        ci_low=-1.0,
        ci_high=1.0,
        p_value=1.0,
        seeds_lower=0,
        seeds_higher=0,
        seeds=seeds,
    )


def _family_rate(outcomes: Floats) -> float:
    """Return the mean over families of each family's own rate: (F,G) or (F,G,W) -> scalar."""
    return float(weighted_family_means(outcomes, np.ones((1, outcomes.shape[1])))[0])


def _seed_half_width(by_seed: Floats) -> float:
    if len(by_seed) < 2:
        return 0.0
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(by_seed) - 1))
    return quantile * float(by_seed.std(ddof=1)) / math.sqrt(len(by_seed))
