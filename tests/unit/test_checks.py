"""The checks of a selection: against scipy, slow loops and cases worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from rasa_moe.detect import checks


def rates(differences: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return jailbreak and anchor rates (N,1,E) with the given differences."""
    jailbreaks = torch.tensor(differences)[:, None]
    return jailbreaks, torch.zeros_like(jailbreaks)


def noisy(num_pairs: int = 30, num_experts: int = 12, *, signal: float = 0.0, seed: int = 0):
    """Return random rates; the first two experts are more active on jailbreaks by `signal`."""
    generator = torch.Generator().manual_seed(seed)
    jailbreaks, anchors = torch.rand(2, num_pairs, 1, num_experts, generator=generator)
    jailbreaks[:, :, :2] += signal
    return jailbreaks, anchors


def test_overlap_by_hand() -> None:
    first, second = [(0, 0), (0, 1), (0, 2)], [(0, 1), (0, 2), (1, 0)]
    found = checks.overlap(first, second, num_experts=10)
    assert (found.common, found.jaccard, found.expected) == (2, 0.5, pytest.approx(0.9))
    # Of C(10,3) = 120 sets, C(3,2) * 7 share exactly two with the first and one shares all three.
    assert found.p_value == pytest.approx((3 * 7 + 1) / 120)
    assert checks.jaccard([], []) == 1.0


@pytest.mark.parametrize("num_goals", [2, 5, 8])
def test_swap_p_values_against_all_sign_patterns(num_goals: int) -> None:
    generator = np.random.default_rng(num_goals)
    differences = generator.normal(0.3, 1.0, size=(num_goals, 4))
    jailbreaks, anchors = rates(differences.tolist())
    found = checks.swap_p_values(jailbreaks, anchors, goals=range(num_goals), permutations=20000)[0]
    exact = [
        np.mean(
            [
                np.dot(signs, column) >= column.sum() - 1e-9
                for signs in itertools.product((-1, 1), repeat=num_goals)
            ]
        )
        for column in differences.astype(np.float32).astype(float).T
    ]
    assert found == pytest.approx(exact, abs=0.015)


def test_pairs_of_one_goal_are_swapped_together() -> None:
    # Four pairs of one goal: only two patterns exist, so p is about one half whatever the differences.
    jailbreaks, anchors = rates([[1.0], [1.0], [1.0], [1.0]])
    clustered = checks.swap_p_values(jailbreaks, anchors, goals=["g"] * 4, permutations=4000)
    single = checks.swap_p_values(jailbreaks, anchors, goals=range(4), permutations=4000)
    assert clustered[0, 0] == pytest.approx(0.5, abs=0.03)
    assert single[0, 0] == pytest.approx(1 / 16, abs=0.015)


def test_p_values_are_uniform_without_a_signal() -> None:
    p_values = np.concatenate(
        [
            checks.swap_p_values(*noisy(seed=seed), goals=range(30), permutations=300).ravel()
            for seed in range(20)
        ]
    )
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_only_true_signals_are_discovered() -> None:
    p_values = checks.swap_p_values(*noisy(signal=0.5), goals=range(30), permutations=2000)
    q_values = checks.discovery_q_values(p_values)
    assert (q_values < 0.05).nonzero()[1].tolist() == [0, 1]
    assert q_values.ravel() == pytest.approx(stats.false_discovery_control(p_values.ravel()))


def test_stability_is_whole_with_a_signal_and_low_without() -> None:
    options = {"budget": 2, "goals": range(30)}
    strong = checks.resampled_stability(*noisy(signal=2.0), **options, resamples=50)
    weak = checks.resampled_stability(*noisy(), **options, resamples=50)
    assert (strong.mean, strong.low, strong.high) == (1.0, 1.0, 1.0)
    assert weak.mean < 0.9
    halves = checks.stability_across_seeds(*noisy(signal=2.0), **options, seeds=range(20))
    assert halves.mean == 1.0
    assert checks.stability_across_seeds(*noisy(), **options, seeds=range(20)).mean < 0.6


def test_halves_share_no_goal() -> None:
    # Expert 0 is woken by the first goal's pairs alone: at most one of two disjoint halves can select it.
    jailbreaks, anchors = rates([[9.0, 0.1, 0.0]] * 3 + [[0.0, 0.1, 0.0]] * 3)
    found = checks.stability_across_seeds(
        jailbreaks, anchors, budget=1, goals=["a"] * 3 + ["b"] * 3, seeds=range(10)
    )
    assert found.mean == 0.0


def test_a_single_goal_has_no_halves() -> None:
    found = checks.stability_across_seeds(*noisy(4), budget=2, goals=["a"] * 4, seeds=range(3))
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 1.0)


def test_rank_correlation_is_spearmans() -> None:
    first, second = torch.rand(2, 3, 4, dtype=torch.float64)
    expected = stats.spearmanr(first.flatten(), second.flatten()).statistic
    assert checks.rank_correlation(first, second) == pytest.approx(expected)
    assert checks.rank_correlation(first, first.exp()) == pytest.approx(1.0)


def test_monte_carlo_p_counts_both_directions_and_is_never_0() -> None:
    assert checks.monte_carlo_p(0.5, [0.1, -0.5, 0.2]) == 0.5
    assert checks.monte_carlo_p(0.9, [0.1, -0.5, 0.2]) == 0.25
