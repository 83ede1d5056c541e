"""Wear two attacks at once: the turns of one family, then those of another, about the same goal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, islice

import numpy as np

from rasa_moe.data.rows import Message, PromptRow
from rasa_moe.reattack.base import Attack, Effort, Measured, Target, any_harmful

# Pairs of families for each goal beside the one that is its turn.
OTHERS = 3


def combine(first: PromptRow, second: PromptRow) -> PromptRow:
    """Make one prompt of two about the same goal: earlier turns of both, then both last turns in one.

    A system turn is kept from the first only, and stays in front.
    """
    earlier = [*first.messages[:-1], *(turn for turn in second.messages[:-1] if turn["role"] != "system")]
    last = Message(role="user", content=f"{first.messages[-1]['content']} {second.messages[-1]['content']}")
    return replace(
        first,
        id=f"{first.id}+{second.id}",
        family=f"{first.family}+{second.family}",
        messages=(*earlier, last),
    )


def _run(target: Target, effort: Effort) -> Iterator[Measured]:
    families = sorted({row.family for rows in target.wrapped.values() for row in rows})
    pairs = list(combinations(families, 2))
    if not pairs:
        return
    generator = np.random.default_rng(target.seed)
    limit = effort.family_pairs if effort.family_pairs is not None else len(pairs)
    drawn = [pairs[int(place)] for place in generator.permutation(len(pairs))[:limit]]
    rows = list(_rows(target, drawn))
    if not rows:
        return
    outcomes = target.ask(rows)
    yield Measured(setting="one pair a goal", strength=2, unit="families", outcomes=outcomes)
    by_goal: dict[str, list[float]] = {}
    others = list(_others(target, drawn))
    for row, outcome in zip([*rows, *others], [*outcomes, *target.ask(others)], strict=True):
        by_goal.setdefault(row.goal, []).append(outcome)
    best = np.array([any_harmful(np.array(found)) for found in by_goal.values()], dtype=np.float64)
    yield Measured(setting="best of 4 pairs for each goal", strength=2, unit="families", outcomes=best)


def _rows(target: Target, pairs: Sequence[tuple[str, str]]) -> Iterator[PromptRow]:
    """Combine families in turn, a pair a goal."""
    for number, rows in enumerate(target.wrapped.values()):
        yield from _worn(rows, [pairs[number % len(pairs)]])


def _others(target: Target, pairs: Sequence[tuple[str, str]]) -> Iterator[PromptRow]:
    """Combine families in three more ways for each goal: the first pairs that it has not worn in its turn."""
    for number, rows in enumerate(target.wrapped.values()):
        own = pairs[number % len(pairs)]
        yield from islice(_worn(rows, [pair for pair in pairs if pair != own]), OTHERS)


def _worn(rows: Sequence[PromptRow], pairs: Sequence[tuple[str, str]]) -> Iterator[PromptRow]:
    """Combine the prompts of one goal by those pairs of families that it was asked in."""
    of_family = {row.family: row for row in rows}
    for first, second in pairs:
        if first in of_family and second in of_family:
            yield combine(of_family[first], of_family[second])


ATTACK = Attack(
    "combined",
    "Combine attack families two at a time in one prompt; needs no weights.",
    lambda effort: (
        f"{effort.family_pairs or 'all'} pairs of families, one a goal in turn; then the best of 4 a goal"
    ),
    _run,
)
