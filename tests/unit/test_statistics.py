"""Intervals and tests against scipy, published worked examples, slow loops and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from rasa_moe.evaluate import statistics

NAN = math.nan


@pytest.mark.parametrize(("k", "n"), [(0, 50), (1, 10), (13, 40), (40, 40)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_ends_are_where_the_score_test_just_rejects(k, n, confidence):
    """Invert the score test numerically instead of using the closed form."""
    z = stats.norm.ppf((1 + confidence) / 2)

    def excess(p: float) -> float:
        return (k / n - p) ** 2 - z**2 * p * (1 - p) / n

    low, high = statistics.wilson(k, n, confidence=confidence)
    if k > 0:
        assert low == pytest.approx(optimize.brentq(excess, 1e-9, k / n - 1e-6))
    if k < n:
        assert high == pytest.approx(optimize.brentq(excess, k / n + 1e-6, 1 - 1e-9))


def test_zero_of_fifty_still_allows_seven_percent():
    rate = statistics.rate_of([0] * 50)
    assert (rate.k, rate.n, rate.rate, rate.ci_low) == (0, 50, 0.0, 0.0)
    assert rate.ci_high == pytest.approx(0.0713, abs=5e-4)


def test_unscored_outcomes_leave_the_rate_and_are_counted():
    rate = statistics.rate_of([1, None, 0, NAN, True, False])
    assert (rate.k, rate.n, rate.unscored, rate.rate) == (2, 4, 2, 0.5)


def test_rate_of_nothing_claims_nothing():
    rate = statistics.rate_of([None, None])
    assert (rate.n, rate.unscored, rate.ci_low, rate.ci_high) == (0, 2, 0.0, 1.0)
    assert math.isnan(rate.rate)


@pytest.mark.parametrize("outcomes", [[0, 2], [0.5], [[0, 1]]])
def test_outcomes_must_be_yes_or_no(outcomes):
    with pytest.raises(ValueError, match="outcome"):
        statistics.rate_of(outcomes)


def slow_mcnemar(before: list[int], after: list[int]) -> float:
    """Add up the probability of every split of the changed rows that is no likelier than the one seen."""
    gained = sum(b < a for b, a in zip(before, after, strict=True))
    lost = sum(b > a for b, a in zip(before, after, strict=True))
    changed = gained + lost
    likelihood = [math.comb(changed, count) / 2**changed for count in range(changed + 1)]
    return sum(value for value in likelihood if value <= likelihood[gained] * (1 + 1e-9))


def paired_rows(*, kept: int, gained: int, lost: int, neither: int) -> tuple[list[int], list[int]]:
    before = [1] * kept + [0] * gained + [1] * lost + [0] * neither
    after = [1] * kept + [1] * gained + [0] * lost + [0] * neither
    return before, after


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 6), (3, 9), (5, 5), (1, 0)])
def test_mcnemar_is_the_exact_binomial_test_of_the_changed_rows(gained, lost):
    before, after = paired_rows(kept=4, gained=gained, lost=lost, neither=7)
    change = statistics.paired_change(before, after)
    assert (change.gained, change.lost, change.n) == (gained, lost, 11 + gained + lost)
    assert change.p_value == pytest.approx(slow_mcnemar(before, after))
    assert change.difference == pytest.approx(np.mean(after) - np.mean(before))


# Published intervals of rate 1 minus rate 2 by Newcombe's method 10. Here "before" is 2 and "after" is 1.
@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Altman et al., Statistics with Confidence (2000), table 6.2
        ({"kept": 14, "gained": 5, "lost": 0, "n": 41}, 0.011, 0.226),
        # Fagerland et al., Statistical Analysis of Contingency Tables (2017), Bentur data
        ({"kept": 1, "gained": 1, "lost": 7, "n": 21}, -0.507, -0.026),
        # Newcombe (1998), first example: 36, 12, 2, 0
        ({"kept": 36, "gained": 12, "lost": 2, "n": 50}, 0.0569, 0.3404),
    ],
)
def test_newcombe_interval_gives_published_values(table, low, high):
    interval = statistics.newcombe_interval(**table)
    assert interval == pytest.approx((low, high), abs=6e-4)


def test_newcombe_interval_turns_with_the_direction():
    forward = statistics.newcombe_interval(kept=20, gained=2, lost=9, n=50)
    backward = statistics.newcombe_interval(kept=20, gained=9, lost=2, n=50)
    assert forward == pytest.approx((-backward[1], -backward[0]))


def test_no_changed_row_is_not_certainty():
    change = statistics.paired_change([0] * 30, [0] * 30)
    assert (change.difference, change.p_value) == (0.0, 1.0)
    assert change.ci_low < -0.05 < 0.05 < change.ci_high


@pytest.mark.parametrize("size", [10, 30, 100])
def test_newcombe_interval_covers_the_true_difference(size):
    """Draw tables from known probabilities and count how often the interval holds the truth."""
    probabilities = {"kept": 0.15, "gained": 0.05, "lost": 0.3, "neither": 0.5}
    truth = probabilities["gained"] - probabilities["lost"]
    generator = np.random.default_rng(size)
    drawn = generator.multinomial(size, list(probabilities.values()), size=1000)
    tables, times_drawn = np.unique(drawn, axis=0, return_counts=True)
    covered = 0
    for (kept, gained, lost, _), times in zip(tables.tolist(), times_drawn.tolist(), strict=True):
        low, high = statistics.newcombe_interval(kept=kept, gained=gained, lost=lost, n=size)
        covered += times * (low <= truth <= high)
    assert 0.925 <= covered / len(drawn) <= 0.99


def test_pairing_narrows_the_interval_where_outcomes_agree():
    low, high = statistics.newcombe_interval(kept=50, gained=0, lost=5, n=100)
    before, after = statistics.wilson(55, 100), statistics.wilson(50, 100)
    unpaired = math.hypot(0.5 - after[0], before[1] - 0.55) + math.hypot(after[1] - 0.5, 0.55 - before[0])
    assert high - low < 0.5 * unpaired


def test_rows_unscored_on_either_side_are_left_out_of_both():
    change = statistics.paired_change([1, None, 1, 0], [0, 1, NAN, 0])
    assert (change.n, change.unscored, change.lost, change.gained) == (2, 2, 1, 0)
    assert change.difference == -0.5


def test_pairs_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="equal lengths"):
        statistics.paired_change([1, 0], [1])


def slow_family_mean(outcomes: np.ndarray, goals: list[int]) -> float:
    rates = []
    for family in outcomes:
        values = [family[goal] for goal in goals if not math.isnan(family[goal])]
        if values:
            rates.append(sum(values) / len(values))
    return sum(rates) / len(rates) if rates else NAN


@pytest.fixture
def outcomes() -> np.ndarray:
    generator = np.random.default_rng(0)
    values = (generator.random((4, 9)) < [[0.1], [0.5], [0.5], [0.9]]).astype(float)
    values[generator.random(values.shape) < 0.3] = NAN
    return values


def test_families_count_the_same_whatever_their_size():
    values = np.array([[1.0, 1, 1, 1], [0, NAN, NAN, NAN]])
    mean = statistics.family_mean(values)
    assert (mean.rate, mean.families, mean.goals, mean.n) == (0.5, 2, 4, 5)


def test_weighted_means_equal_writing_out_every_drawn_goal(outcomes):
    draws = statistics.draw_goals(9, resamples=60, seed=5)
    expected = [
        slow_family_mean(outcomes, [goal for goal, times in enumerate(row) for _ in range(int(times))])
        for row in draws
    ]
    np.testing.assert_allclose(statistics.weighted_family_means(outcomes, draws), expected)
    assert (draws.sum(axis=1) == 9).all()


def test_a_resample_without_any_observation_is_missing():
    values = np.array([[1.0, NAN]])
    means = statistics.weighted_family_means(values, np.array([[0.0, 2.0], [2.0, 0.0]]))
    assert math.isnan(means[0])
    assert means[1] == 1.0


def test_one_family_of_independent_goals_gets_the_exact_interval():
    """Then goals are rows, and Korn and Graubard's interval must come close to Clopper and Pearson's."""
    values = np.array([[1.0] * 30 + [0.0] * 70])
    mean = statistics.family_mean(values, resamples=20000)
    exact = stats.binomtest(30, 100).proportion_ci(method="exact")
    assert (mean.ci_low, mean.ci_high) == pytest.approx((exact.low, exact.high), abs=3e-3)


def test_copies_of_a_family_add_no_certainty():
    one = (np.random.default_rng(1).random((1, 50)) < 0.3).astype(float)
    single = statistics.family_mean(one)
    copied = statistics.family_mean(np.repeat(one, 8, axis=0))
    assert copied.ci_high - copied.ci_low == pytest.approx(single.ci_high - single.ci_low, rel=0.05)
    assert copied.effective_n < 60
    assert copied.n == 400


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_unanimous_outcomes_claim_no_more_than_their_goals(value):
    mean = statistics.family_mean(np.full((11, 40), value))
    exact = stats.binomtest(int(value * 40), 40).proportion_ci(method="exact")
    assert mean.rate == value
    assert mean.ci_high - mean.ci_low >= (exact.high - exact.low) * 0.999
    assert mean.ci_high - mean.ci_low < 0.12


@pytest.mark.parametrize("base_rate", [0.03, 0.3])
def test_interval_of_the_family_mean_covers_where_treating_rows_as_independent_does_not(base_rate):
    """Families fall together on the same goals: a shared hidden difficulty makes up half of each outcome."""
    generator = np.random.default_rng(0)
    cut, num_runs, covered, naive = stats.norm.ppf(base_rate), 200, 0, 0
    for run in range(num_runs):
        hidden = (generator.normal(size=(1, 60)) + generator.normal(size=(8, 60))) / math.sqrt(2)
        values = (hidden < cut).astype(float)
        mean = statistics.family_mean(values, resamples=300, seed=run)
        covered += mean.ci_low <= base_rate <= mean.ci_high
        low, high = statistics.wilson(int(values.sum()), values.size)
        naive += low <= base_rate <= high
    assert covered / num_runs >= 0.9
    assert naive / num_runs < 0.87


@pytest.mark.parametrize(("falls", "stray"), [(0.04, 0.002), (0.02, 0.01), (0.06, 0.0), (0.0, 0.002)])
def test_goals_that_fall_in_every_family_are_allowed_for_though_none_was_drawn(falls, stray):
    """A few goals fall wholly, the rest here and there: 30 goals often hold none of the former."""
    generator = np.random.default_rng(1)
    truth, num_runs, covered = falls + (1 - falls) * stray, 200, 0
    for run in range(num_runs):
        wholly = generator.random((1, 30)) < falls
        values = (wholly | (generator.random((12, 30)) < stray)).astype(float)
        mean = statistics.family_mean(values, resamples=300, seed=run)
        covered += mean.ci_low <= truth <= mean.ci_high
    assert covered / num_runs >= 0.9


def test_one_event_is_not_surer_than_none_by_far():
    values = np.zeros((14, 30))
    none = statistics.family_mean(values)
    values[3, 7] = 1
    one = statistics.family_mean(values)
    values[5, 9] = values[8, 20] = 1
    three = statistics.family_mean(values)
    assert 0.5 * none.ci_high < three.ci_high < one.ci_high < none.ci_high
    assert none.effective_n == 30 < one.effective_n < three.effective_n < 14 * 30


def test_the_rate_of_a_family_is_that_of_its_rows_however_often_a_goal_was_asked():
    generator = np.random.default_rng(4)
    values = (generator.random((1, 20, 5)) < 0.6).astype(float)
    values[generator.random(values.shape) < 0.3] = NAN
    mean, rows = statistics.family_mean(values), statistics.rate_of(values.ravel())
    assert (mean.rate, mean.n, mean.goals) == (pytest.approx(rows.rate), rows.n, 20)


def test_wordings_that_are_answered_alike_add_no_certainty():
    one = (np.random.default_rng(1).random((1, 50)) < 0.3).astype(float)
    single = statistics.family_mean(one)
    worded = statistics.family_mean(np.repeat(one[..., np.newaxis], 8, axis=2))
    assert worded.rate == pytest.approx(single.rate)
    assert worded.ci_high - worded.ci_low == pytest.approx(single.ci_high - single.ci_low, rel=0.05)
    assert (worded.n, worded.goals) == (400, 50)


def test_one_row_a_goal_is_the_same_with_an_axis_of_wordings(outcomes):
    assert statistics.family_mean(outcomes[..., np.newaxis]) == statistics.family_mean(outcomes)


@pytest.mark.parametrize("num_families", [3, 6, 7, 10])
def test_families_that_are_all_or_nothing_claim_no_more_than_their_goals(num_families):
    """Their mean varies by rounding alone, whatever the share of families that fall."""
    for fallen in range(num_families + 1):
        values = np.zeros((num_families, 30))
        values[:fallen] = 1
        assert statistics.family_mean(values).effective_n == 30


def test_missing_families_and_goals_are_not_counted():
    values = np.array([[1.0, NAN, 0.0], [NAN, NAN, NAN]])
    mean = statistics.family_mean(values)
    assert (mean.families, mean.goals, mean.n, mean.rate) == (1, 2, 2, 0.5)
    nothing = statistics.family_mean(np.full((2, 3), NAN))
    assert (nothing.n, nothing.ci_low, nothing.ci_high) == (0, 0.0, 1.0)


def test_few_goals_are_paid_for():
    """Two of five goals in 20 families are less sure than two of five rows: their variance is a guess too."""
    mean = statistics.family_mean(np.repeat([[1.0, 1, 0, 0, 0]], 20, axis=0))
    exact = stats.binomtest(2, 5).proportion_ci(method="exact")
    assert mean.ci_low < exact.low - 0.01
    assert mean.ci_high > exact.high + 0.01


def test_no_more_outcomes_are_claimed_than_were_seen():
    """Families far apart make the mean vary less than rows drawn from their mixture would."""
    values = (np.random.default_rng(0).random((2, 60)) < [[0.02], [0.98]]).astype(float)
    assert 110 < statistics.family_mean(values).effective_n <= 120


def test_a_single_goal_says_nearly_nothing():
    mean = statistics.family_mean(np.ones((10, 1)))
    assert mean.ci_low < 0.05


def test_family_mean_repeats_with_its_seed(outcomes):
    assert statistics.family_mean(outcomes, seed=1) == statistics.family_mean(outcomes, seed=1)
    assert statistics.family_mean(outcomes, seed=1) != statistics.family_mean(outcomes, seed=2)


def test_adjusted_p_values_follow_benjamini_and_hochberg():
    p_values = [0.01, 0.8, 0.03, 0.02, 0.5]
    ascending = sorted(p_values)
    expected = {
        p: min(1.0, *(q * len(p_values) / (rank + 1) for rank, q in enumerate(ascending) if q >= p))
        for p in p_values
    }
    assert statistics.adjusted_p_values(p_values) == pytest.approx([expected[p] for p in p_values])
    assert statistics.adjusted_p_values([]) == []
