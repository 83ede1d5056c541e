"""Name benchmarks: tasks of lm-eval, our own suites, and files of a user's own, which need no network.

A file is a table that `read_table` knows. Its rows tell what they are: `question` and `answer` ask for a
short answer (as GSM8K's rows do, whose answers end in "#### 18"), `question`, `choices` and `answer` for one
of several, `question` and `mc1_targets` are TruthfulQA's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rasa_moe.data.jsonl import listing
from rasa_moe.data.tables import FORMATS, TableRow, read_table, text_of
from rasa_moe.errors import ConfigError, DataError

Form = Literal["harness", "choices", "number", "words", "suite"]

DEFAULT_TASKS = ("mmlu", "gsm8k", "truthfulqa")
XSTEST = "xstest"
SUITES = (XSTEST, "strongreject")
_HARNESS_NAMES = {"truthfulqa": "truthfulqa_mc1"}
_GIVEN_NUMBER = re.compile(r"####\s*(-?[\d.,]*\d)\s*\Z")
_ONLY_NUMBER = re.compile(r"-?\$?[\d,]*\.?\d+")


@dataclass(frozen=True, kw_only=True)
class Task:
    """Hold one benchmark.

    Attributes:
        name: As the user wrote it.
        form: "harness" for a task of lm-eval by name, "suite" for one of ours, else what a file's rows ask.
        source: Name of the task in lm-eval, or of the public set or file of a suite.
        rows: Questions of a file: `question`, `gold`, and `choices` where there are some.
    """

    name: str
    form: Form
    source: str
    rows: tuple[Mapping[str, Any], ...] = ()


def parse_tasks(text: str) -> list[Task]:
    """Read a list such as "mmlu,gsm8k=FILE.jsonl,xstest".

    Raises:
        ConfigError: No task is named, or one twice.
        DataError: A file is missing, or its rows are not questions; they are listed by line.
    """
    tasks = [_task(entry.strip()) for entry in text.split(",") if entry.strip()]
    names = [task.name for task in tasks]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not tasks or repeated:
        said = f"names {repeated[0]} twice" if repeated else "names nothing"
        raise ConfigError(f"--tasks {said}; write a list such as {','.join(DEFAULT_TASKS)}")
    return tasks


def _task(entry: str) -> Task:
    name, equals, path = (part.strip() for part in entry.partition("="))
    is_file = bool(equals) or Path(name).suffix.lower() in FORMATS
    if name in SUITES:
        return Task(name=name, form="suite", source=path or name)
    if not is_file:
        return Task(name=name, form="harness", source=_HARNESS_NAMES.get(name, name))
    path = path or name
    form, rows = read_questions(path)
    return Task(name=name if equals else Path(path).stem, form=form, source=path, rows=rows)


def read_questions(path: str) -> tuple[Form, tuple[Mapping[str, Any], ...]]:
    """Read the questions of a file and tell what they ask for.

    Raises:
        DataError: As `parse_tasks`.
    """
    table = read_table(path).require_sound()
    rows: list[Mapping[str, Any]] = []
    problems: list[str] = []
    for entry in table.rows:
        try:
            rows.append(_question(entry))
        except ValueError as error:
            problems.append(f"line {entry.line}: {error}")
    if problems:
        raise DataError(listing(f"{path} has {len(problems)} rows that are no questions", problems))
    with_choices = sum("choices" in row for row in rows)
    if with_choices not in (0, len(rows)):
        raise DataError(f"{path} mixes questions with and without choices; give two files")
    if with_choices:
        return "choices", tuple(rows)
    return "number" if all(_is_number(row["gold"]) for row in rows) else "words", tuple(rows)


def _question(entry: TableRow) -> Mapping[str, Any]:
    fields = entry.fields
    question = text_of(fields.get("question")).strip()
    if not question:
        raise ValueError("there is no question")
    targets = fields.get("mc1_targets")
    if isinstance(targets, dict) and isinstance(targets.get("labels"), list) and 1 in targets["labels"]:
        choices, answer = targets.get("choices"), targets["labels"].index(1)
    else:
        choices, answer = fields.get("choices"), fields.get("answer")
    if choices is not None:
        return {"question": question, "choices": _texts(choices), "gold": _place(answer, _texts(choices))}
    text = text_of(answer).strip()
    if not text:
        raise ValueError("there is no answer")
    given = _GIVEN_NUMBER.search(text)
    return {"question": question, "gold": given[1].replace(",", "") if given else text}


def _texts(choices: object) -> list[str]:
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
        raise ValueError("choices should be a list of at least two texts")
    return [str(choice) for choice in choices]


def _place(answer: object, choices: Sequence[str]) -> int:
    """Return which choice is right: given by number from 0, by letter, or as the text itself."""
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    text = text_of(answer).strip()
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
    if len(text) == 1 and text.upper() in letters:
        return letters.index(text.upper())
    if text.isdecimal() and int(text) < len(choices):
        return int(text)
    raise ValueError(f"the answer {text[:40]!r} is none of the {len(choices)} choices")


def _is_number(text: str) -> bool:
    return _ONLY_NUMBER.fullmatch(text) is not None
