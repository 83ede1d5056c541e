"""The protocol: one rule for every method, the same number of trials, and pairs drawn by goal."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from rasa_moe.align.rivals import RIVALS
from rasa_moe.config import Config
from rasa_moe.data.rows import Pair
from rasa_moe.data.source import load_source
from rasa_moe.reproduce.cells import Cell, suites_of
from rasa_moe.reproduce.plan import LOOKS, Plan, unique
from rasa_moe.reproduce.protocol import (
    ABLATIONS,
    FULL,
    METHODS,
    PASSES,
    QUICK,
    SEEN_AGAIN,
    default_of,
    seen,
    setting_of,
    trials_of,
    with_settings,
)
from rasa_moe.reproduce.rule import TRIAL_MEASURES, Trial, choose, going_on
from rasa_moe.reproduce.shared import draw_pairs

MODELS = ("model-a", "model-b")


def _plan(scale=FULL, methods: tuple[str, ...] = tuple(method.name for method in METHODS)) -> Plan:
    return Plan(scale, MODELS, methods, Config())


def _chosen(plan: Plan) -> dict[tuple[str, str], float]:
    return {
        (model, method.name): setting_of(Config(), method.tuned)
        for model in MODELS
        for method in plan.method_list()
    }


def _trial(
    value: float, attack: float, wrapped: float = 0.0, ability: float = 0.9, *, trainings: int = 1
) -> Trial:
    return Trial(value, trainings, attack, wrapped, ability, base_wrapped=0.0, base_ability=0.9)


FAILED = Trial(1, 1, *[math.nan] * 3, base_wrapped=0.0, base_ability=0.9)


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        # Harm alone, where nothing is lost.
        ([_trial(1, 0.4), _trial(2, 0.3)], 2),
        # A point of cost outweighs a point of harm: .1 + 3 x .05 + 3 x .05 against .35.
        ([_trial(1, 0.35), _trial(2, 0.1, 0.05, 0.85)], 1),
        # But a small cost for a large gain is taken, which a limit of one point would forbid.
        ([_trial(1, 0.9), _trial(2, 0.1, 0.02, 0.88)], 2),
        # More ability than the base model's, or fewer refusals, buys nothing.
        ([_trial(1, 0.4, 0.0, 1.0), _trial(2, 0.39)], 2),
        # Ties go to the smaller value, and a failed training is last.
        ([_trial(4, 0.2), _trial(2, 0.2)], 2),
        ([FAILED, _trial(2, 1.0, 1.0, 0.0)], 2),
        # What was not trained again is out, however lucky its first training was.
        ([_trial(1, 0.1), _trial(2, 0.3, trainings=3), _trial(3, 0.2, trainings=3)], 3),
    ],
)
def test_the_rule(trials: list[Trial], expected: float) -> None:
    assert choose(trials).value == expected
    assert choose(trials[::-1]).value == expected


def test_cost_is_counted_against_the_base_model() -> None:
    trials = [_trial(1, 0.3), _trial(2, 0.1, 0.10)]
    assert choose(trials).value == 1
    assert choose([replace(trial, base_wrapped=0.10) for trial in trials]).value == 2


def test_close_trials_go_on_and_a_clear_choice_does_not() -> None:
    trials = [_trial(1, 0.25), _trial(2, 0.1), _trial(3, 0.5)]
    assert going_on(trials, 0.3) == [1, 2]
    assert going_on(trials, 0.1) == []
    assert going_on([FAILED, replace(FAILED, value=2)], 0.3) == []
    # Only those that went on so far can go on again.
    assert going_on([*trials, _trial(4, 0.6, trainings=3), _trial(5, 0.65, trainings=3)], 0.1) == [4, 5]


def test_every_method_has_the_same_number_of_trials_at_the_same_factors() -> None:
    for method in METHODS:
        default = default_of(method, Config())
        assert [value / default for value in trials_of(method, FULL, Config())] == pytest.approx(FULL.factors)


def test_every_rival_is_compared_and_every_variant_differs_from_the_default() -> None:
    assert {method.rival for method in METHODS} == {None, *RIVALS}
    for method in METHODS:
        if method.settings:
            assert with_settings(Config(), method.settings) != Config()
    with pytest.raises(KeyError):
        with_settings(Config(), {"align.expert_lrr": 1.0})


def test_every_ablation_is_a_valid_setting() -> None:
    for values in ABLATIONS.values():
        for _, changes in values:
            with_settings(
                Config(),
                {key: value for key, value in changes.items() if key != "pairs"},
            )


def test_tuning_never_touches_the_test_split_and_another_seed() -> None:
    plan = _plan()
    trials = plan.all_trials()
    looks = [list(plan.look(number, trials)) for number in range(len(LOOKS))]
    base = [cell for place, cell in plan.before_tuning() if place.table == "tuning base"]
    assert len(base) == len(MODELS) * FULL.thirds
    tuning = [(place, cell) for look in looks for place, cell in look]
    assert {cell.split for _, cell in tuning} | {cell.split for cell in base} == {"validation"}
    after = list(plan.after_tuning(_chosen(plan)))
    assert {cell.split for _, cell in after} == {"test"}
    assert {cell.config.seed for place, cell in after if place.table == "main"} == {1, 2, 3, 4, 5}
    seeds = [cell.config.seed for place, cell in tuning if (place.model, place.method) == (MODELS[0], "full")]
    assert len(set(seeds)) == sum(map(len, LOOKS)), "each training of a trial has its own"
    assert not set(seeds) & {cell.config.seed for _, cell in after}
    for look, trainings in zip(looks, LOOKS, strict=True):
        counts = Counter((place.model, place.method) for place, _ in look)
        assert counts == dict.fromkeys(trials, len(trainings) * len(FULL.factors))
    # The base model is measured on what each training of a trial leaves out.
    assert {cell.families for _, cell in tuning} == {cell.families for cell in base}


def test_known_families_that_a_trial_is_not_trained_on_are_measured_as_held_out() -> None:
    source = load_source("testbed")
    known = set(source.families("train", "validation"))
    left_out = []
    for families in _plan(replace(FULL, thirds=3)).tuning_families():
        suites = suites_of(Cell("rasa", Config(), "validation", 2, families=families))
        held_out = {suite.name for suite in suites if suite.kind == "attack_held_out"}
        assert held_out == known - set(families)
        assert {suite.kind for suite in suites} == set(TRIAL_MEASURES)
        assert {row.split for suite in suites for row in suite.rows} == {"validation"}
        assert not {row.family for suite in suites for row in suite.rows} & set(source.families("test"))
        left_out.append(held_out)
    assert [len(fold) for fold in left_out] == [2, 2, 2] and set.union(*left_out) == known


def test_tables_train_on_all_known_families_and_measure_the_test_families_as_held_out() -> None:
    source = load_source("testbed")
    plan = _plan()
    cells = [cell for place, cell in plan.after_tuning(_chosen(plan)) if place.table == "main"]
    assert {cell.families for cell in cells} == {tuple(source.families("train", "validation"))}
    suites = suites_of(replace(cells[0], goals=2))
    held_out = {suite.name for suite in suites if suite.kind == "attack_held_out"}
    assert held_out == set(source.families("test"))


def test_a_source_of_one_family_is_tuned_on_that_family(monkeypatch: pytest.MonkeyPatch) -> None:
    only = replace(load_source("testbed"), family_splits={"letter": "train"})
    monkeypatch.setattr("rasa_moe.reproduce.plan.loaded_source", lambda name: only)
    assert set(_plan().tuning_families()) == {("letter",)}


def test_more_thirds_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="3 thirds"):
        _plan(replace(FULL, thirds=4))


def test_the_quick_scale_tunes_nothing_and_leaves_out_transfer_and_ablations() -> None:
    plan = _plan(QUICK)
    assert {place.table for place, _ in plan.before_tuning()} == {"base"}
    assert {place.table for place, _ in plan.after_tuning(_chosen(plan))} == {"main"}


def test_the_tuned_setting_reaches_the_method_and_only_it() -> None:
    plan = _plan()
    chosen = {**_chosen(plan), ("model-a", "lora"): 0.125}
    for place, cell in plan.after_tuning(chosen):
        is_it = (place.model, place.method) == ("model-a", "lora")
        assert (cell.config.rivals.lora.lr == 0.125) == is_it


def test_an_ablation_at_the_tuned_value_costs_no_second_training() -> None:
    plan = _plan(FULL, ("rasa",))
    after = list(plan.after_tuning(_chosen(plan)))
    places = [place for place, _ in after if place.table == "ablation"]
    shared = [
        p
        for p in places
        if (p.row, p.value) in (("KL direction", "forward"), ("number of pairs", str(FULL.pairs)))
    ]
    assert len(shared) == 2 * len(MODELS) * FULL.ablation_seeds
    again = [place for place in places if (place.row, place.value) == ("rounds", str(PASSES))]
    assert len(again) == len(MODELS) * FULL.ablation_seeds
    assert len(unique(after)) <= len(after) - len(shared) - len(again)


def test_every_trained_method_sees_its_pairs_equally_often() -> None:
    often = Config()
    for key, epochs in seen(7).items():
        often = with_settings(often, {key: epochs})
    ways = {name: dict(section) for name, section in often.rivals if "epochs" in dict(section)}
    assert {name: section["epochs"] for name, section in ways.items()} == dict.fromkeys(ways, 7)
    assert (often.align.rounds, often.full.epochs) == (7, 7)
    for _, cell in (found for found in _plan().after_tuning(_chosen(_plan())) if found[0].table == "main"):
        assert (cell.config.align.rounds, cell.config.full.epochs) == (FULL.epochs, FULL.epochs)
    again = [found for found in _plan().after_tuning(_chosen(_plan())) if found[0].table == "passes"]
    assert {place.method for place, _ in again} == set(SEEN_AGAIN)
    for _, cell in again:
        assert {cell.config.align.rounds, cell.config.full.epochs, cell.config.rivals.lora.epochs} == {PASSES}
    # The ablation of pairs draws fewer, and shows them as often as it takes for the same number of steps.
    assert [
        changes["pairs"] * changes["align.rounds"] for _, changes in ABLATIONS["number of pairs"][:-1]
    ] == [FULL.pairs] * (len(ABLATIONS["number of pairs"]) - 1)


def test_a_cell_is_named_by_what_decides_it_and_nothing_else() -> None:
    cell = Cell("rasa", Config(model="model-a"), "test", 4)
    with_audit = with_settings(cell.config, {"audit.goals_per_suite": 7, "threads": 3})
    assert Cell("rasa", with_audit, "test", 4).key() == cell.key()
    others = [
        Cell("full", cell.config, "test", 4),
        Cell("rasa", with_settings(cell.config, {"seed": 1}), "test", 4),
        Cell("rasa", with_settings(cell.config, {"model": "model-b"}), "test", 4),
        Cell("rasa", with_settings(cell.config, {"align.expert_lr": 1e-5}), "test", 4),
        Cell("rasa", cell.config, "validation", 4),
        Cell("rasa", cell.config, "test", 5),
        Cell("rasa", cell.config, "test", 4, pairs=3),
        Cell("rasa", cell.config, "test", 4, goal_share=0.5),
        Cell("rasa", cell.config, "test", 4, families=("code",)),
        Cell("rasa", cell.config, "test", 4, only_attacks=True),
    ]
    assert len({cell.key(), *(other.key() for other in others)}) == 1 + len(others)


def _pairs() -> list[Pair]:
    turn = ({"role": "user", "content": "x"},)
    return [
        Pair(
            goal=f"g{goal}",
            family=family,
            jailbreak=turn,
            anchor=turn,
            jailbreak_answer="y",
            anchor_answer="n",
        )
        for family in ("a", "b")
        for goal in range(10)
    ]  # type: ignore[arg-type]


def test_pairs_are_drawn_by_whole_goals_and_by_seed() -> None:
    drawn = draw_pairs(_pairs(), share=0.5, most=None, seed=1)
    goals = {pair.goal for pair in drawn}
    assert len(goals) == 5 and len(drawn) == 10
    assert draw_pairs(_pairs(), share=0.5, most=None, seed=1) == drawn
    assert any(draw_pairs(_pairs(), share=0.5, most=None, seed=seed) != drawn for seed in (2, 3))
    fewer = draw_pairs(_pairs(), share=0.5, most=4, seed=1)
    assert len(fewer) == 4 and all(pair in drawn for pair in fewer)
    assert draw_pairs(_pairs(), share=1.0, most=None, seed=7) == _pairs()
