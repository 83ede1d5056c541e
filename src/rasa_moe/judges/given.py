"""Read answers that were given before: from tables of requests and answers, or the generations of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rasa_moe.data.rows import KINDS, Kind, Message, PromptRow, check_messages
from rasa_moe.data.tables import Table, read_table, text_of
from rasa_moe.errors import ConfigError, DataError
from rasa_moe.judges.labels import refusal_label
from rasa_moe.rundir import evaluated_files

REQUEST_COLUMNS = ("request", "prompt", "goal", "question", "instruction", "behavior", "forbidden_prompt")
ANSWER_COLUMNS = ("answer", "completion", "response", "output", "generation", "attack_response")


@dataclass(frozen=True)
class Columns:
    """Name the columns that matter; None: find them by their usual names (no label is looked for)."""

    request: str | None = None
    answer: str | None = None
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class GivenAnswer:
    """Hold one row of the input: where it stands, what was asked, answered, and labelled by people.

    `file` is that of a run's generations, which hold one model each.
    """

    number: int
    fields: Mapping[str, Any]
    row: PromptRow
    answer: str
    label: str | None = None
    file: str = ""


def load_answers(path: Path, *, columns: Columns = Columns(), kind: str = "harmful") -> list[GivenAnswer]:
    """Read answers from a table, or from the generations of a run directory.

    Args:
        path: A file that `read_table` knows, or a run directory.
        columns: Which columns hold what; not needed for a run directory.
        kind: What the requests of a table are; the rows of a run say it themselves.

    Raises:
        DataError: The file, one of its lines or a column is missing or broken.
        ConfigError: There is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind {kind!r}; choose one of {', '.join(KINDS)}")
    if path.is_dir():
        return _of_run(path)
    table = read_table(str(path)).require_sound()
    request = _column(table, columns.request, usual=REQUEST_COLUMNS, option="--request-column")
    answer = _column(table, columns.answer, usual=ANSWER_COLUMNS, option="--answer-column")
    label = table.column(columns.label) if columns.label else None
    answers = []
    for entry in table.rows:
        asked = text_of(entry.fields.get(request))
        row = PromptRow(
            id=str(entry.number),
            goal=asked,
            kind=cast(Kind, kind),
            messages=(Message(role="user", content=asked),),
        )
        answers.append(
            GivenAnswer(
                number=entry.number,
                fields=entry.fields,
                row=row,
                answer=text_of(entry.fields.get(answer)),
                label=_label_of(entry.fields.get(label), where=f"{table.name}, line {entry.line}")
                if label
                else None,
            )
        )
    return answers


def _of_run(path: Path) -> list[GivenAnswer]:
    files = evaluated_files(path)
    if not files:
        raise DataError(f"{path} holds no answers of an evaluation; finish the run, or give a table")
    references = _references(path)
    answers: list[GivenAnswer] = []
    for file in files:
        for entry in read_table(file).require_sound().rows:
            fields = {"file": file.name, **entry.fields}
            try:
                row = PromptRow(
                    id=str(fields["id"]),
                    goal=str(fields["goal"]),
                    kind=cast(Kind, fields["kind"]),
                    family=str(fields["family"]),
                    messages=check_messages(fields["messages"], field="messages"),
                    reference=_reference(references, str(fields["id"])),
                )
                answer = text_of(fields["answer"])
            except (KeyError, ValueError) as error:
                raise DataError(f"{file}, line {entry.line}: no generation of a run ({error})") from error
            number = len(answers) + 1
            answers.append(GivenAnswer(number=number, fields=fields, row=row, answer=answer, file=file.name))
    return answers


def _reference(references: Mapping[str, tuple[str, ...]], name: str) -> tuple[str, ...]:
    """Return what is looked for in the answer to a prompt; a copy in other words ("~1") asks for the same."""
    return references.get(name) or references.get(name.rpartition("~")[0], ())


def _references(path: Path) -> Mapping[str, tuple[str, ...]]:
    """Return what exact judges look for, by row id, from the prompts that the run names."""
    if not (path / "config.yaml").is_file():
        return {}
    from rasa_moe.attacks.source import run_source
    from rasa_moe.config import load_config

    return {row.id: row.reference for row in run_source(load_config(path / "config.yaml")).rows}


def _column(table: Table, wanted: str | None, *, usual: Sequence[str], option: str) -> str:
    if wanted is not None:
        return table.column(wanted)
    found = [name for name in usual if name in table.columns]
    if not found:
        columns = ", ".join(table.columns) or "none"
        raise DataError(f"{table.name} has no column named as usual; give {option}, one of: {columns}")
    return found[0]


def _label_of(value: object, *, where: str) -> str | None:
    label = refusal_label(value)
    if label is None and text_of(value).strip():
        raise DataError(f"{where}: the label {value!r} names neither refusal nor compliance; relabel it")
    return label
