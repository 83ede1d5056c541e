"""Prompts and pairs as files: one JSON object a line, split by goal, with every problem reported at once.

The unit that is split is the *goal*, not the prompt: one goal asked plainly and inside ten attacks is one
unit, and all eleven prompts go to the same split. Otherwise "held-out attack" would mean "known goal in new
clothes".
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast, get_args

from rasa_moe.data.jsonl import (
    choice_field,
    listing,
    read_records,
    reject_misspelt,
    text_field,
    write_records,
)
from rasa_moe.errors import DataError

Kind = Literal["harmful", "harmless", "question", "ability"]
Split = Literal["train", "validation", "test"]

KINDS: tuple[str, ...] = get_args(Kind)
SPLITS: tuple[str, ...] = get_args(Split)
ROLES = ("system", "user", "assistant")
PLAIN_FAMILY = "plain"
DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.6, "validation": 0.1, "test": 0.3}


class Message(TypedDict):
    """Hold one turn of a conversation, in the form chat templates expect."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """Hold one conversation that waits for an answer, and what is known about it.

    Attributes:
        id: Unique name of the row in its file.
        goal: What the user is after, free of wrapping; the unit of splitting and of pairing.
        kind: "harmful" and "harmless" are requests; "question" is a harmless question (over-refusal);
            "ability" has one right answer.
        family: "plain", the name of an attack family, or the name of an ability.
        group: Families whose answers open alike share a group; "" if unknown.
        split: Where the goal belongs.
        messages: Turns in order; the last one is the user's.
        reference: Strings an exact judge looks for in the answer.
    """

    id: str
    goal: str
    kind: Kind
    messages: tuple[Message, ...]
    family: str = PLAIN_FAMILY
    group: str = ""
    split: Split = "test"
    reference: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Hold one goal asked twice: a jailbreak that worked and the plain request (anchor) that was refused.

    A pair is one record, so that no shuffling and no dropped row can ever mismatch its two halves.

    Attributes:
        goal: What the user is after.
        family: The attack's.
        jailbreak: The goal inside the attack.
        anchor: The goal asked plainly.
        jailbreak_answer: The base model's harmful answer.
        anchor_answer: Its refusal.
        other_answers: Further harmful answers of the base model to the goal, which begin otherwise.
    """

    goal: str
    family: str
    jailbreak: tuple[Message, ...]
    anchor: tuple[Message, ...]
    jailbreak_answer: str
    anchor_answer: str
    other_answers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Name one goal that occurs in more than one split, with the number of rows in each."""

    goal: str
    rows_per_split: Mapping[str, int]


def read_rows(path: Path | str) -> list[PromptRow]:
    """Read prompts from JSONL; a row needs `id`, `kind` and either `messages` or `prompt`.

    Left out, `goal` is the last user message, `family` is "plain" and `split` is derived from the goal.

    Raises:
        DataError: File missing, empty or not UTF-8; or bad rows, up to 10 of them listed with line numbers.
    """
    lines_of_id: dict[str, int] = {}

    def parse(record: Mapping[str, Any], line: int) -> PromptRow:
        row = _row_of(record)
        first = lines_of_id.setdefault(row.id, line)
        if first != line:
            raise ValueError(f"duplicate id {row.id!r}, first used on line {first}")
        return row

    return read_records(Path(path), parse)


def write_rows(path: Path | str, rows: Iterable[PromptRow]) -> None:
    """Write prompts as JSONL that `read_rows` gives back unchanged."""
    write_records(Path(path), (vars(row) for row in rows))


def read_pairs(path: Path | str) -> list[Pair]:
    """Read pairs from JSONL, with the same care for errors as `read_rows`."""
    return read_records(Path(path), lambda record, _line: _pair_of(record))


def write_pairs(path: Path | str, pairs: Iterable[Pair]) -> None:
    """Write pairs as JSONL that `read_pairs` gives back unchanged."""
    write_records(Path(path), (vars(pair) for pair in pairs))


def split_of(text: str, *, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, salt: str = "") -> Split:
    """Assign a goal to a split by its hash alone, so that no other row, order or machine can move it.

    Case, width and spacing are folded first: retyping a goal does not carry it from train to test.

    Args:
        text: The goal.
        fractions: Share of each split, summing to 1.
        salt: Changes the whole assignment; use it to draw a different division of the same goals.

    Raises:
        DataError: Unknown split name, negative share, or shares that do not sum to 1.
    """
    unknown = [name for name in fractions if name not in SPLITS]
    if unknown or min(fractions.values(), default=-1.0) < 0 or not math.isclose(sum(fractions.values()), 1.0):
        raise DataError(
            f"split fractions must be shares of {', '.join(SPLITS)} that sum to 1, got {dict(fractions)}"
        )
    digest = hashlib.sha256(f"{salt}\n{normalise_goal(text)}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    used = [name for name in SPLITS if fractions.get(name, 0.0) > 0]
    edge = 0.0
    for name in used:
        edge += fractions[name]
        if position < edge:
            return cast(Split, name)
    return cast(Split, used[-1])  # the shares sum to 1 only up to rounding


def normalise_goal(text: str) -> str:
    """Fold case, width and spacing, so that equal goals compare equal."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def leakage(rows: Iterable[PromptRow]) -> tuple[Leak, ...]:
    """List the goals that occur in more than one split, in order of first appearance; empty is good."""
    seen: dict[str, tuple[str, dict[str, int]]] = {}
    for row in rows:
        _, counts = seen.setdefault(normalise_goal(row.goal), (row.goal, {}))
        counts[row.split] = counts.get(row.split, 0) + 1
    return tuple(Leak(goal=goal, rows_per_split=counts) for goal, counts in seen.values() if len(counts) > 1)


def require_no_leakage(rows: Iterable[PromptRow]) -> None:
    """Refuse rows whose goals cross splits.

    Raises:
        DataError: At least one goal is in two splits; up to 10 are listed.
    """
    leaks = leakage(rows)
    if leaks:
        problems = [f"{leak.goal!r} is in {_counts_text(leak.rows_per_split)}" for leak in leaks]
        raise DataError(
            listing(f"{len(leaks)} goals are in more than one split; give each goal one split", problems)
        )


def _counts_text(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{name} ({count} rows)" for name, count in counts.items())


def _row_of(record: Mapping[str, Any]) -> PromptRow:
    """Check one decoded line and build its row; ValueError says what is wrong with it."""
    reject_misspelt(record, known=(*PromptRow.__dataclass_fields__, "prompt"))
    messages = _messages_of(record)
    goal = text_field(record, "goal", default=messages[-1]["content"])
    return PromptRow(
        id=text_field(record, "id"),
        goal=goal,
        kind=cast(Kind, choice_field(record, "kind", KINDS)),
        family=text_field(record, "family", default=PLAIN_FAMILY),
        group=text_field(record, "group", default="", may_be_empty=True),
        split=cast(Split, choice_field(record, "split", SPLITS, default=split_of(goal))),
        messages=messages,
        reference=_texts_of(record, "reference"),
    )


def _pair_of(record: Mapping[str, Any]) -> Pair:
    reject_misspelt(record, known=tuple(Pair.__dataclass_fields__))
    return Pair(
        goal=text_field(record, "goal"),
        family=text_field(record, "family"),
        jailbreak=check_messages(record.get("jailbreak"), field="jailbreak"),
        anchor=check_messages(record.get("anchor"), field="anchor"),
        jailbreak_answer=text_field(record, "jailbreak_answer"),
        anchor_answer=text_field(record, "anchor_answer"),
        other_answers=_texts_of(record, "other_answers"),
    )


def _messages_of(record: Mapping[str, Any]) -> tuple[Message, ...]:
    has_prompt, has_messages = record.get("prompt") is not None, record.get("messages") is not None
    if has_prompt == has_messages:
        raise ValueError(
            "give either a prompt or messages" + (", not both" if has_prompt else "; this row has neither")
        )
    if has_prompt:
        return (Message(role="user", content=text_field(record, "prompt")),)
    return check_messages(record["messages"], field="messages")


def check_messages(value: object, *, field: str) -> tuple[Message, ...]:
    """Turn decoded JSON into messages that end with the user's turn, or raise ValueError saying why not."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"{field} must be a non-empty list of {{role, content}} objects")
    messages: list[Message] = []
    for number, item in enumerate(value, start=1):
        if (
            not isinstance(item, Mapping)
            or item.get("role") not in ROLES
            or not isinstance(item.get("content"), str)
        ):
            raise ValueError(
                f"{field}: message {number} needs a role ({', '.join(ROLES)}) and a content string"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in item["content"]):
            raise ValueError(f"{field}: message {number} holds half a character (a lone surrogate)")
        messages.append(Message(role=item["role"], content=item["content"]))
    if messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ValueError(f"{field} must end with a non-empty user message")
    return tuple(messages)


def _texts_of(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = record.get(field, ())
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not all(isinstance(item, str) and item.strip() for item in items):
        raise ValueError(f"{field} must be a string or a list of non-empty strings")
    return tuple(items)
