"""Intervals over goals and seeds, against slow references and hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rasa_moe.evaluate.statistics import family_mean
from rasa_moe.reproduce.estimates import difference_over_seeds, mean_over_seeds
from rasa_moe.reproduce.plan import Place
from rasa_moe.reproduce.results import Measured, mean_of, stack


def _draw(rate: float, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < rate).astype(float)


def test_one_seed_is_the_interval_over_goals_alone() -> None:
    values = _draw(0.4, (1, 3, 30), 0)
    mean, goals = mean_over_seeds(values), family_mean(values[0])
    assert (mean.rate, mean.ci_low, mean.ci_high) == pytest.approx((goals.rate, goals.ci_low, goals.ci_high))
    assert math.isnan(mean.seed_sd) and mean.n == 90


def test_seeds_that_differ_widen_the_interval_by_their_t_interval() -> None:
    values = np.stack([np.full((1, 20), float(seed % 2)) for seed in range(4)])
    mean = mean_over_seeds(values)
    spread = stats.t.interval(0.95, 3, loc=0.5, scale=stats.sem([0, 1, 0, 1]))
    assert mean.rate == 0.5
    assert mean.ci_low <= max(0.0, spread[0]) + 1e-12 and mean.ci_high >= min(1.0, spread[1]) - 1e-12


def test_the_rate_counts_every_seed_and_family_alike() -> None:
    values = np.full((2, 2, 4), np.nan)
    values[0, 0] = [1, 1, 1, 1]
    values[0, 1, 0] = 0
    values[1, :, :2] = [[0, 1], [1, 0]]
    assert mean_over_seeds(values).rate == pytest.approx(((1 + 0) / 2 + (0.5 + 0.5) / 2) / 2)


def test_nothing_scored_is_no_rate() -> None:
    mean = mean_over_seeds(np.full((2, 1, 3), np.nan))
    assert math.isnan(mean.rate) and (mean.ci_low, mean.ci_high, mean.n) == (
        0.0,
        1.0,
        0,
    )


def test_a_planted_difference_is_found_and_a_null_is_not() -> None:
    first, second = _draw(0.2, (5, 6, 40), 1), _draw(0.5, (5, 6, 40), 2)
    found = difference_over_seeds(first, second)
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert found.ci_high < 0 and found.p_value < 0.001
    assert (found.seeds_lower, found.seeds_higher, found.seeds) == (5, 0, 5)
    other = difference_over_seeds(second, first)
    assert other.difference == pytest.approx(-found.difference)
    assert (other.seeds_lower, other.seeds_higher) == (0, 5)
    p_values = [
        difference_over_seeds(_draw(0.5, (2, 2, 30), seed), _draw(0.5, (2, 2, 30), 100 + seed)).p_value
        for seed in range(40)
    ]
    assert 0.2 < float(np.mean(p_values)) < 0.8 and sum(p < 0.05 for p in p_values) <= 6


def test_the_p_value_is_the_exact_sign_flip_of_goals_where_goals_are_few() -> None:
    first, second = np.zeros((1, 1, 6)), np.ones((1, 1, 6))
    # All six goals point the same way: 2 of 2^6 assignments of signs are as extreme.
    assert difference_over_seeds(first, second).p_value == pytest.approx(2 / 2**6)
    assert difference_over_seeds(first, first).p_value == 1.0


def test_goals_that_all_agree_still_leave_doubt() -> None:
    same = difference_over_seeds(np.ones((1, 2, 10)), np.ones((1, 2, 10)))
    assert same.difference == 0.0 and same.ci_low < -0.05 and same.ci_high > 0.05
    # Twice the goals, less doubt; and a difference in every goal is clear, but its size is not exact.
    more = difference_over_seeds(np.ones((1, 2, 20)), np.ones((1, 2, 20)))
    assert more.ci_high < same.ci_high
    apart = difference_over_seeds(np.zeros((1, 2, 10)), np.ones((1, 2, 10)))
    assert (apart.difference, apart.ci_low) == (
        -1.0,
        -1.0,
    ) and -0.9 < apart.ci_high < -0.1


def test_where_nothing_can_be_compared_everything_is_possible() -> None:
    scored, unscored = np.ones((2, 1, 5)), np.full((2, 1, 5), np.nan)
    first_half, second_half = scored.copy(), scored.copy()
    first_half[..., 2:], second_half[..., :2] = np.nan, np.nan
    one_seed_unscored = scored.copy()
    one_seed_unscored[0] = np.nan
    for first, second in (
        (scored, unscored),
        (unscored, scored),
        (first_half, second_half),
        (one_seed_unscored, scored),
    ):
        found = difference_over_seeds(first, second)
        assert math.isnan(found.difference)
        assert (found.ci_low, found.ci_high, found.p_value) == (-1.0, 1.0, 1.0)
        assert (found.seeds_lower, found.seeds_higher, found.seeds) == (0, 0, 2)


def test_a_single_goal_is_no_clear_difference() -> None:
    found = difference_over_seeds(np.ones((3, 4, 1)), np.zeros((3, 4, 1)))
    assert (found.difference, found.p_value) == (1.0, 1.0)
    assert found.ci_low < 0.3 and found.ci_high == 1.0


def _cell(outcomes: list[float | None]) -> Measured:
    """Return a cell with one suite that asks ten goals again and again."""
    suite = {
        "name": "story",
        "kind": "attack_held_out",
        "group": "",
        "goals": [f"goal {number % 10}" for number in range(len(outcomes))],
        "outcomes": outcomes,
    }
    place = Place(table="main", model="m", method="rasa", seed=0)
    return Measured(place, {"suites": [suite], "error": None})


def test_every_wording_of_a_goal_counts() -> None:
    # Four wordings of five succeed on every goal; one row could not be judged.
    outcomes: list[float | None] = [1.0] * 40 + [0.0] * 10
    outcomes[3] = None
    cell = _cell(outcomes)
    values = stack([cell, _cell([0.0] * 50)], "attack_held_out")
    assert values is not None and values.shape == (2, 1, 10, 5)
    assert mean_of(cell, "attack_held_out") == pytest.approx(39 / 49)
    mean = mean_over_seeds(values)
    assert (mean.rate, mean.n) == (pytest.approx(39 / 49 / 2), 99)
    difference = difference_over_seeds(values[:1], values[1:])
    assert difference.difference == pytest.approx(39 / 49)
    assert difference.p_value == pytest.approx(2 / 2**10)


def test_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        difference_over_seeds(np.zeros((1, 1, 3)), np.zeros((2, 1, 3)))
