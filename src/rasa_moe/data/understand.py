"""Make prompt rows of tables that were never written for us: goal lists, public sets, jailbreak logs.

Columns are found by their usual names, or named by the user. A log row with a goal and another prompt is an
attack on that goal; the goal asked plainly is added once, because a pair needs both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from rasa_moe.data.columns import KIND_WORDS, map_columns, spare_columns
from rasa_moe.data.duplicates import goal_clusters
from rasa_moe.data.rows import (
    KINDS,
    PLAIN_FAMILY,
    SPLITS,
    Kind,
    Message,
    PromptRow,
    Split,
    check_messages,
    normalise_goal,
    split_of,
)
from rasa_moe.data.tables import Table, TableRow, text_of

_NOTHING: tuple[Any, ...] = (None, "", [])
_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class Understood:
    """Hold the rows of a table, which column was taken for what, and what is wrong by line.

    Attributes:
        rows: Good rows, and the plain requests that were added for attacks without one.
        columns: Role -> column.
        problems: Lines that gave no row.
        notes: Lines that repeat an earlier one (dropped) or change a column's type.
        answers: Rows with a recorded answer; it is not used, because pairs need the model's own.
        scores: Rows with a recorded score of a judge; not used either.
        plain_added: Plain requests that were added.
    """

    rows: tuple[PromptRow, ...]
    columns: Mapping[str, str]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    answers: int = 0
    scores: int = 0
    plain_added: int = 0


@dataclass
class _Counts:
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    answers: int = 0
    scores: int = 0
    types: dict[str, type] = field(default_factory=dict)


def understand(
    table: Table,
    *,
    columns: Mapping[str, str],
    kind: Kind = "harmful",
    kinds: Mapping[str, Kind] | None = None,
) -> Understood:
    """Read a table as prompt rows, collecting problems by line.

    Args:
        table: What was read.
        columns: Role -> column, as the user names them; the others are found by their usual names.
        kind: What the requests are where no column says so.
        kinds: Values of the kind column that stand for a kind of ours.
    """
    kinds = {**KIND_WORDS, **(kinds or {})}
    mapping = map_columns(table, columns, kinds=kinds)
    spare = spare_columns(table, mapping, columns)
    counts = _Counts(problems=list(table.problems))
    if "goal" not in mapping and "prompt" not in mapping:
        listed = ", ".join(table.columns) or "none"
        counts.problems.append(f"no column holds goals or prompts; name it with goal=COLUMN ({listed})")
        return Understood((), mapping, tuple(counts.problems))
    rows, first_line = [], dict[str, int]()
    for entry in table.rows:
        try:
            row = _row_of(entry, _filled(entry, mapping, spare), counts, table=table, kind=kind, kinds=kinds)
        except ValueError as error:
            counts.problems.append(f"line {entry.line}: {error}")
            continue
        key = repr((normalise_goal(row.goal), row.kind, row.family, row.messages))
        if key in first_line:
            first = first_line[key]
            counts.notes.append(f"line {entry.line}: the same goal and prompt as on line {first}")
            continue
        first_line[key] = entry.line
        rows.append(row)
    plain = _plain_requests(rows)
    return Understood(
        rows=(*rows, *plain),
        columns=mapping,
        problems=tuple(counts.problems),
        notes=tuple(counts.notes),
        answers=counts.answers,
        scores=counts.scores,
        plain_added=len(plain),
    )


def assign_splits(rows: Sequence[PromptRow], *, fixed: Sequence[PromptRow] = ()) -> list[PromptRow]:
    """Split by goal across all rows; goals that are nearly the same go together.

    Args:
        rows: Rows to split; whatever split they have is replaced.
        fixed: Rows that say their split themselves; goals near one of theirs follow it.
    """
    clusters = goal_clusters([row.goal for row in (*fixed, *rows)])
    taken = {clusters[normalise_goal(row.goal)]: row.split for row in reversed(fixed)}
    return [
        replace(row, split=taken.get(cluster) or split_of(cluster))
        for row, cluster in ((row, clusters[normalise_goal(row.goal)]) for row in rows)
    ]


def _filled(
    entry: TableRow, mapping: Mapping[str, str], spare: Mapping[str, Sequence[str]]
) -> Mapping[str, str]:
    """Return the mapping with a spare column where the usual one is empty in this row."""
    found = dict(mapping)
    for role, columns in spare.items():
        if entry.fields.get(mapping[role]) in _NOTHING:
            found[role] = next((c for c in columns if entry.fields.get(c) not in _NOTHING), mapping[role])
    return found


def _row_of(
    entry: TableRow,
    mapping: Mapping[str, str],
    counts: _Counts,
    *,
    table: Table,
    kind: Kind,
    kinds: Mapping[str, Kind],
) -> PromptRow:
    def value(role: str) -> Any:
        return entry.fields.get(mapping[role]) if role in mapping else None

    for role in ("goal", "prompt", "answer"):
        _check_type(value(role), role=mapping.get(role, role), counts=counts, line=entry.line)
    counts.answers += bool(text_of(value("answer")).strip())
    counts.scores += value("score") is not None and text_of(value("score")).strip() != ""
    goal = value("goal")
    if goal is not None and not isinstance(goal, str):
        raise ValueError(f"{mapping['goal']} is a {type(goal).__name__}, not text")
    has_prompt = value("prompt") not in _NOTHING
    if not has_prompt and not (goal or "").strip():
        raise ValueError("the prompt is missing")
    if "prompt" in mapping and not has_prompt:
        counts.notes.append(f"line {entry.line}: {mapping['prompt']} is missing; kept as the plain request")
    messages = _conversation(value("prompt"), column=mapping.get("prompt", "")) if has_prompt else ()
    goal = (goal or "").strip() or messages[-1]["content"].strip()
    if text_of(value("context")).strip() and not messages:
        # Without the text that it speaks of, the request is another one.
        goal = f"{text_of(value('context')).strip()}\n\n{goal}"
    is_plain = not messages or [normalise_goal(m["content"]) for m in messages] == [normalise_goal(goal)]
    stem = stem_of(table.name)
    row_kind = _kind_of(value("kind"), default=kind, kinds=kinds)
    # Questions and abilities have no attack around them; their family says which set they come from.
    unwrapped = PLAIN_FAMILY if row_kind in ("harmful", "harmless") else stem
    split = text_of(value("split")).strip() or split_of(goal)
    if split not in SPLITS:
        raise ValueError(f"the split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    family = text_of(value("family")).strip() or (PLAIN_FAMILY if is_plain else "jailbreak")
    return PromptRow(
        id=f"{stem}-{text_of(value('id')).strip() or entry.number}",
        goal=goal,
        kind=row_kind,
        family=unwrapped if is_plain else family,
        group=text_of(value("group")).strip(),
        split=cast(Split, split),
        messages=messages or (Message(role="user", content=goal),),
        reference=_references(value("reference")),
    )


def stem_of(name: str) -> str:
    """Return a short name of a table for ids and families: "hf:org/XSTest#test" gives "XSTest"."""
    return re.sub(r"\W+", "-", Path(re.split(r"[#@]", name)[0]).stem).strip("-").lower() or "rows"


def _check_type(value: object, *, role: str, counts: _Counts, line: int) -> None:
    if value is None:
        return
    usual = counts.types.setdefault(role, type(value))
    if type(value) is not usual:
        is_now, was = type(value).__name__, usual.__name__
        counts.notes.append(f"line {line}: {role} is a {is_now}, but a {was} before")


def _kind_of(value: object, *, default: Kind, kinds: Mapping[str, Kind]) -> Kind:
    text = text_of(value).strip()
    if not text:
        return default
    if text in kinds:
        return kinds[text]
    if text not in KINDS:
        raise ValueError(f"the kind {text!r} is unknown; choose one of {', '.join(KINDS)}")
    return cast(Kind, text)


def _conversation(value: object, *, column: str) -> tuple[Message, ...]:
    """Read a prompt: a text, the user's turns as texts, or turns with roles (also those of ShareGPT)."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"{column} is empty")
        return (Message(role="user", content=value),)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{column} is a {type(value).__name__}, neither text nor a list of turns")
    if all(isinstance(turn, str) for turn in value):
        return _user_turns([str(turn) for turn in value], column=column)
    turns = [_turn(turn) for turn in value]
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()  # a log keeps the answer to the attack as its last turn
    return check_messages(turns, field=column)


def _user_turns(texts: Sequence[str], *, column: str) -> tuple[Message, ...]:
    """Read the user's turns alone; what the model said between them is not known and is not made up."""
    if len(texts) != 1 or not texts[0].strip():
        raise ValueError(
            f"{column} lists {len(texts)} user turns without the answers between them; give turns with roles"
        )
    return (Message(role="user", content=texts[0]),)


def _turn(turn: object) -> Message:
    if not isinstance(turn, Mapping):
        raise ValueError("mixes texts and turns with roles")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    return Message(
        role=_SHAREGPT.get(str(role), str(role)), content=content if isinstance(content, str) else ""
    )


def _references(value: object) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    return tuple(item for item in items if isinstance(item, str) and item) if isinstance(items, list) else ()


def _plain_requests(rows: Sequence[PromptRow]) -> list[PromptRow]:
    """Return the plain requests that attacks lack: the anchor of every pair."""
    plain = {(row.kind, normalise_goal(row.goal)) for row in rows if row.family == PLAIN_FAMILY}
    added = []
    for row in rows:
        key = (row.kind, normalise_goal(row.goal))
        if row.kind in ("harmful", "harmless") and row.family != PLAIN_FAMILY and key not in plain:
            plain.add(key)
            ask = (Message(role="user", content=row.goal),)
            added.append(replace(row, id=f"{row.id}-plain", family=PLAIN_FAMILY, group="", messages=ask))
    return added
