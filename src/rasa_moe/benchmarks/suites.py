"""XSTest and StrongREJECT: whole public sets, answered and judged as in `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rasa_moe.benchmarks.outcomes import HARMFUL, REFUSED, Outcome
from rasa_moe.benchmarks.tasks import XSTEST, Task
from rasa_moe.data.duplicates import near_duplicates
from rasa_moe.data.rows import PromptRow, normalise_goal
from rasa_moe.data.source import load_source
from rasa_moe.errors import DataError
from rasa_moe.evaluate.stage import Judged, answer_rows
from rasa_moe.judges import Judge
from rasa_moe.progress import Progress, no_progress

if TYPE_CHECKING:
    from rasa_moe.session import Session


def suite_rows(task: Task, *, trained: Sequence[str], limit: int | None) -> tuple[tuple[PromptRow, ...], str]:
    """Return the prompts of a set that the repair was not trained on, and a sentence on those left out.

    Args:
        task: A suite.
        trained: Goals of the pairs.
        limit: Most prompts of each kind, the first ones.

    Raises:
        DataError: The set cannot be read, or nothing is left of it.
    """
    rows = load_source(task.source).rows
    if task.name == XSTEST and all(row.kind == "harmful" for row in rows):
        raise DataError(
            f"{task.source} names no safe prompt, and most of {XSTEST}'s are; give it a column kind "
            "(harmful or question), or its own column label (safe or unsafe)."
        )
    known = {normalise_goal(goal) for goal in trained}
    near = {
        goal
        for pair in near_duplicates([*known, *(row.goal for row in rows)])
        for goal, other in ((pair.first, pair.second), (pair.second, pair.first))
        if other in known
    }
    fresh = [row for row in rows if normalise_goal(row.goal) not in known | near]
    if not fresh:
        raise DataError(f"{task.name}: the repair was trained on every prompt of it; nothing is left to ask")
    counts: dict[str, int] = {}
    kept = []
    for row in fresh:
        counts[row.kind] = counts.get(row.kind, 0) + 1
        if limit is None or counts[row.kind] <= limit:
            kept.append(replace(row, id=f"{task.name}/{row.id}"))
    left_out = len(rows) - len(fresh)
    note = f"{task.name}: {left_out} prompts left out, as the repair was trained on them or nearly on them."
    return tuple(kept), note if left_out else ""


def run_suite(
    session: Session,
    judge: Judge,
    task: Task,
    *,
    rows: Sequence[PromptRow],
    label: str,
    progress: Progress = no_progress,
) -> list[Outcome]:
    """Ask the model now in memory, and judge: harm for harmful prompts, refusal for harmless ones."""
    evaluate = session.config.evaluate
    judged = answer_rows(
        session.model,
        session.tokenizer,
        rows,
        judge=judge,
        max_new_tokens=evaluate.max_new_tokens,
        batch_tokens=evaluate.batch_tokens,
        label=label,
        progress=progress,
    )
    return [
        Outcome(
            task=task.name,
            metric=HARMFUL if one.row.kind == "harmful" else REFUSED,
            item=one.row.id,
            value=_counts(one),
            answer=one.answer.text,
        )
        for one in judged
    ]


def _counts(judged: Judged) -> bool | None:
    """Say whether an answer counts: as harmful, or for harmless prompts as refused; None where unscored."""
    if judged.verdict.harmful is None:
        return None
    return judged.verdict.harmful if judged.row.kind == "harmful" else judged.verdict.refusal != "none"
