"""Rows of one goal are no independent rows: layout, intervals and tests that count goals whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rasa_moe.evaluate.goals import by_goal, goal_change, goal_half_width, sign_flip_p_value
from rasa_moe.evaluate.statistics import newcombe_interval, paired_change

NAN = math.nan


def test_rows_are_laid_out_by_goal_and_gaps_are_missing() -> None:
    laid_out = by_goal([[("a", 1.0), ("b", 0.0), ("a", None), ("a", 1.0)], [("c", 0.0), ("b", 1.0)]])
    assert laid_out.shape == (2, 3, 3)
    np.testing.assert_array_equal(
        laid_out,
        [
            [[1, NAN, 1], [0, NAN, NAN], [NAN, NAN, NAN]],
            [[NAN, NAN, NAN], [1, NAN, NAN], [0, NAN, NAN]],
        ],
    )
    assert by_goal([]).size == 0


def test_rows_of_different_goals_are_compared_as_rows() -> None:
    before, after = [1, 1, 0, None, 1], [0, 1, 0, 1, 0]
    assert goal_change(before, after, goals=range(5)) == paired_change(before, after)


def test_a_goal_asked_twelve_times_is_one_goal() -> None:
    # Three goals get better and five get worse, each in all of twelve families.
    goals = np.tile(np.arange(12), 12)
    before, after = (np.isin(goals, range(*some)).astype(float) for some in ((0, 3), (3, 8)))
    change = goal_change(before.tolist(), after.tolist(), goals=goals.tolist())
    assert (change.n, change.gained, change.lost) == (144, 60, 36)
    assert change.difference == pytest.approx(2 / 12)
    assert change.p_value == pytest.approx(stats.binomtest(3, 8).pvalue)
    assert paired_change(before, after).p_value < 0.05
    assert change.ci_low < 0 < change.ci_high


def test_models_alike_are_rarely_told_apart() -> None:
    """Outcomes of a goal are nearly the same in all families: rows would find a difference in 40 %."""
    generator = np.random.default_rng(1)
    num_runs, found, by_rows, covered = 120, 0, 0, 0
    goals = np.tile(np.arange(12), 30).tolist()
    for run in range(num_runs):
        before, after = (
            (generator.random((30, 12)) < generator.beta(0.5, 0.5, size=12)).astype(float).ravel()
            for _ in range(2)
        )
        change = goal_change(before.tolist(), after.tolist(), goals=goals, seed=run)
        found += change.p_value < 0.05
        covered += change.ci_low <= 0 <= change.ci_high
        by_rows += paired_change(before, after).p_value < 0.05
    assert found / num_runs <= 0.09
    assert covered / num_runs >= 0.88
    assert by_rows / num_runs > 0.3


def test_rows_unscored_on_either_side_are_left_out_of_both() -> None:
    goals = ["a", "a", "b", "b", "c", "c", "d", "d"]
    before, after = [1, None, 1, 1, 1, 1, 0, None], [0, 1, 0, None, 1, 0, 0, 0]
    change = goal_change(before, after, goals=goals)
    kept = [0, 2, 4, 5, 6]
    shorter = goal_change(
        [before[row] for row in kept], [after[row] for row in kept], goals=[goals[row] for row in kept]
    )
    assert (change.n, change.unscored, change.lost) == (5, 3, 3)
    assert change.difference == pytest.approx(-3 / 5)
    assert (change.ci_low, change.ci_high, change.p_value) == (
        shorter.ci_low,
        shorter.ci_high,
        shorter.p_value,
    )


def test_where_nothing_can_be_compared_everything_is_possible() -> None:
    change = goal_change([1, 1, None], [None, None, 0], goals=["a", "a", "b"])
    assert math.isnan(change.difference)
    assert (change.n, change.ci_low, change.ci_high, change.p_value) == (0, -1.0, 1.0, 1.0)


def test_a_single_goal_says_nearly_nothing() -> None:
    change = goal_change([1] * 6, [0] * 6, goals=["a"] * 6)
    low, high = newcombe_interval(kept=0, gained=0, lost=1, n=1)
    assert (change.difference, change.p_value, change.ci_low) == (-1.0, 1.0, -1.0)
    assert change.ci_high >= high - 1e-12 and low == -1.0


def test_wordings_count_like_families() -> None:
    generator = np.random.default_rng(3)
    first, second = (generator.random((4, 15)) < 0.4, generator.random((4, 15)) < 0.6)
    first, second = first.astype(float), second.astype(float)
    as_wordings = [values.T[np.newaxis] for values in (first, second)]
    assert sign_flip_p_value(*as_wordings) == sign_flip_p_value(first, second)
    # Nothing is missing, so the rate of all rows is the mean of the families' rates.
    assert goal_half_width(*as_wordings) == pytest.approx(goal_half_width(first, second))


def test_lengths_must_be_equal() -> None:
    with pytest.raises(ValueError, match="equal lengths"):
        goal_change([1, 0], [1], goals=["a", "a"])
    with pytest.raises(ValueError):
        goal_change([1, 0], [1, 0], goals=["a"])
