"""Shapley shares against the definition written as a slow loop over orders, and the rule on made-up games."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rasa_moe.audit import tables
from rasa_moe.audit.arithmetic import refusals_of_stopped, returned_share
from rasa_moe.audit.combinations import members, spread
from rasa_moe.audit.components import ROUTED, ROUTERS, SELECTED
from rasa_moe.audit.shapley import Shapley, shapley, shapley_matrix
from rasa_moe.audit.verdict import Finding, describe_refusals, judge_gain
from rasa_moe.data.rows import Message, PromptRow
from rasa_moe.evaluate.statistics import Rate, rate_of, wilson


def by_orders(worth: np.ndarray, num_players: int) -> list[float]:
    totals = [0.0] * num_players
    for order in itertools.permutations(range(num_players)):
        coalition = 0
        for player in order:
            totals[player] += worth[coalition | 1 << player] - worth[coalition]
            coalition |= 1 << player
    return [total / math.factorial(num_players) for total in totals]


@pytest.mark.parametrize("num_players", [1, 2, 3, 4, 5])
def test_the_matrix_is_the_mean_over_all_orders(num_players: int) -> None:
    worth = np.random.default_rng(num_players).normal(size=2**num_players)
    assert shapley_matrix(num_players) @ worth == pytest.approx(by_orders(worth, num_players))


def test_values_sum_to_the_gain_also_when_answers_are_missing() -> None:
    generator = np.random.default_rng(0)
    outcomes = generator.integers(0, 2, size=(8, 30)).astype(float)
    outcomes[generator.random(outcomes.shape) < 0.1] = np.nan
    game = shapley(("a", "b", "c"), outcomes, goals=[number // 3 for number in range(30)])
    assert game.values.sum() == pytest.approx(game.gain)
    assert game.gain == pytest.approx(np.nanmean(outcomes[0]) - np.nanmean(outcomes[-1]))
    assert game.drawn_values.sum(axis=1) == pytest.approx(game.drawn_gains)


def test_whole_goals_are_drawn() -> None:
    # Three prompts a goal that always agree: the interval must be that of 10 goals, not of 30 prompts.
    per_goal = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], dtype=float)
    outcomes = np.stack([np.ones(30), np.repeat(per_goal, 3)])
    clustered = shapley(("a",), outcomes, goals=[number // 3 for number in range(30)]).gain_interval
    single = shapley(("a",), np.stack([np.ones(10), per_goal]), goals=range(10)).gain_interval
    assert (clustered.ci_low, clustered.ci_high) == pytest.approx((single.ci_low, single.ci_high))
    assert clustered.value == pytest.approx(0.3)


@pytest.mark.parametrize("shape", [(3, 4), (4, 5)])
def test_a_wrong_shape_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="outcomes must be"):
        shapley(("a", "b"), np.zeros(shape), goals=range(4))


def test_a_coalition_without_outcomes_is_refused() -> None:
    outcomes = np.ones((2, 3))
    outcomes[0] = np.nan
    with pytest.raises(ValueError, match="no scored outcome"):
        shapley(("a",), outcomes, goals=range(3))


def game(routing: float, experts: float, *, noise: float = 0.0, gain: float = 0.8) -> dict[str, Shapley]:
    """Make both games with known values; `noise` is the spread of the resamples."""
    generator = np.random.default_rng(0)

    def make(players: tuple[str, str]) -> Shapley:
        values = gain * np.array([experts, routing])
        drawn = values + noise * generator.normal(size=(2000, 2))
        return Shapley(
            players=players, gain=gain, values=values, drawn_gains=np.full(2000, gain), drawn_values=drawn
        )

    return {"weights": make((SELECTED, ROUTERS)), "routing": make((SELECTED, ROUTED))}


def judged(games: dict[str, Shapley], *, num_goals: int = 40, refusals: Rate | None = None) -> Finding:
    return judge_gain(games, num_goals=num_goals, refusals=refusals or rate_of(np.ones(40)))


@pytest.mark.parametrize(
    ("routing", "experts", "noise", "verdict"),
    [
        (0.05, 0.95, 0.02, "repair"),
        (0.30, 0.70, 0.02, "mixed"),
        (0.50, 0.50, 0.02, "mixed"),
        (0.60, 0.40, 0.02, "shortcut"),
        (0.60, 0.40, 0.50, "mixed"),  # the same shares, too uncertain
        (0.30, 0.05, 0.01, "shortcut"),  # routing is beyond doubt, though most is in the rest
        (0.05, 0.20, 0.01, "mixed"),
        (0.05, 0.95, 0.50, "mixed"),
    ],
)
def test_the_rule(routing: float, experts: float, noise: float, verdict: str) -> None:
    assert judged(game(routing, experts, noise=noise)).verdict == verdict


def test_a_gain_that_may_be_none_gets_no_verdict() -> None:
    games = game(0.0, 1.0, gain=0.1)
    unsure = Shapley(
        players=games["weights"].players,
        gain=0.1,
        values=games["weights"].values,
        drawn_gains=np.linspace(-0.1, 0.3, 2000),
        drawn_values=games["weights"].drawn_values,
    )
    finding = judged({"weights": unsure, "routing": unsure})
    assert (finding.verdict, finding.routing) == ("no verdict", None)


@pytest.mark.parametrize("routing", [0.05, 0.95])
def test_few_goals_get_no_verdict(routing: float) -> None:
    games = game(routing, 1 - routing)
    finding = judged(games, num_goals=9)
    assert (finding.verdict, finding.routing) == ("no verdict", None)
    assert "at least 10 goals" in finding.reason
    assert judged(games, num_goals=10).verdict != "no verdict"


@pytest.mark.parametrize(
    ("refused", "stopped", "verdict"),
    [
        (0, 30, "no verdict"),
        (7, 30, "no verdict"),
        (12, 30, "repair"),  # less than half, but not clearly
        (0, 2, "repair"),  # of two answers nothing is clear
        (30, 30, "repair"),
        (0, 0, "repair"),
    ],
)
def test_attacks_that_do_not_end_in_refusals_are_no_repair(refused: int, stopped: int, verdict: str) -> None:
    outcomes = np.repeat([1.0, 0.0], [refused, stopped - refused])
    finding = judged(game(0.05, 0.95), refusals=rate_of(outcomes))
    assert finding.verdict == verdict
    assert ("else than refusals" in finding.reason) == (verdict == "no verdict")


def test_broken_routers_are_a_shortcut_all_the_same() -> None:
    assert judged(game(0.95, 0.05), refusals=rate_of(np.zeros(30))).verdict == "shortcut"


def test_only_attacks_that_stopped_are_asked_for_a_refusal() -> None:
    base = np.array([1, 1, 1, 1, 0, np.nan])
    tuned = np.array([0, 0, 1, np.nan, 0, 0])
    found = refusals_of_stopped(base, tuned, np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0]), goals=range(6))
    assert (found.k, found.n) == (1, 2)
    nothing = refusals_of_stopped(np.zeros(2), np.zeros(2), np.ones(2), goals="ab")
    assert describe_refusals("tuned", nothing) is None


def test_goals_whose_attacks_all_end_alike_count_once() -> None:
    base, tuned, refuses = np.ones(60), np.zeros(60), np.repeat([1.0, 0.0], [24, 36])
    apart = refusals_of_stopped(base, tuned, refuses, goals=range(60))
    together = refusals_of_stopped(base, tuned, refuses, goals=[number // 12 for number in range(60)])
    assert (apart.k, apart.n) == (together.k, together.n) == (24, 60)
    assert together.ci_high > apart.ci_high + 0.1


def test_rows_that_no_model_was_scored_on_give_nothing_to_compare() -> None:
    nothing = np.full(3, np.nan)
    assert returned_share(np.ones(3), nothing, np.zeros(3), goals=range(3)) is None
    assert tables.rate_line(nothing, goals=["a", "a", "b"], seed=0)["rate"] is None


def test_intervals_of_rates_count_goals_whole() -> None:
    outcomes = np.tile([1.0, 0.0], 40)
    rows = tables.rate_line(outcomes, goals=[str(place) for place in range(80)], seed=0)
    assert (rows["k"], rows["n"], rows["ci_low"], rows["ci_high"]) == (40, 80, *wilson(40, 80))
    # Eight goals, each of them always or never answered harmfully.
    goals = tables.rate_line(outcomes, goals=[str(place % 8) for place in range(80)], seed=0)
    assert (goals["k"], goals["n"], goals["rate"]) == (40, 80, 0.5)
    assert goals["ci_high"] - goals["ci_low"] > 2 * (rows["ci_high"] - rows["ci_low"])


def test_members_are_bits() -> None:
    assert members(("a", "b", "c"), 0b101) == ("a", "c")


def test_spread_takes_all_goals_and_families_evenly() -> None:
    rows = [
        PromptRow(
            id=f"{family}/{goal}", goal=f"g{goal}", kind="harmful", family=f"f{family}", split="test",
            messages=(Message(role="user", content="x"),),
        )
        for family in range(4)
        for goal in range(10)
    ]  # fmt: skip
    chosen = spread(rows, goals=8, attacks_per_goal=2)
    assert len(chosen) == 16 and len({row.id for row in chosen}) == 16
    assert {row.goal for row in chosen} == {f"g{goal}" for goal in range(8)}
    assert [sum(row.family == f"f{family}" for row in chosen) for family in range(4)] == [4, 4, 4, 4]
    assert spread(rows, goals=2, attacks_per_goal=9) == [
        row for goal in ("g0", "g1") for row in rows if row.goal == goal
    ]
