"""Read the files of a run directory strictly: what is wrong, in which file and line, and what to do."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rasa_moe.errors import RunError
from rasa_moe.report.numbers import Estimate

# Which stage writes a file again when it is missing or broken.
STAGE_OF_FILE = {
    "pairs.jsonl": "collect",
    "experts.json": "detect",
    "expert_scores.csv": "detect",
    "training.jsonl": "align",
    "evaluation.json": "evaluate",
    "audit.json": "audit",
    "reattack.json": "reattack",
    "benchmarks.json": "benchmark",
    "judges.json": "judge",
    "detection_checks.json": "detect-check",
}


def remedy(path: Path) -> str:
    """Return the command that writes a missing or broken file anew."""
    if path.parent.name == "generations":
        return f"run: rasa-moe evaluate {path.parent.parent}"
    if path.name in STAGE_OF_FILE:
        return f"run: rasa-moe {STAGE_OF_FILE[path.name]} {path.parent}"
    return "make the run again in a new directory with: rasa-moe run"


@dataclass(frozen=True)
class Record:
    """A JSON object or CSV row together with the place it came from, so that a complaint can name it."""

    values: Mapping[str, object]
    where: str
    remedy: str

    def fail(self, complaint: str) -> RunError:
        """Return the error for this record, ready to be raised."""
        return RunError(f"{self.where}: {complaint}; {self.remedy}")

    def text(self, key: str, *, default: str | None = None) -> str:
        """Return a string."""
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.fail(f"{key!r} should be text but is {_shown(value)}")
        return value

    def number(self, key: str, *, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a finite number within [low, high]."""
        value = self.optional_number(key, low=low, high=high)
        if value is None:
            raise self.fail(f"{key!r} should be a number but is missing or null")
        return value

    def optional_number(self, key: str, *, low: float = -math.inf, high: float = math.inf) -> float | None:
        """Return a finite number within [low, high], or None when it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.fail(f"{key!r} should be a number but is {_shown(value)}")
        if not low <= value <= high:
            raise self.fail(f"{key!r} should lie between {low:g} and {high:g} but is {_shown(value)}")
        return float(value)

    def count(self, key: str, *, default: int | None = None) -> int:
        """Return a whole number that is not negative."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.fail(f"{key!r} should be a count but is {_shown(value)}")
        return value

    def flag(self, key: str) -> bool:
        """Return true or false; absent counts as false."""
        return self.optional_flag(key) or False

    def optional_flag(self, key: str) -> bool | None:
        """Return true, false, or None when it is absent or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.fail(f"{key!r} should be true, false or null but is {_shown(value)}")
        return value

    def entries(self, key: str) -> tuple[Record, ...]:
        """Return a list of objects; absent counts as empty."""
        places = (f"{self.where}, entry {at} of {key!r}" for at in range(1, len(self._list(key)) + 1))
        return tuple(
            _as_record(item, place, self.remedy) for item, place in zip(self._list(key), places, strict=True)
        )

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings; absent counts as empty."""
        items = self._list(key)
        if not all(isinstance(item, str) for item in items):
            raise self.fail(f"{key!r} should be a list of texts")
        return tuple(str(item) for item in items)

    def counts(self, key: str) -> tuple[int, ...]:
        """Return a list of whole numbers."""
        return tuple(Record({key: item}, self.where, self.remedy).count(key) for item in self._list(key))

    def expert_ids(self, key: str) -> tuple[tuple[int, int], ...]:
        """Return a list of [layer, expert] pairs."""
        pairs = tuple(Record({key: item}, self.where, self.remedy).counts(key) for item in self._list(key))
        if any(len(pair) != 2 for pair in pairs):
            raise self.fail(f"{key!r} should be a list of [layer, expert] pairs")
        return tuple((pair[0], pair[1]) for pair in pairs)

    def estimate(self, rate: str = "rate", *, low: float = 0.0, high: float = 1.0) -> Estimate | None:
        """Return a rate with its interval, or None when the rate is null."""
        value = self.optional_number(rate, low=low, high=high)
        if value is None:
            return None
        interval = (self.number("ci_low", low=low, high=high), self.number("ci_high", low=low, high=high))
        if interval[0] > interval[1]:
            raise self.fail(f"'ci_low' {interval[0]:g} lies above 'ci_high' {interval[1]:g}")
        return Estimate(rate=value, low=interval[0], high=interval[1])

    def counted(self) -> Estimate | None:
        """Return the rate of `k` out of `n` with its interval, or None when nothing was counted."""
        k, n = self.count("k"), self.count("n")
        if k > n:
            raise self.fail(f"'k' {k} is larger than 'n' {n}")
        estimate = self.estimate() if n else None
        return None if estimate is None else replace(estimate, k=k, n=n)

    def _list(self, key: str) -> Sequence[object]:
        value = self.values.get(key, [])
        if not isinstance(value, list):
            raise self.fail(f"{key!r} should be a list but is {_shown(value)}")
        return value


def read_text(path: Path) -> str:
    """Return the text of a file; RunError when it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise RunError(f"{path} is missing; {remedy(path)}") from None
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is not UTF-8 text (byte {error.start}); {remedy(path)}") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); {remedy(path)}") from None


def read_json(path: Path) -> Record:
    """Read a file that holds one JSON object."""
    text = read_text(path)
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(f"{path}, line {error.lineno}: broken JSON ({error.msg}); {remedy(path)}") from None
    except RecursionError:
        raise RunError(f"{path}: JSON nested too deeply; {remedy(path)}") from None
    return _as_record(value, str(path), remedy(path))


def read_json_lines(path: Path) -> Iterator[Record]:
    """Yield one record a line; empty lines are passed over."""
    # Not splitlines(): it also breaks at characters such as U+2028, which JSON allows inside a string.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            value: object = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise RunError(f"{place}: broken JSON ({reason}); {remedy(path)}") from None
        yield _as_record(value, place, remedy(path))


def read_csv(path: Path, columns: Sequence[str], *, optional: Sequence[str] = ()) -> Iterator[Record]:
    """Yield one record a row with every column as a number; RunError when one of `columns` is missing."""
    reader = csv.DictReader(io.StringIO(read_text(path)))
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise RunError(f"{path}, line 1: no column {', '.join(map(repr, missing))}; {remedy(path)}")
    present = [column for column in optional if column in (reader.fieldnames or ())]
    for row in reader:
        place = f"{path}, line {reader.line_num}"
        yield Record({column: _number(row[column]) for column in (*columns, *present)}, place, remedy(path))


def _as_record(value: object, where: str, what_to_do: str) -> Record:
    if not isinstance(value, dict):
        raise RunError(f"{where}: should be an object but is {_shown(value)}; {what_to_do}")
    return Record(value, where, what_to_do)


def _number(text: str | None) -> object:
    try:
        return int(text or "")
    except ValueError:
        pass
    try:
        return float(text or "")
    except ValueError:
        return text


def _shown(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
