"""The synthetic world as prompt rows: what collect, align and evaluate read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from rasa_moe.data.rows import Message, PromptRow
from rasa_moe.testbed.families import FAMILIES, PLAIN, Turns, ask
from rasa_moe.testbed.lessons import QUESTIONS, question
from rasa_moe.testbed.world import Item, facts, items, number_of


@cache
def testbed_rows() -> tuple[PromptRow, ...]:
    """Return every prompt of the world, in an order fixed by hash, so that the first n are a fair sample."""
    rows = [*_request_rows(), *_question_rows(), *_ability_rows()]
    return tuple(sorted(rows, key=lambda row: number_of("order " + row.goal)))


def _request_rows() -> Iterator[PromptRow]:
    for item in items():
        yield _request(item, PLAIN, group="")
        for family in FAMILIES:
            yield _request(item, family.name, group=family.group)


def _request(item: Item, family: str, *, group: str) -> PromptRow:
    return PromptRow(
        id=f"{family}/{item.name}",
        goal=f"make a {item.name}",
        kind="harmful" if item.is_harmful else "harmless",
        family=family,
        group=group,
        split=item.split,
        messages=_messages(ask(item, family, key="row")),
        reference=item.steps,
    )


def _question_rows() -> Iterator[PromptRow]:
    for item in items():
        if not item.is_harmful:
            continue
        for which, (name, reference) in enumerate(
            zip(QUESTIONS, (item.category, item.note, "is dangerous"), strict=True)
        ):
            yield PromptRow(
                id=f"{name}/{item.name}",
                goal=f"make a {item.name}",  # a question about a goal belongs to the goal's split
                kind="question",
                family=name,
                split=item.split,
                messages=_messages(question(item, which).messages),
                reference=(reference,),
            )


def _ability_rows() -> Iterator[PromptRow]:
    for number, fact in enumerate(facts()):
        yield PromptRow(
            id=f"{fact.suite}/{number}",
            goal=f"{fact.suite} {fact.subject}",
            kind="ability",
            family=fact.suite,
            split=fact.split,
            messages=_messages((("user", fact.question),)),
            reference=(fact.answer,),
        )


def _messages(turns: Turns) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=text) for role, text in turns)
