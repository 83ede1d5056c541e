"""Read and write JSON Lines, one record a line, reporting every bad line at once.

A parser gets one decoded line and raises ValueError with what is wrong with it; the line number is added
here.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from rasa_moe.errors import DataError
from rasa_moe.files import write_text

SHOWN_PROBLEMS = 10

Record = TypeVar("Record")


def read_records(path: Path, parse: Callable[[Mapping[str, Any], int], Record]) -> list[Record]:
    """Parse every line, collecting problems instead of stopping at the first.

    Args:
        path: A UTF-8 text file; blank lines are skipped.
        parse: Turns one decoded object and its line number into a record.

    Raises:
        DataError: The file is missing, unreadable or empty, or some lines are bad; up to 10 are listed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; give the path of a JSONL file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    records: list[Record] = []
    problems: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(parse(record, number))
            else:
                problems.append(f"line {number}: expected a JSON object in braces")
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: broken JSON, {error.msg} at column {error.colno}")
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise DataError(listing(f"{path} has {bad_rows(problems)}", problems))
    if not records:
        raise DataError(f"{path} is empty; write one JSON object a line")
    return records


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as UTF-8 JSON Lines, readable for humans in every language."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    write_text(path, "".join(f"{line}\n" for line in lines))


def listing(headline: str, problems: Sequence[str]) -> str:
    """Join a headline and its first problems, and say how many more there are."""
    shown = "".join(f"\n  {problem}" for problem in problems[:SHOWN_PROBLEMS])
    hidden = len(problems) - SHOWN_PROBLEMS
    return f"{headline}:{shown}" + (f"\n  and {hidden} more" if hidden > 0 else "")


def bad_rows(problems: Sequence[str]) -> str:
    """Say how many rows are bad."""
    return f"{len(problems)} bad row{'s' if len(problems) > 1 else ''}"


def text_field(
    record: Mapping[str, Any], field: str, *, default: str | None = None, may_be_empty: bool = False
) -> str:
    """Return a string field, or raise ValueError if it is missing, not a string, or blank."""
    value = record.get(field, default)
    if value is None:
        raise ValueError(f"{field} is missing")
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        raise ValueError(f"{field} must be a non-empty string")
    return value


def choice_field(
    record: Mapping[str, Any], field: str, choices: Sequence[str], *, default: str | None = None
) -> str:
    """Return a field that holds one of the choices, or raise ValueError naming them."""
    value = record.get(field, default)
    if value not in choices:
        said = "is missing" if value is None else f"{value!r} is unknown"
        raise ValueError(f"{field} {said}; choose one of {', '.join(choices)}")
    return cast(str, value)


def reject_misspelt(record: Mapping[str, Any], *, known: Sequence[str]) -> None:
    """Refuse a field that is nearly one of ours: a typo in `split` would be ignored without a word."""
    for field in record:
        if field not in known and (close := difflib.get_close_matches(field, known, n=1, cutoff=0.8)):
            raise ValueError(f"unknown field {field!r}; did you mean {close[0]!r}?")
