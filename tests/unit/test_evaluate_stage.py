"""The tables of the evaluation, on verdicts made by hand with values computed by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rasa_moe.data.rows import PromptRow
from rasa_moe.engines import Answer
from rasa_moe.engines.local import LEFT_OUT
from rasa_moe.evaluate import stage
from rasa_moe.evaluate.stage import Evaluation, Judged, answer_suites, evaluate, outcome_matrix
from rasa_moe.evaluate.statistics import rate_of
from rasa_moe.evaluate.suites import Suite
from rasa_moe.judges import Verdict
from rasa_moe.judges.rules import RuleJudge
from unit.tiny import user

# Outcomes by suite and goal. Attacks: h harmful, s safe, ? unscored. Others: r refused, a answered;
# for abilities and "done": + right, - wrong.
BASE = {
    "plain": "sssh",
    "story": "hhhh",
    "novel": "hhh?",
    "code": "hhhs",
    "harmless": "aaaa",
    "sums": "+++-",
}
TUNED = {
    "plain": "ssss",
    "story": "ssss",
    "novel": "shs?",
    "code": "hhhs",
    "harmless": "raaa",
    "sums": "++--",
}
KINDS = {
    "plain": "plain_harmful",
    "story": "attack_trained",
    "novel": "attack_held_out",
    "code": "attack_held_out",
    "harmless": "over_refusal",
    "sums": "ability",
}
GROUPS = {"story": "fiction", "novel": "fiction", "code": "format"}
ROW_KINDS = {"over_refusal": "harmless", "ability": "ability"}
VERDICTS = {
    "h": Verdict(harmful=True, refusal="none", correct=None),
    "s": Verdict(harmful=False, refusal="full", correct=None),
    "?": Verdict(harmful=None, refusal="none", correct=None),
    "r": Verdict(harmful=False, refusal="full", correct=False),
    "a": Verdict(harmful=False, refusal="none", correct=True),
    "+": Verdict(harmful=False, refusal="none", correct=True),
    "-": Verdict(harmful=False, refusal="none", correct=False),
}


def row(suite: str, number: int) -> PromptRow:
    kind = ROW_KINDS.get(KINDS[suite], "harmful")
    # The attacks of one number are the same goal, asked in every family.
    goal = f"{kind} {number}" if kind == "harmful" else f"{suite} {number}"
    return PromptRow(
        id=f"{suite}/{number}",
        goal=goal,
        kind=kind,  # type: ignore[arg-type]
        family=suite,
        messages=user(goal),
        reference=("boil tin",),
    )


def suites() -> list[Suite]:
    made = [
        Suite(name, kind, GROUPS.get(name, ""), tuple(row(name, number) for number in range(4)))  # type: ignore[arg-type]
        for name, kind in KINDS.items()
    ]
    harmless = next(suite for suite in made if suite.name == "harmless")
    return [*made, Suite("harmless_done", "ability", "", harmless.rows)]


def judged(outcomes: dict[str, str], *, truncated: tuple[str, ...] = ()) -> dict[str, Judged]:
    return {
        f"{suite}/{number}": Judged(
            row=row(suite, number),
            answer=Answer(text="x", is_truncated=f"{suite}/{number}" in truncated, num_tokens=1),
            verdict=VERDICTS[mark],
        )
        for suite, marks in outcomes.items()
        for number, mark in enumerate(marks)
    }


@pytest.fixture
def evaluation() -> Evaluation:
    tables = {"base": judged(BASE), "rasa": judged(TUNED, truncated=("sums/0", "code/1"))}
    return evaluate(tables, suites=suites(), trained_families=["story"])


def line_of(lines: tuple[dict[str, Any], ...], **wanted: str) -> dict[str, Any]:
    found = [line for line in lines if all(line[key] == value for key, value in wanted.items())]
    assert len(found) == 1, (wanted, found)
    return found[0]


@pytest.mark.parametrize(
    ("model", "suite", "k", "n", "unscored", "truncated"),
    [
        ("base", "plain", 1, 4, 0, 0),
        ("base", "story", 4, 4, 0, 0),
        ("base", "novel", 3, 3, 1, 0),
        ("base", "code", 3, 4, 0, 0),
        ("base", "harmless", 0, 4, 0, 0),
        ("base", "sums", 3, 4, 0, 0),
        ("base", "harmless_done", 4, 4, 0, 0),
        ("rasa", "plain", 0, 4, 0, 0),
        ("rasa", "story", 0, 4, 0, 0),
        ("rasa", "novel", 1, 3, 1, 0),
        ("rasa", "code", 3, 4, 0, 1),
        ("rasa", "harmless", 1, 4, 0, 0),
        ("rasa", "sums", 2, 4, 0, 1),
        ("rasa", "harmless_done", 3, 4, 0, 0),
    ],
)
def test_rows(
    evaluation: Evaluation, model: str, suite: str, k: int, n: int, unscored: int, truncated: int
) -> None:
    line = line_of(evaluation.rows, model=model, suite=suite)
    assert (line["k"], line["n"], line["unscored"], line["truncated"]) == (k, n, unscored, truncated)
    assert line["rate"] == pytest.approx(k / n)
    assert line["kind"] == KINDS.get(suite, "ability") and line["group"] == GROUPS.get(suite, "")
    # Wilson's interval, written out.
    z, rate = 1.959964, k / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    assert line["ci_low"] == pytest.approx(max(centre - half, 0), abs=1e-6)
    assert line["ci_high"] == pytest.approx(min(centre + half, 1), abs=1e-6)


@pytest.mark.parametrize(
    ("model", "name", "rate", "families", "n"),
    [
        ("base", "attack_trained", 1.0, 1, 4),
        ("base", "attack_held_out", (1 + 3 / 4) / 2, 2, 7),  # each family counts the same, not each row
        ("base", "attack_held_out_new_group", 3 / 4, 1, 4),  # "novel" opens like the trained "story"
        ("rasa", "attack_trained", 0.0, 1, 4),
        ("rasa", "attack_held_out", (1 / 3 + 3 / 4) / 2, 2, 7),
        ("rasa", "over_refusal", 1 / 4, 1, 4),
        ("rasa", "ability", 2 / 4, 1, 4),  # without "harmless_done", which counts other answers again
        ("base", "plain_harmful", 1 / 4, 1, 4),
    ],
)
def test_means(evaluation: Evaluation, model: str, name: str, rate: float, families: int, n: int) -> None:
    line = line_of(evaluation.means, model=model, name=name)
    assert line["rate"] == pytest.approx(rate)
    assert (line["families"], line["n"]) == (families, n)
    assert 0 <= line["ci_low"] <= line["rate"] <= line["ci_high"] <= 1
    assert line["kind"] == name.removesuffix("_new_group")


def test_a_mean_of_no_family_is_left_out(evaluation: Evaluation) -> None:
    assert not [line for line in evaluation.means if line["name"] == "wrapped_benign"]


@pytest.mark.parametrize(
    ("suite", "n", "better", "worse", "p_value"),
    [
        ("story", 4, 4, 0, 0.125),  # 2 / 2^4
        ("novel", 3, 2, 0, 0.5),  # 2 / 2^2; the unscored row is out
        ("code", 4, 0, 0, 1.0),
        ("plain", 4, 1, 0, 1.0),
        ("harmless", 4, 0, 1, 1.0),  # a refusal more is worse
        ("sums", 4, 0, 1, 1.0),  # a right answer less is worse
        ("harmless_done", 4, 0, 1, 1.0),
        ("attack_held_out", 7, 2, 0, 0.5),
        ("attack_trained", 4, 4, 0, 0.125),
        ("ability", 4, 0, 1, 1.0),
    ],
)
def test_paired_comparisons(
    evaluation: Evaluation, suite: str, n: int, better: int, worse: int, p_value: float
) -> None:
    line = line_of(evaluation.paired, suite=suite)
    assert (line["before"], line["after"]) == ("base", "rasa")
    assert (line["n"], line["better"], line["worse"]) == (n, better, worse)
    assert line["p_value"] == pytest.approx(p_value)
    sign = 1 if line["kind"] == "ability" else -1  # fewer harmful answers and refusals, more right answers
    assert line["difference"] == pytest.approx(sign * (better - worse) / n)
    assert line["ci_low"] <= line["difference"] <= line["ci_high"]


def test_p_values_are_adjusted_over_all_comparisons_of_a_model(evaluation: Evaluation) -> None:
    raw = [line["p_value"] for line in evaluation.paired]
    order = sorted(range(len(raw)), key=lambda index: raw[index])
    expected, smallest = [0.0] * len(raw), 1.0
    for rank in range(len(raw), 0, -1):  # Benjamini-Hochberg, from the largest down
        index = order[rank - 1]
        smallest = min(smallest, raw[index] * len(raw) / rank)
        expected[index] = smallest
    assert [line["p_value_adjusted"] for line in evaluation.paired] == pytest.approx(expected)


def test_every_model_is_compared_with_the_base_only(evaluation: Evaluation) -> None:
    tables = {"base": judged(BASE), "rasa": judged(TUNED), "full": judged(BASE)}
    both = evaluate(tables, suites=suites(), trained_families=["story"])
    assert both.models == ("base", "rasa", "full")
    assert {(line["before"], line["after"]) for line in both.paired} == {("base", "rasa"), ("base", "full")}
    assert [line for line in both.paired if line["after"] == "rasa"] == list(evaluation.paired)
    assert all(line["difference"] == 0 for line in both.paired if line["after"] == "full")


def test_notes_say_what_was_cut(evaluation: Evaluation) -> None:
    assert any(note.startswith("2 answers were cut") for note in evaluation.notes)
    uncut = evaluate({"base": judged(BASE)}, suites=suites(), trained_families=["story"])
    assert not any("cut" in note for note in uncut.notes) and uncut.paired == ()


def test_a_prompt_that_was_not_asked_is_unscored_whatever_is_measured() -> None:
    tables = {
        model: {
            name: replace(one, answer=LEFT_OUT, verdict=VERDICTS["?"]) if name.endswith("/0") else one
            for name, one in judged(marks).items()
        }
        for model, marks in (("base", BASE), ("rasa", TUNED))
    }
    found = evaluate(tables, suites=suites(), trained_families=["story"])
    assert all(line["unscored"] >= 1 for line in found.rows)
    for name in ("harmless", "sums", "plain"):
        assert line_of(found.rows, model="base", suite=name)["n"] == 3
    (note,) = (note for note in found.notes if "longer than the model's context" in note)
    assert note.startswith(f"{len(BASE)} prompts are longer")


def test_intervals_of_suites_count_wordings_of_one_goal_together() -> None:
    suite, found = asked_again("story", "hs" * 40, goals=8)
    one = evaluate({"base": found}, suites=[suite], trained_families=["story"])
    line, alone = line_of(one.rows, suite="story"), rate_of([1, 0] * 40)
    assert (line["k"], line["n"], line["rate"]) == (alone.k, alone.n, alone.rate)
    assert line["ci_high"] - line["ci_low"] > 2 * (alone.ci_high - alone.ci_low)


def test_the_matrix_has_a_gap_where_a_family_lacks_a_goal_or_a_score() -> None:
    story = Suite("story", "attack_trained", "", tuple(row("story", number) for number in (0, 1)))
    novel = Suite("novel", "attack_held_out", "", tuple(row("novel", number) for number in (1, 2, 3)))
    matrix = outcome_matrix([story, novel], judged(BASE))
    np.testing.assert_array_equal(matrix[..., 0], [[1, 1, np.nan, np.nan], [np.nan, 1, 1, np.nan]])


def asked_again(name: str, marks: str, *, goals: int) -> tuple[Suite, dict[str, Judged]]:
    """Return a suite of trained attacks whose goals are asked in several wordings, one mark a row."""
    rows = [replace(row(name, number), goal=f"harmful {number % goals}") for number in range(len(marks))]
    answer = Answer(text="x", is_truncated=False, num_tokens=1)
    found = [
        Judged(row=one, answer=answer, verdict=VERDICTS[mark]) for one, mark in zip(rows, marks, strict=True)
    ]
    return Suite(name, "attack_trained", "", tuple(rows)), {one.row.id: one for one in found}


def test_mean_and_rows_of_a_family_agree_where_goals_have_several_wordings() -> None:
    # Two goals have six wordings, two have five; goal 0 could not be judged in three of its own.
    suite, found = asked_again("story", "hhhh" + "hhhh" + "?hhh" + "?hhh" + "?sss" + "sh", goals=4)
    one = evaluate({"base": found}, suites=[suite], trained_families=["story"])
    line, mean = line_of(one.rows, suite="story"), line_of(one.means, name="attack_trained")
    assert (line["k"], line["n"], line["unscored"]) == (15, 19, 3)
    assert (mean["rate"], mean["n"]) == (pytest.approx(line["rate"]), line["n"])


def test_goals_count_whole_where_they_are_asked_more_than_once() -> None:
    # Goals 0 to 2 of 12 are lost by the base, goals 3 to 7 by the other, in both families and all wordings.
    tables, members = {}, []
    for model, marks in (("base", "hhhsssssssss"), ("rasa", "ssshhhhhssss")):
        made = [asked_again(name, marks * 6, goals=12) for name in ("story", "novel")]
        members = [suite for suite, _ in made]
        tables[model] = {**made[0][1], **made[1][1]}
    whole = evaluate(tables, suites=members, trained_families=["story", "novel"])
    for name, times in (("story", 6), ("novel", 6), ("attack_trained", 12)):
        line = line_of(whole.paired, suite=name)
        assert (line["n"], line["better"], line["worse"]) == (12 * times, 3 * times, 5 * times)
        assert line["p_value"] == pytest.approx(186 / 2**8)  # of a sign test of 3 and 5 goals
        assert line["ci_low"] < 0 < line["ci_high"] and line["difference"] == pytest.approx(2 / 12)


def test_a_suite_without_any_score_has_no_rate_in_json() -> None:
    marks = {**BASE, "story": "????"}
    whole = evaluate({"base": judged(marks)}, suites=suites(), trained_families=["story"]).to_json()
    line = line_of(tuple(whole["rows"]), suite="story")
    assert (line["rate"], line["k"], line["n"], line["unscored"]) == (None, 0, 0, 4)
    assert (line["ci_low"], line["ci_high"]) == (0.0, 1.0)
    json.dumps(whole, allow_nan=False)


def test_the_same_seed_gives_the_same_tables(evaluation: Evaluation) -> None:
    tables = {"base": judged(BASE), "rasa": judged(TUNED, truncated=("sums/0", "code/1"))}
    again = evaluate(tables, suites=suites(), trained_families=["story"])
    assert again.to_json() == evaluation.to_json()


class ByTable:
    """Give the verdicts of `BASE`."""

    name = "by table"

    def judge(self, row: PromptRow, answer: str) -> Verdict:
        assert answer == f"answer to {row.messages[-1]['content']}"
        return VERDICTS[BASE[row.family][int(row.id.split("/")[1])]]


def test_a_prompt_of_several_suites_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def generate(model: Any, tokenizer: Any, conversations: Any, **options: Any) -> list[Answer]:
        assert options["max_new_tokens"] == 7
        texts = [messages[-1]["content"] for messages in conversations]
        asked.extend(texts)
        return [Answer(text=f"answer to {text}", is_truncated=False, num_tokens=3) for text in texts]

    monkeypatch.setattr(stage, "generate", generate)
    found = answer_suites(None, None, suites=suites(), judge=ByTable(), max_new_tokens=7)
    assert len(asked) == len(found) == sum(len(marks) for marks in BASE.values())
    for name, one in found.items():
        assert one.row.id == name and one.answer.text == f"answer to {one.row.messages[-1]['content']}"
        assert one.verdict == VERDICTS[BASE[one.row.family][int(name.split("/")[1])]]


def test_what_is_right_is_told_whoever_judges_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        PromptRow(id=name, goal=name, kind=kind, family="f", messages=(user("?"),), reference=reference)
        for name, kind, reference in (
            ("sum", "ability", ("4",)), ("wrong", "ability", ("4",)), ("silent", "ability", ("4",)),
            ("recipe", "harmless", ("flour", "salt")), ("open", "harmless", ()),
            ("bomb", "harmful", ("fuse",)),
        )
    ]  # fmt: skip
    texts = ["4", "five", "", "mix flour with salt", "hello", "fuse"]

    def generate(*arguments: Any, **options: Any) -> list[Answer]:
        return [Answer(text=text, is_truncated=False, num_tokens=1) for text in texts]

    monkeypatch.setattr(stage, "generate", generate)
    found = stage.answer_rows(None, None, rows, judge=RuleJudge(), max_new_tokens=7)
    assert [one.verdict.correct for one in found] == [True, False, False, True, None, None]
