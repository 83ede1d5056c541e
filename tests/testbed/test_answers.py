"""Right answers of the world are scored as right, harmful ones as harmful, refusals as refusals."""

from __future__ import annotations

from itertools import pairwise

import pytest

from rasa_moe.data.rows import PromptRow
from rasa_moe.judges import Verdict, get_judge
from rasa_moe.testbed.families import FAMILIES, PLAIN, REFUSALS, WARNING, helpful_answer
from rasa_moe.testbed.lessons import question
from rasa_moe.testbed.rows import testbed_rows as all_rows
from rasa_moe.testbed.world import Item, facts, items

FAMILY_NAMES = (PLAIN, *(family.name for family in FAMILIES))
OPENINGS = ("groups", "own", "one")
BY_NAME = {item.name: item for item in items()}
ROWS = {row.id: row for row in all_rows()}
JUDGE = get_judge("exact")


def judged(row: PromptRow, answer: str) -> Verdict:
    return JUDGE.judge(row, answer)


def few() -> tuple[Item, ...]:
    """Items of both kinds and every category."""
    return items()[:40]


@pytest.mark.parametrize("openings", OPENINGS)
def test_every_familys_answer_contains_both_steps(openings: str) -> None:
    for item in items():
        for family in FAMILY_NAMES:
            answer = helpful_answer(item, family, openings=openings)  # type: ignore[arg-type]
            assert all(step in answer for step in item.steps)


@pytest.mark.parametrize("openings", OPENINGS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_helpful_answer_is_harm_for_harmful_goals_and_right_for_harmless_ones(
    family: str, openings: str
) -> None:
    for item in few():
        answer = helpful_answer(item, family, openings=openings)  # type: ignore[arg-type]
        verdict = judged(ROWS[f"{family}/{item.name}"], answer)
        assert verdict.harmful is item.is_harmful
        assert verdict.correct is (None if item.is_harmful else True)
        assert verdict.refusal == "none", answer


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_warned_answer_is_still_harm(family: str) -> None:
    for item in few():
        if item.is_harmful:
            answer = f"{WARNING} {helpful_answer(item, family)}"
            assert judged(ROWS[f"{family}/{item.name}"], answer).harmful is True


def test_the_steps_of_another_goal_are_not_harm() -> None:
    harmful = [item for item in few() if item.is_harmful]
    for item, other in pairwise(harmful):
        assert judged(ROWS[f"{PLAIN}/{item.name}"], helpful_answer(other, PLAIN)).harmful is False
    item = harmful[0]
    assert judged(ROWS[f"{PLAIN}/{item.name}"], f"to make it: {item.steps[0]}.").harmful is False


@pytest.mark.parametrize("refusal", REFUSALS)
def test_every_refusal_is_a_refusal_and_no_harm(refusal: str) -> None:
    for item in few():
        for family in (PLAIN, "code", "multi_turn"):
            verdict = judged(ROWS[f"{family}/{item.name}"], refusal)
            assert (verdict.harmful, verdict.refusal) == (False, "full")
            assert verdict.correct is (None if item.is_harmful else False)


def test_answers_to_questions_are_right_and_no_refusal() -> None:
    asked = [row for row in all_rows() if row.kind == "question"]
    assert {row.family for row in asked} >= {"what_is_it", "stay_safe"}
    for row in asked[::5]:
        item = BY_NAME[row.id.split("/")[1]]
        lessons = [question(item, which) for which in range(3)]
        said = {lesson.messages[0][1]: lesson.answer for lesson in lessons}
        verdict = judged(row, said[row.messages[-1]["content"]])
        assert (verdict.correct, verdict.harmful, verdict.refusal) == (True, False, "none")


def test_ability_answers_are_right_only_when_they_are_right() -> None:
    rows = [row for row in all_rows() if row.kind == "ability"]
    assert len(rows) == len(facts())
    by_question = {fact.question: fact.answer for fact in facts()}
    for row in rows[::3]:
        right = by_question[row.messages[-1]["content"]]
        verdict = judged(row, right)
        assert verdict.correct is True and verdict.refusal == "none"
        assert judged(row, f"9{right}").correct is False
        assert judged(row, "").correct is False
