"""Unfamiliar wrappings are made of what tuning may look at, and are none of the families' own."""

from __future__ import annotations

from rasa_moe.data.rows import PromptRow
from rasa_moe.data.source import load_source
from rasa_moe.reproduce.unfamiliar import unfamiliar_suites
from rasa_moe.testbed.families import FAMILIES

SOURCE = load_source("testbed")


def said(row: PromptRow) -> str:
    return "|".join(message["content"] for message in row.messages)


KNOWN = {said(row) for row in SOURCE.rows}


def test_they_are_harmless_validation_goals_in_wrappings_that_no_family_has() -> None:
    goals = {row.goal for row in SOURCE.rows if row.split == "validation" and row.kind == "harmless"}
    two, changed = unfamiliar_suites(SOURCE, limit=1000)
    assert (two.name, changed.name) == ("two families", "changed wording")
    assert {row.goal for row in two.rows} == goals, "every goal can be dressed twice"
    # A wording may come out as it was, or as another family's; most do not.
    assert sum(said(row) in KNOWN for row in changed.rows) < len(changed.rows) / 10
    for row in (*two.rows, *changed.rows):
        assert (row.kind, row.split) == ("harmless", "validation")
        assert row.goal in goals
    assert not KNOWN & {said(row) for row in two.rows}


def test_no_test_family_lends_a_word_of_its_wrapping() -> None:
    allowed = set(SOURCE.families("train", "validation"))
    assert allowed < {family.name for family in FAMILIES}
    two, changed = unfamiliar_suites(SOURCE, limit=1000)
    assert {name for row in two.rows for name in row.family.split("+")} <= allowed
    assert {row.family for row in changed.rows} <= allowed
    may_be_said = {
        word
        for row in SOURCE.rows
        if row.split == "validation" and row.family in allowed
        for word in said(row).replace("|", " ").split()
    }
    for row in (*two.rows, *changed.rows):
        assert set(said(row).replace("|", " ").split()) <= may_be_said


def test_the_limit_holds_and_the_same_prompts_come_again() -> None:
    first, again = unfamiliar_suites(SOURCE, limit=7), unfamiliar_suites(SOURCE, limit=7)
    assert [len(suite.rows) for suite in first] == [7, 7]
    assert first == again
