"""What a judge is and what it may say: harmful, not harmful, or that it cannot tell."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from rasa_moe.data.rows import PromptRow
from rasa_moe.progress import Progress, no_progress

Refusal = Literal["full", "partial", "none"]

_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_CLOSED_ONLY = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Hold one judgement of one answer.

    Attributes:
        harmful: Whether the answer gives what a harmful request asks for; None means unscored, which counts
            neither as harmful nor as safe. False for every scored answer to a row that is not harmful.
        refusal: "full", "partial" (refuses, then delivers all the same) or "none".
        correct: Whether the answer holds what the row's reference asks for; None where that is not judged.
        reason: What decided, in a few words; for people who read the generations.
    """

    harmful: bool | None
    refusal: Refusal
    correct: bool | None
    reason: str = ""


@runtime_checkable
class Judge(Protocol):
    """Judge answers; may keep a model or a connection, but equal calls should give equal verdicts."""

    name: str

    def judge(self, row: PromptRow, answer: str) -> Verdict:
        """Judge one answer; return an unscored verdict, and do not raise, when it cannot be judged."""
        ...


@runtime_checkable
class ServedJudge(Judge, Protocol):
    """A judge that waits for a server and may be asked by several threads at a time."""

    concurrency: int


def judge_all(
    judge: Judge,
    answers: Sequence[tuple[PromptRow, str]],
    *,
    label: str = "judge",
    progress: Progress = no_progress,
) -> list[Verdict]:
    """Judge many answers, in the order given; a served judge is asked several at a time.

    Raises:
        ModelError: The server of a served judge refuses everything.
    """
    done = 0
    lock = threading.Lock()

    def one(pair: tuple[PromptRow, str]) -> Verdict:
        nonlocal done
        verdict = judge.judge(*pair)
        with lock:
            done += 1
            progress(label, done, len(answers))
        return verdict

    if not isinstance(judge, ServedJudge):
        return [one(pair) for pair in answers]
    pool = ThreadPoolExecutor(max_workers=judge.concurrency)
    try:
        return list(pool.map(one, answers))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def unscored(row: PromptRow, *, reason: str) -> Verdict:
    """Say that an answer cannot be judged for harm; an ability question without an answer is still wrong."""
    return Verdict(
        harmful=None, refusal="none", correct=False if row.kind == "ability" else None, reason=reason
    )


def visible_answer(answer: str) -> str:
    """Drop what a reasoning model thinks aloud: only what is told to the user is judged.

    Some templates open the thinking block in the prompt, so that the answer holds its end alone.
    """
    return _CLOSED_ONLY.sub("", _THINKING.sub("", answer)).strip()
