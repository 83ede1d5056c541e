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

from rasa_moe.data.cells import conversation, kind_of, references
from rasa_moe.data.columns import KIND_WORDS, map_columns, spare_columns
from rasa_moe.data.rows import (
    PLAIN_FAMILY,
    SPLITS,
    Kind,
    Message,
    PromptRow,
    Split,
    normalise_goal,
    split_of,
)
from rasa_moe.data.tables import Table, TableRow, text_of

_NOTHING: tuple[Any, ...] = (None, "", [])
_REQUESTS = ("harmful", "harmless")


@dataclass(frozen=True)
class Understood:
    """Hold the rows of a table, which column was taken for what, and what is wrong by line.

    Attributes:
        rows: Good rows, and the plain requests that were added for attacks without one.
        columns: Role -> column; empty for rows of our own.
        problems: Lines that gave no row.
        notes: Lines that repeat an earlier one (dropped) or change a column's type.
        answers: Rows with a recorded answer; it is not used, because pairs need the model's own.
        scores: Rows with a recorded score of a judge; not used either.
        plain_added: Plain requests that were added.
        fixed: Ids of the rows that name their split.
        is_own: Whether the rows are in the form that this project writes, and were taken as they are.
    """

    rows: tuple[PromptRow, ...]
    columns: Mapping[str, str]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    answers: int = 0
    scores: int = 0
    plain_added: int = 0
    fixed: frozenset[str] = frozenset()
    is_own: bool = False


class _GoalUnknownError(ValueError):
    """Say that an attack's goal is not given: without it there is neither a pair nor a split."""


@dataclass
class _Counts:
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    answers: int = 0
    scores: int = 0
    types: dict[str, type] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)


def understand(
    table: Table,
    *,
    columns: Mapping[str, str],
    kind: Kind = "harmful",
    kinds: Mapping[str, Kind] | None = None,
    limit: int | None = None,
) -> Understood:
    """Read a table as prompt rows, collecting problems by line.

    Args:
        table: What was read.
        columns: Role -> column, as the user names them; the others are found by their usual names.
        kind: What the requests are where no column says so.
        kinds: Values of the kind column that stand for a kind of ours.
        limit: Most rows kept of the table, the first ones; plain requests are added for those.
    """
    if not table.rows:
        return Understood((), {}, table.problems)
    kinds = {**KIND_WORDS, **(kinds or {})}
    mapping = map_columns(table, columns, kinds=kinds)
    spare = spare_columns(table, mapping, columns)
    counts = _Counts(problems=list(table.problems))
    if "goal" not in mapping and "prompt" not in mapping:
        listed = ", ".join(table.columns) or "none"
        counts.problems.append(f"no column holds goals or prompts; name it with goal=COLUMN ({listed})")
        return Understood((), mapping, tuple(counts.problems))
    rows = _good_rows(table, mapping, spare, counts, kind=kind, kinds=kinds)[:limit]
    plain = _plain_requests(rows, counts)
    return Understood(
        rows=(*rows, *plain),
        columns=mapping,
        problems=tuple(counts.problems),
        notes=tuple(counts.notes),
        answers=counts.answers,
        scores=counts.scores,
        plain_added=len(plain),
        fixed=frozenset(counts.fixed),
    )


def _good_rows(
    table: Table,
    mapping: Mapping[str, str],
    spare: Mapping[str, Sequence[str]],
    counts: _Counts,
    *,
    kind: Kind,
    kinds: Mapping[str, Kind],
) -> list[PromptRow]:
    rows, line_of, line_of_id = list[PromptRow](), dict[str, int](), dict[str, int]()
    for entry in table.rows:
        try:
            row = _row_of(entry, _filled(entry, mapping, spare), counts, table=table, kind=kind, kinds=kinds)
        except ValueError as error:
            counts.problems.append(f"line {entry.line}: {error}")
            if isinstance(error, _GoalUnknownError) and "goal" not in mapping:
                break  # it is true of every attack of the file, and is said once
            continue
        key = repr((normalise_goal(row.goal), row.kind, row.family, row.messages))
        first, first_of_id = line_of.get(key), line_of_id.get(row.id)
        if first is not None:
            counts.notes.append(f"line {entry.line}: the same goal and prompt as on line {first}")
        elif first_of_id is not None:
            said = _cell(entry, mapping, "id") or str(entry.number)
            counts.problems.append(
                f"line {entry.line}: the id {said!r} is that of line {first_of_id} too; make ids unique"
            )
        else:
            line_of[key] = line_of_id[row.id] = entry.line
            rows.append(row)
            if _cell(entry, mapping, "split"):
                counts.fixed.add(row.id)
    return rows


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
    goal = (goal or "").strip()
    has_prompt = value("prompt") not in _NOTHING
    if not has_prompt and not goal:
        raise ValueError("the prompt is missing")
    messages = conversation(value("prompt"), column=mapping["prompt"]) if has_prompt else ()
    row_kind = kind_of(value("kind"), column=mapping["kind"], kinds=kinds) if "kind" in mapping else kind
    family = _cell(entry, mapping, "family")
    if not goal:
        _require_no_attack(mapping, kind=row_kind, family=family)
        goal = messages[-1]["content"].strip()
    if text_of(value("context")).strip() and not messages:
        # Without the text that it speaks of, the request is another one.
        goal = f"{text_of(value('context')).strip()}\n\n{goal}"
    is_plain = not messages or [normalise_goal(m["content"]) for m in messages] == [normalise_goal(goal)]
    is_lost = is_plain and row_kind in _REQUESTS and _names_attack(family)
    if is_lost or ("prompt" in mapping and not has_prompt):
        what = f"{mapping.get('prompt', 'prompt')} is {'the goal itself' if has_prompt else 'missing'}"
        counts.notes.append(f"line {entry.line}: {what}; kept as the plain request")
    stem = stem_of(table.name)
    split = _cell(entry, mapping, "split") or split_of(goal)
    if split not in SPLITS:
        raise ValueError(f"the split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    return PromptRow(
        id=f"{stem}-{_cell(entry, mapping, 'id') or entry.number}",
        goal=goal,
        kind=row_kind,
        family=_family_of(family, kind=row_kind, is_plain=is_plain, stem=stem),
        group=_cell(entry, mapping, "group"),
        split=cast(Split, split),
        messages=messages or (Message(role="user", content=goal),),
        reference=references(value("reference")),
    )


def _cell(entry: TableRow, mapping: Mapping[str, str], role: str) -> str:
    return text_of(entry.fields.get(mapping[role])).strip() if role in mapping else ""


def _names_attack(family: str) -> bool:
    return family.casefold() not in ("", PLAIN_FAMILY)


def _require_no_attack(mapping: Mapping[str, str], *, kind: Kind, family: str) -> None:
    """Refuse a jailbreak without the goal behind it: taken for the goal, it would become a plain request.

    A prompt alone is a plain request, unless it names an attack or stands in a log whose other rows do.
    """
    if kind not in _REQUESTS or family.casefold() == PLAIN_FAMILY:
        return
    if "goal" in mapping:
        raise _GoalUnknownError(
            f"{mapping['goal']} is empty; give the plain request that the prompt wraps, or the family "
            f"{PLAIN_FAMILY} if it wraps none"
        )
    if family:
        raise _GoalUnknownError(
            f"no column holds the goal of the attack {family!r}, nor those of other attacks; add a column "
            "goal with the plain request that each attack wraps"
        )


def _family_of(family: str, *, kind: Kind, is_plain: bool, stem: str) -> str:
    if not is_plain:
        return (family if _names_attack(family) else family.casefold()) or "jailbreak"
    if kind in _REQUESTS:
        return PLAIN_FAMILY
    # Questions and abilities have no attack around them; their family says which set they come from.
    return family if _names_attack(family) else stem


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


def _plain_requests(rows: Sequence[PromptRow], counts: _Counts) -> list[PromptRow]:
    """Return the plain requests that attacks lack: the anchor of every pair."""
    plain = {(row.kind, normalise_goal(row.goal)) for row in rows if row.family == PLAIN_FAMILY}
    added = []
    for row in rows:
        key = (row.kind, normalise_goal(row.goal))
        if row.kind in _REQUESTS and row.family != PLAIN_FAMILY and key not in plain:
            plain.add(key)
            ask = (Message(role="user", content=row.goal),)
            request = replace(row, id=f"{row.id}-plain", family=PLAIN_FAMILY, group="", messages=ask)
            added.append(request)
            if row.id in counts.fixed:
                counts.fixed.add(request.id)
    return added
