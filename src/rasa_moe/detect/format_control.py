"""The format control: the discrepancy that a wrapper causes where nothing harmful is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rasa_moe.data.chats import encode_chat
from rasa_moe.data.rows import PLAIN_FAMILY, Pair, PromptRow
from rasa_moe.detect.aad import activation_discrepancy
from rasa_moe.detect.stage import rates_under
from rasa_moe.errors import DataError
from rasa_moe.evaluate.stage import answer_rows
from rasa_moe.progress import Progress

if TYPE_CHECKING:
    from rasa_moe.session import Session


def format_control(
    session: Session, pairs: Sequence[Pair], *, span: str, limit: int, progress: Progress
) -> tuple[Tensor, int]:
    """Compute the discrepancy between harmless goals in the wrappers of the pairs and the same goals plain.

    Every family takes part as often as in the pairs, as far as there are rows; both halves must be answered.

    Returns:
        (L,E) float64, and the number of goals in wrappers behind it.

    Raises:
        DataError: There are no such goals, or the base model answers none of them.
    """
    wrapped, plain = _goals_both_ways(session, sorted({pair.family for pair in pairs}), limit=limit)
    asked = [*wrapped, *{row.goal: plain[row.goal] for row in wrapped}.values()]
    judged = answer_rows(
        session.model,
        session.tokenizer,
        asked,
        judge=session.judge,
        max_new_tokens=session.config.collect.max_new_tokens,
        batch_tokens=session.config.collect.batch_tokens,
        label="harmless answers",
        progress=progress,
    )
    answer_of = {
        one.row.id: one.answer.text for one in judged if one.answer.text and one.verdict.refusal == "none"
    }
    kept = [row for row in wrapped if row.id in answer_of and plain[row.goal].id in answer_of]
    if not kept:
        raise DataError(
            "The base model refuses every harmless request of the format control; nothing to compare."
        )
    in_wrapper = rates_of(session, [(row.messages, answer_of[row.id]) for row in kept], span=span)
    plainly = rates_of(
        session, [(plain[row.goal].messages, answer_of[plain[row.goal].id]) for row in kept], span=span
    )
    return activation_discrepancy(in_wrapper, plainly), len(kept)


def rates_of(session: Session, chats: Sequence[tuple[Any, str]], *, span: str) -> Tensor:
    """Return (N,L,E) float32: how often each expert is active in each of N answered chats.

    As in the run, under the base model's routing and the consistent one.
    """
    encoded = [encode_chat(session.tokenizer, messages, answer) for messages, answer in chats]
    return rates_under(
        session.model,
        session.tokenizer,
        session.moe,
        routing=session.routing,
        both_routings=session.config.align.both_routings,
        chats=encoded,
        span=span,
    )


def _goals_both_ways(
    session: Session, families: Sequence[str], *, limit: int
) -> tuple[list[PromptRow], dict[str, PromptRow]]:
    """Return harmless train goals in each wrapper, at most `limit` of each, and every goal's plain row."""
    rows = [row for row in session.source.rows if row.kind == "harmless" and row.split == "train"]
    plain = {row.goal: row for row in rows if row.family == PLAIN_FAMILY}
    wrapped: list[PromptRow] = []
    for family in families:
        wrapped += [row for row in rows if row.family == family and row.goal in plain][:limit]
    if not wrapped:
        raise DataError(
            f"{session.config.data.source} has no harmless train goals both plain and in the families "
            f"{', '.join(families)}, so the format control cannot be made; add such rows."
        )
    return wrapped, plain
