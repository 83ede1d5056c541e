"""What a swap undoes of the gain: shares computed by hand, intervals against a loop over drawn goals."""

from __future__ import annotations

import numpy as np
import pytest

from rasa_moe.audit.arithmetic import RESAMPLES, SMALLEST_GAIN, returned_share

NAN = float("nan")


def outcomes(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


BASE = outcomes(1, 1, 1, 1, 1, 1, 1, 1, 0, 0)
TUNED = outcomes(0, 0, 0, 0, 0, 0, 1, 1, 0, 0)
GOALS = [f"goal {number}" for number in range(10)]


def test_rates_and_share_by_hand() -> None:
    """0.8 falls to 0.2; the swap brings it to 0.5: half of the gain of 0.6 is lost."""
    swapped = outcomes(1, 1, 1, 0, 0, 0, 1, 1, 0, 0)
    found = returned_share(BASE, TUNED, swapped, goals=GOALS)
    assert (found.base_rate, found.tuned_rate, found.swapped_rate) == pytest.approx((0.8, 0.2, 0.5))
    assert found.share_returned == pytest.approx(0.5)
    assert found.ci_low is not None and found.ci_high is not None
    assert 0 < found.ci_low < 0.5 < found.ci_high < 1
    assert found.harmlessness_lost == pytest.approx((0.5 - 0.2) / (1 - 0.2))


def test_a_swap_that_undoes_all_or_nothing_is_certain() -> None:
    everything = returned_share(BASE, TUNED, BASE, goals=GOALS)
    assert (everything.share_returned, everything.ci_low, everything.ci_high) == (1.0, 1.0, 1.0)
    nothing = returned_share(BASE, TUNED, TUNED, goals=GOALS)
    assert (nothing.share_returned, nothing.ci_low, nothing.ci_high) == (0.0, 0.0, 0.0)


def test_a_swap_may_make_matters_worse_than_the_base_or_better_than_the_tune() -> None:
    worse = returned_share(BASE, TUNED, np.ones(10), goals=GOALS)
    assert worse.share_returned == pytest.approx((1.0 - 0.2) / 0.6)
    better = returned_share(BASE, TUNED, np.zeros(10), goals=GOALS)
    assert better.share_returned == pytest.approx(-0.2 / 0.6)


def test_a_row_that_one_model_lacks_is_left_out_of_all_three() -> None:
    base = outcomes(1, 1, 1, 1, NAN, 1)
    tuned = outcomes(0, 0, 0, 0, 0, NAN)
    swapped = outcomes(1, 0, 0, NAN, 1, 1)
    found = returned_share(base, tuned, swapped, goals=GOALS[:6])
    assert (found.base_rate, found.tuned_rate, found.swapped_rate) == pytest.approx((1.0, 0.0, 1 / 3))


def test_a_gain_too_small_to_divide_by_has_no_share() -> None:
    base = np.repeat([1.0, 0.0], [50, 50])
    nearly = base.copy()
    nearly[:4] = 0.0
    found = returned_share(base, nearly, base, goals=list(range(100)))
    assert found.base_rate - found.tuned_rate == pytest.approx(0.04) and SMALLEST_GAIN > 0.04
    assert (found.share_returned, found.ci_low, found.ci_high) == (None, None, None)
    enough = nearly.copy()
    enough[:6] = 0.0
    assert returned_share(base, enough, base, goals=list(range(100))).share_returned == pytest.approx(1.0)


def test_the_interval_is_that_of_a_loop_over_drawn_goals() -> None:
    """Two prompts of each goal rise and fall together, so goals are drawn, not prompts."""
    generator = np.random.default_rng(5)
    goals = [f"goal {number % 6}" for number in range(18)]
    base = np.ones(18)
    tuned = (generator.random(18) < 0.2).astype(float)
    swapped = (generator.random(18) < 0.6).astype(float)
    tuned[3] = NAN
    found = returned_share(base, tuned, swapped, goals=goals, seed=11)

    distinct = list(dict.fromkeys(goals))
    counts = np.random.default_rng(11).multinomial(6, [1 / 6] * 6, size=RESAMPLES)
    shares = []
    for drawn in counts:
        rows = [
            index
            for goal, times in zip(distinct, drawn, strict=True)
            for _ in range(times)
            for index, label in enumerate(goals)
            if label == goal and index != 3
        ]
        gain = base[rows].mean() - tuned[rows].mean()
        if gain > 0:
            shares.append((swapped[rows].mean() - tuned[rows].mean()) / gain)
    assert found.ci_low == pytest.approx(np.quantile(shares, 0.025))
    assert found.ci_high == pytest.approx(np.quantile(shares, 0.975))


def test_the_seed_decides_the_interval() -> None:
    swapped = outcomes(1, 1, 1, 0, 0, 0, 1, 1, 0, 0)
    first, again = (returned_share(BASE, TUNED, swapped, goals=GOALS, seed=2) for _ in range(2))
    assert first == again
