"""Which prompts make up which row of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rasa_moe.data.rows import PLAIN_FAMILY, PromptRow, Split
from rasa_moe.data.source import Source
from rasa_moe.judges import Verdict

Kind = Literal[
    "attack_trained", "attack_held_out", "plain_harmful", "over_refusal", "wrapped_benign", "ability"
]
KINDS: tuple[Kind, ...] = (
    "attack_trained",
    "attack_held_out",
    "plain_harmful",
    "over_refusal",
    "wrapped_benign",
    "ability",
)
DONE_SUFFIX = "_done"


@dataclass(frozen=True)
class Suite:
    """One row of the table: prompts, and what is counted about their answers.

    Attributes:
        name: Attack family, kind of question or ability. Names ending in "_done" count harmless requests done
            right, on the same answers as the refusal suites.
        kind: Decides what is counted: harmful answers, refusals or right answers.
        group: Families whose answers open alike; "" if unknown.
        rows: The prompts.
    """

    name: str
    kind: Kind
    group: str
    rows: tuple[PromptRow, ...]

    def outcome(self, verdict: Verdict) -> float | None:
        """Return 1 or 0, or None where the judge could not tell."""
        if self.kind in ("attack_trained", "attack_held_out", "plain_harmful"):
            return None if verdict.harmful is None else float(verdict.harmful)
        if self.kind == "ability":
            return None if verdict.correct is None else float(verdict.correct)
        return None if verdict.harmful is None else float(verdict.refusal != "none")


def make_suites(source: Source, *, split: Split, limit: int) -> list[Suite]:
    """Build every suite of one split of the goals.

    Args:
        source: Prompts and the families' own splits. Attack families of the other held-out split are left
            out: those of "validation" are for tuning, so they take no part in a table of "test".
        split: Split of the goals.
        limit: Most prompts of a suite, the first in the source's order.
    """
    trained = source.families("train")
    measured = [*trained, *source.families(split)] if split != "train" else trained

    def rows(kind: str, family: str) -> tuple[PromptRow, ...]:
        found = (row for row in source.rows if (row.kind, row.family, row.split) == (kind, family, split))
        return tuple(row for row, _ in zip(found, range(limit), strict=False))

    suites = [Suite(PLAIN_FAMILY, "plain_harmful", "", rows("harmful", PLAIN_FAMILY))]
    for family in measured:
        kind: Kind = "attack_trained" if family in trained else "attack_held_out"
        attacks, wrapped = rows("harmful", family), rows("harmless", family)
        group = next((row.group for row in (*attacks, *wrapped)), "")
        suites.append(Suite(family, kind, group, attacks))
        suites.append(Suite(family, "wrapped_benign", group, wrapped))
    harmless = rows("harmless", PLAIN_FAMILY)
    questions = {name: rows("question", name) for name in _families_of(source, "question")}
    suites.append(Suite("harmless", "over_refusal", "", harmless))
    suites += [Suite(name, "over_refusal", "", found) for name, found in questions.items()]
    suites += [Suite(name, "ability", "", rows("ability", name)) for name in _families_of(source, "ability")]
    suites += _done_suites(suites)
    return [suite for suite in suites if suite.rows]


def _families_of(source: Source, kind: str) -> list[str]:
    return sorted({row.family for row in source.rows if row.kind == kind})


def _done_suites(suites: Sequence[Suite]) -> list[Suite]:
    """Count harmless requests done right, where the rows say what right is."""
    groups = {
        "harmless" + DONE_SUFFIX: [s for s in suites if s.kind == "over_refusal" and s.name == "harmless"],
        "questions" + DONE_SUFFIX: [s for s in suites if s.kind == "over_refusal" and s.name != "harmless"],
        "wrapped" + DONE_SUFFIX: [s for s in suites if s.kind == "wrapped_benign"],
    }
    made = []
    for name, members in groups.items():
        rows = tuple(row for suite in members for row in suite.rows if row.reference)
        made.append(Suite(name, "ability", "", rows))
    return made
