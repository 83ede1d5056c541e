"""Doubt the selection: would other pairs choose the same experts, and does chance or format explain it?

Pure maths on activation rates; torch, numpy and scipy only.

Shape letters: N pairs, G goals, L MoE layers, E experts, B resamples, P permutations.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from rasa_moe.detect.aad import activation_discrepancy, resample_discrepancy, select_experts

Floats = NDArray[np.float64]
Place = tuple[int, int]
"""Row among the MoE layers, and expert."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Hold the mean of many values and the middle 95 % of them."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | Floats) -> Spread:
        """Summarise values; there must be at least one."""
        low, high = np.quantile(values, [0.025, 0.975])
        return cls(mean=float(np.mean(values)), low=float(low), high=float(high))


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Hold how far two selections of experts agree.

    Attributes:
        common: Experts in both.
        jaccard: Common over all in either; 1 for two empty sets.
        expected: Experts that two random selections of these sizes share on average.
        p_value: Probability that random selections share at least as many (hypergeometric).
    """

    common: int
    jaccard: float
    expected: float
    p_value: float


def jaccard(first: Collection[Place], second: Collection[Place]) -> float:
    """Return the size of the intersection over that of the union; 1 for two empty sets."""
    union = len(set(first) | set(second))
    return len(set(first) & set(second)) / union if union else 1.0


def overlap(first: Collection[Place], second: Collection[Place], *, num_experts: int) -> Overlap:
    """Compare two selections out of `num_experts` experts."""
    common = len(set(first) & set(second))
    law = stats.hypergeom(num_experts, len(set(first)), len(set(second)))
    return Overlap(
        common=common,
        jaccard=jaccard(first, second),
        expected=float(law.mean()),
        p_value=float(law.sf(common - 1)),
    )


def resampled_stability(
    jailbreak_rates: Tensor,
    anchor_rates: Tensor,
    *,
    budget: int,
    goals: Sequence[Hashable],
    resamples: int = 500,
    seed: int = 0,
) -> Spread:
    """Ask how much of the selection stays when the goals are drawn again with replacement.

    Args:
        jailbreak_rates: (N, L, E) floating.
        anchor_rates: (N, L, E) floating.
        budget: Experts selected.
        goals: N labels.
        resamples: B.
        seed: Equal seeds give equal results.

    Returns:
        Jaccard of each resample's selection with that of all pairs.
    """
    chosen = select_experts(activation_discrepancy(jailbreak_rates, anchor_rates), budget=budget)
    drawn = resample_discrepancy(jailbreak_rates, anchor_rates, goals=goals, resamples=resamples, seed=seed)
    return Spread.of([jaccard(chosen, select_experts(delta, budget=budget)) for delta in drawn])


def stability_across_seeds(
    jailbreak_rates: Tensor,
    anchor_rates: Tensor,
    *,
    budget: int,
    goals: Sequence[Hashable],
    seeds: Sequence[int],
) -> Spread:
    """Ask whether two runs that collected other goals would select the same experts.

    For every seed the goals are divided into halves at random, and the selections of the two halves, which
    share no goal, are compared.

    Returns:
        Jaccard of the two halves, over seeds. A single goal has no halves: then nothing was seen to agree,
        and the interval is everything, 0 to 1.
    """
    names = list(dict.fromkeys(goals))
    if len(names) < 2:
        return Spread(mean=0.0, low=0.0, high=1.0)
    found = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(names))
        half = {names[place] for place in order[: len(names) // 2]}
        is_first = torch.tensor([goal in half for goal in goals])
        chosen = [
            select_experts(activation_discrepancy(jailbreak_rates[rows], anchor_rates[rows]), budget=budget)
            for rows in (is_first, ~is_first)
        ]
        found.append(jaccard(*chosen))
    return Spread.of(found)


def swap_p_values(
    jailbreak_rates: Tensor,
    anchor_rates: Tensor,
    *,
    goals: Sequence[Hashable],
    permutations: int = 2000,
    seed: int = 0,
) -> Floats:
    """Test every expert against the null that jailbreak and plain request could be exchanged.

    Under the null the sign of every goal's differences is a coin toss; all pairs of a goal are tossed
    together.

    Args:
        jailbreak_rates: (N, L, E) floating.
        anchor_rates: (N, L, E) floating.
        goals: N labels.
        permutations: P.
        seed: Equal seeds give equal results.

    Returns:
        (L, E) one-sided p-values of Delta > 0, (1 + exceedances) / (1 + P), so never 0.
    """
    differences = (jailbreak_rates.double() - anchor_rates.double()).cpu().numpy()  # (N, L, E)
    index_of = {goal: number for number, goal in enumerate(dict.fromkeys(goals))}
    sums = np.zeros((len(index_of), differences[0].size))  # (G, L*E)
    np.add.at(sums, [index_of[goal] for goal in goals], differences.reshape(len(differences), -1))
    observed = sums.sum(axis=0)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(permutations, len(index_of)))
    # Rounding must not make the identity permutation miss the observed sum.
    exceeds = (signs @ sums >= observed - 1e-12).sum(axis=0)
    p_values: Floats = ((1 + exceeds) / (1 + permutations)).reshape(differences.shape[1:])
    return p_values


def discovery_q_values(p_values: Floats) -> Floats:
    """Bound the false discovery rate over all experts (Benjamini-Hochberg), (L, E)."""
    adjusted = stats.false_discovery_control(p_values.ravel(), method="bh")
    q_values: Floats = np.asarray(adjusted).reshape(p_values.shape)
    return q_values


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Return Spearman's correlation of two (L, E) tables over all experts; None if one is constant."""
    if any(bool((table == table.flatten()[0]).all()) for table in (first, second)):
        return None
    return float(stats.spearmanr(first.flatten().numpy(), second.flatten().numpy()).statistic)


def monte_carlo_p(effect: float, random_effects: Sequence[float]) -> float:
    """Return how often chance does at least as much in either direction, (1 + exceedances) / (1 + draws)."""
    exceeds = sum(abs(other) >= abs(effect) - 1e-12 for other in random_effects)
    return (1 + exceeds) / (1 + len(random_effects))
