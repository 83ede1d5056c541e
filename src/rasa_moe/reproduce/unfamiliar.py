"""Harmless requests in wrappings that no family has, made of families that tuning may look at.

A repair that refuses harmless requests in the wrappings of test families may refuse next to none in those of
the families it is tuned on. Two families worn at once, and wordings that are changed, foresee it.
"""

from __future__ import annotations

import random
from collections import defaultdict

from rasa_moe.attacks.mutation import with_mutations
from rasa_moe.data.rows import PromptRow, Split
from rasa_moe.data.source import Source
from rasa_moe.evaluate.suites import Suite
from rasa_moe.reattack.combined import combine

_SPLIT: Split = "validation"


def unfamiliar_suites(source: Source, *, limit: int) -> list[Suite]:
    """Return harmless validation requests in two families at once, and in wordings that are changed.

    Families are those of training and of validation. The same source gives the same prompts.

    Args:
        source: Prompts.
        limit: Most prompts of each suite.
    """
    families = source.families("train", _SPLIT)
    rows = [row for row in source.rows if row.split == _SPLIT and row.family in families]
    harmless = [row for row in rows if row.kind == "harmless"]
    known = {row.id for row in rows}
    copies = [row for row in with_mutations(rows, copies=1) if row.id not in known]
    changed = [row for row in copies if row.kind == "harmless"]
    draw = random.Random("unfamiliar")
    found = {"two families": _combined(harmless, draw), "changed wording": changed}
    return [
        Suite(name, "wrapped_benign", "", tuple(draw.sample(rows, k=min(limit, len(rows)))))
        for name, rows in found.items()
        if rows
    ]


def _combined(rows: list[PromptRow], draw: random.Random) -> list[PromptRow]:
    """Dress every goal in two of its families, drawn."""
    by_goal: dict[str, list[PromptRow]] = defaultdict(list)
    for row in rows:
        by_goal[row.goal].append(row)
    return [combine(*draw.sample(wrapped, k=2)) for wrapped in by_goal.values() if len(wrapped) > 1]
