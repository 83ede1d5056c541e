"""AAD against loops that follow the paper's words, and the properties its users rely on."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from rasa_moe.detect import aad

NUM_PAIRS, NUM_LAYERS, NUM_EXPERTS = 12, 3, 5
SHAPE = (NUM_LAYERS, NUM_EXPERTS)


@pytest.fixture
def rates() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_PAIRS, NUM_LAYERS, NUM_EXPERTS)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


def slow_discrepancy(jailbreak: torch.Tensor, anchor: torch.Tensor, pairs: list[int]) -> list[list[float]]:
    """Compute mean over jailbreaks minus mean over anchors, one number at a time."""
    table = []
    for layer in range(NUM_LAYERS):
        row = []
        for expert in range(NUM_EXPERTS):
            p_jailbreak = sum(float(jailbreak[pair, layer, expert]) for pair in pairs) / len(pairs)
            p_anchor = sum(float(anchor[pair, layer, expert]) for pair in pairs) / len(pairs)
            row.append(p_jailbreak - p_anchor)
        table.append(row)
    return table


def test_discrepancy_is_the_difference_of_mean_activation(rates):
    expected = torch.tensor(slow_discrepancy(*rates, pairs=list(range(NUM_PAIRS))), dtype=torch.float64)
    torch.testing.assert_close(aad.activation_discrepancy(*rates), expected)


def test_discrepancy_counts_activations_of_single_tokens():
    """Two pairs, two experts, top-1: expert 1 takes 3 of 4 jailbreak tokens and 0 of 4 anchor tokens."""
    jailbreak = torch.tensor([[[0.0, 1.0]], [[0.5, 0.5]]])
    anchor = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    assert aad.activation_discrepancy(jailbreak, anchor).tolist() == [[-0.75, 0.75]]


def test_discrepancy_changes_sign_when_the_sides_are_swapped(rates):
    jailbreak, anchor = rates
    forward = aad.activation_discrepancy(jailbreak, anchor)
    torch.testing.assert_close(forward, -aad.activation_discrepancy(anchor, jailbreak))


def test_half_precision_rates_are_subtracted_and_averaged_in_double(rates):
    jailbreak, anchor = (side.bfloat16() for side in rates)
    expected = torch.tensor(slow_discrepancy(jailbreak, anchor, pairs=list(range(NUM_PAIRS))))
    fast = aad.activation_discrepancy(jailbreak, anchor)
    torch.testing.assert_close(fast, expected.double(), atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("jailbreak", "anchor", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(3, 3, 4), "must both be"),
        (torch.zeros(3, 4), torch.zeros(3, 4), "must both be"),
        (torch.zeros(0, 3, 4), torch.zeros(0, 3, 4), "no pairs"),
        (torch.zeros(2, 1, 1), torch.tensor([[[0.0]], [[float("nan")]]]), r"pairs \[1\] are not finite"),
    ],
)
def test_bad_rates_are_refused(jailbreak, anchor, message):
    with pytest.raises(ValueError, match=message):
        aad.activation_discrepancy(jailbreak, anchor)


def slow_resamples(jailbreak, anchor, goals: list[str], *, resamples: int, seed: int) -> np.ndarray:
    """Draw whole goals and write out every drawn pair, then average; independent of any weighting."""
    distinct = list(dict.fromkeys(goals))
    counts = np.random.default_rng(seed).multinomial(
        len(distinct), [1 / len(distinct)] * len(distinct), size=resamples
    )
    tables = []
    for row in counts:
        pairs: list[int] = []
        for goal, times in zip(distinct, row, strict=True):
            pairs += [pair for pair, label in enumerate(goals) if label == goal] * int(times)
        tables.append(slow_discrepancy(jailbreak, anchor, pairs))
    return np.array(tables)


@pytest.mark.parametrize("num_goals", [NUM_PAIRS, 5], ids=["each pair its own goal", "pairs share goals"])
def test_bootstrap_equals_a_loop_over_drawn_pairs(rates, num_goals):
    goals = [f"goal {pair % num_goals}" for pair in range(NUM_PAIRS)]
    expected = slow_resamples(*rates, goals, resamples=40, seed=3)
    fast = aad.resample_discrepancy(*rates, goals=goals, resamples=40, seed=3)
    np.testing.assert_allclose(fast.numpy(), expected)
    interval = aad.bootstrap_interval(*rates, goals=goals, budget=4, resamples=40, confidence=0.9, seed=3)
    np.testing.assert_allclose(interval.low.numpy(), np.quantile(expected, 0.05, axis=0))
    np.testing.assert_allclose(interval.high.numpy(), np.quantile(expected, 0.95, axis=0))


def test_goals_left_out_means_that_pairs_are_drawn(rates):
    labelled = aad.resample_discrepancy(*rates, goals=list(range(NUM_PAIRS)), resamples=20, seed=1)
    assert torch.equal(labelled, aad.resample_discrepancy(*rates, resamples=20, seed=1))


def test_selection_probability_equals_counting_selections(rates):
    resampled = aad.resample_discrepancy(*rates, resamples=50, seed=2)
    expected = torch.zeros(SHAPE, dtype=torch.float64)
    for table in resampled:
        for layer, expert in aad.select_experts(table, budget=4):
            expected[layer, expert] += 1 / 50
    torch.testing.assert_close(aad.selection_probability(resampled, budget=4), expected)
    interval = aad.bootstrap_interval(*rates, budget=4, resamples=50, seed=2)
    torch.testing.assert_close(interval.selection_probability, expected)
    assert float(expected.sum()) == pytest.approx(4)


def test_bootstrap_depends_on_the_seed_and_on_nothing_else(rates):
    first = aad.bootstrap_interval(*rates, budget=2, resamples=100, seed=7)
    again = aad.bootstrap_interval(*rates, budget=2, resamples=100, seed=7)
    other = aad.bootstrap_interval(*rates, budget=2, resamples=100, seed=8)
    assert torch.equal(first.low, again.low)
    assert not torch.equal(first.low, other.low)


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    """Draw 200 data sets of 40 pairs whose true Delta is 0.1; 95 percent of intervals should hold it."""
    generator = torch.Generator().manual_seed(0)
    jailbreak = torch.rand(40, 1, 200, generator=generator) + 0.1
    anchor = torch.rand(40, 1, 200, generator=generator)
    interval = aad.bootstrap_interval(jailbreak, anchor, threshold=0.0, resamples=500)
    covered = ((interval.low <= 0.1) & (interval.high >= 0.1)).double().mean()
    assert 0.89 <= float(covered) <= 0.99


def test_drawing_goals_widens_the_interval_of_repeated_goals(rates):
    """Five copies of every pair are no new evidence."""
    jailbreak, anchor = (side.repeat(5, 1, 1) for side in rates)
    goals = list(range(NUM_PAIRS)) * 5
    honest = aad.bootstrap_interval(jailbreak, anchor, goals=goals, budget=1)
    naive = aad.bootstrap_interval(jailbreak, anchor, budget=1)
    assert ((honest.high - honest.low) > 1.5 * (naive.high - naive.low)).all()


def test_number_of_goals_must_match(rates):
    with pytest.raises(ValueError, match="2 goals for 12 pairs"):
        aad.bootstrap_interval(*rates, budget=1, goals=["a", "b"])


def test_budget_selects_the_largest_strongest_first():
    delta = torch.tensor([[0.1, 0.9, -0.5], [0.8, 0.1, 0.7]])
    assert aad.select_experts(delta, budget=3) == [(0, 1), (1, 0), (1, 2)]


def test_budget_ties_go_to_the_lower_layer_then_the_lower_expert():
    """Many equal values: an unstable top-k picks others."""
    delta = torch.zeros(40, 64)
    delta[7, 3] = 1.0
    expected = [(7, 3)] + [(0, expert) for expert in range(64)] + [(1, 0)]
    assert aad.select_experts(delta, budget=66) == expected


def test_budget_selects_like_sorting_a_list(rates):
    delta = (aad.activation_discrepancy(*rates) * 5).round()  # rounding makes ties
    cells = [(layer, expert) for layer in range(NUM_LAYERS) for expert in range(NUM_EXPERTS)]
    by_rank = sorted(cells, key=lambda cell: (-float(delta[cell]), cell))
    for budget in range(1, len(cells) + 1):
        assert aad.select_experts(delta, budget=budget) == by_rank[:budget]


def test_threshold_is_strict():
    delta = torch.tensor([[0.5, 0.25, 0.75]])
    assert aad.select_experts(delta, threshold=0.5) == [(0, 2)]
    assert aad.select_experts(delta, threshold=2.0) == []


@pytest.mark.parametrize("rule", [{}, {"budget": 1, "threshold": 0.1}, {"budget": 0}, {"budget": 7}], ids=str)
def test_selection_needs_exactly_one_sound_rule(rule):
    with pytest.raises(ValueError, match=r"exactly one|must lie in 1 to 6"):
        aad.select_experts(torch.zeros(2, 3), **rule)


def test_random_control_has_the_same_counts_in_every_layer():
    selected = [(0, 1), (0, 2), (2, 4), (2, 0), (2, 1)]
    control = aad.random_like(selected, SHAPE, seed=0)
    assert sorted(row for row, _ in control) == [0, 0, 2, 2, 2]
    assert len(set(control)) == len(control) == 5
    assert control == aad.random_like(random.Random(0).sample(selected, 5), SHAPE, seed=0)


def test_random_control_reaches_every_expert_evenly():
    draws = [aad.random_like([(1, 0), (1, 1)], SHAPE, seed=seed) for seed in range(500)]
    counts = np.bincount([expert for draw in draws for _, expert in draw], minlength=NUM_EXPERTS)
    assert counts.sum() == 1000
    assert counts.min() > 150  # 200 each, standard deviation 11


@pytest.mark.parametrize("selected", [[(0, 5)], [(3, 0)], [(-1, 0)], [(0, 1), (0, 1)]])
def test_random_control_refuses_what_is_no_selection(selected):
    with pytest.raises(ValueError, match="distinct"):
        aad.random_like(selected, SHAPE, seed=0)
