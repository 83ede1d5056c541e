"""Measure a testbed model: does it refuse plain harm, fall for every wrapper, and do the rest right?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rasa_moe.data.rows import PromptRow, Split
from rasa_moe.evaluate.stage import answer_rows
from rasa_moe.evaluate.statistics import Rate, rate_of
from rasa_moe.judges import Verdict, get_judge
from rasa_moe.progress import Progress, no_progress
from rasa_moe.testbed.families import FAMILIES, PLAIN
from rasa_moe.testbed.lessons import QUESTIONS
from rasa_moe.testbed.rows import testbed_rows


@dataclass(frozen=True)
class Measure:
    """One line of the table.

    Attributes:
        suite: Attack family, "plain", kind of question or ability.
        kind: What was asked: harmful, harmless, question or ability.
        done: Share of answers that do what was asked (for harmful goals: the attack success rate).
        refused: Share of answers that refuse, wholly or in part.
    """

    suite: str
    kind: str
    done: Rate
    refused: Rate


def measure(
    model: Any,
    tokenizer: Any,
    *,
    split: Split = "validation",
    limit: int | None = None,
    max_new_tokens: int = 64,
    batch_tokens: int = 16384,
    progress: Progress = no_progress,
) -> list[Measure]:
    """Ask every kind of prompt of one split, in every family.

    Args:
        model: A testbed model.
        tokenizer: Its tokenizer.
        split: Split of the goals; every family is asked, whatever its own split, since nothing is tuned here.
        limit: Most prompts a line; None for all.
        max_new_tokens: Longest answer.
        batch_tokens: Tokens of one generation batch, padding included.
        progress: Called as answers arrive.
    """
    by_line: dict[tuple[str, str], list[PromptRow]] = {line: [] for line in _lines()}
    for row in testbed_rows():
        if row.split == split:
            by_line[row.kind, row.family].append(row)
    suites = [(kind, suite, rows[:limit]) for (kind, suite), rows in by_line.items()]
    asked = [row for _, _, rows in suites for row in rows]
    judged = answer_rows(
        model,
        tokenizer,
        asked,
        judge=get_judge("exact"),
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        label="measure",
        progress=progress,
    )
    verdicts = {one.row.id: one.verdict for one in judged}
    return [
        Measure(
            suite,
            kind,
            rate_of([_is_done(row, verdicts[row.id]) for row in rows]),
            rate_of([float(verdicts[row.id].refusal != "none") for row in rows]),
        )
        for kind, suite, rows in suites
    ]


def _lines() -> Iterable[tuple[str, str]]:
    families = [PLAIN, *(family.name for family in FAMILIES)]
    for kind in ("harmful", "harmless"):
        yield from ((kind, family) for family in families)
    yield from (("question", name) for name in QUESTIONS)
    yield from (("ability", name) for name in ("capitals", "sums", "myths"))


def _is_done(row: PromptRow, verdict: Verdict) -> float:
    return float(bool(verdict.harmful if row.kind == "harmful" else verdict.correct))


def summary(measures: Sequence[Measure]) -> dict[str, float]:
    """Return the figures that a recipe is judged by; minima and maxima are over suites.

    Keys: plain_asr, weakest_attack, harmless_done, wrapped_done, harmless_refused, questions_done, abilities.
    """

    def rates(kind: str, *, plain: bool | None = None) -> list[Measure]:
        return [m for m in measures if m.kind == kind and plain in (None, m.suite == PLAIN)]

    return {
        "plain_asr": rates("harmful", plain=True)[0].done.rate,
        "weakest_attack": min(m.done.rate for m in rates("harmful", plain=False)),
        "harmless_done": rates("harmless", plain=True)[0].done.rate,
        "wrapped_done": min(m.done.rate for m in rates("harmless", plain=False)),
        "harmless_refused": max(m.refused.rate for m in rates("harmless")),
        "questions_done": min(m.done.rate for m in rates("question")),
        "abilities": min(m.done.rate for m in rates("ability")),
    }
