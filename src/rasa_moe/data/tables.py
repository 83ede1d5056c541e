"""Read any table of text: CSV, TSV, JSON, JSON Lines, Parquet, or a data set of the hub, row by row.

Nothing is dropped in silence: a line that cannot be read is a problem with its number, for the caller to
raise or to print.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rasa_moe.data.hub import is_hub_name, read_hub
from rasa_moe.data.jsonl import bad_rows, listing
from rasa_moe.errors import DataError

FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_LONGEST_FIELD = 2**31 - 1


@dataclass(frozen=True)
class TableRow:
    """Hold one row: its number among the rows, its line in the file, and its fields by column."""

    number: int
    line: int
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Hold the rows that could be read and what was wrong with the others, each with its line."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    problems: tuple[str, ...] = ()

    def column(self, wanted: str) -> str:
        """Return the name of a column as the table spells it; case and outer spaces do not matter.

        Raises:
            DataError: There is no such column; the sentence names those found.
        """
        for name in self.columns:
            if name.strip().casefold() == wanted.strip().casefold():
                return name
        found = ", ".join(self.columns) or "none"
        raise DataError(f"{self.name} has no column {wanted!r}; its columns are {found}")

    def require_sound(self) -> Table:
        """Return the table itself.

        Raises:
            DataError: Some lines could not be read (up to 10 are listed), or there are no rows.
        """
        if self.problems:
            raise DataError(listing(f"{self.name} has {bad_rows(self.problems)}", self.problems))
        if not self.rows:
            raise DataError(f"{self.name} has no rows; give a file with at least one")
        return self


def read_table(name: str | Path) -> Table:
    """Read a table from a file, or from the hub by a name such as `hf:owner/name@revision#split`.

    The format is taken from the file's ending, and for other endings from its first character.

    Raises:
        DataError: The file is missing, not text where text is expected, or in no format known here.
    """
    if is_hub_name(str(name)):
        return _table(str(name), enumerate(read_hub(str(name)), start=1), [])
    path = Path(name)
    if path.is_dir():
        raise DataError(f"{path} is a directory; give a file, or hf:{path}#SPLIT for a saved data set")
    if not path.is_file():
        raise DataError(f"{path} does not exist; give the path of a CSV, JSON, JSONL or Parquet file")
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    text = _text_of(path)
    ending = path.suffix.lower() if path.suffix.lower() in FORMATS else _guess(text)
    if ending in (".csv", ".tsv"):
        return _read_csv(path, text, delimiter="\t" if ending == ".tsv" else ",")
    return _read_json(path, text) if ending == ".json" else _read_jsonl(path, text)


def text_of(value: object) -> str:
    """Return a field as text: nothing for None, JSON for what is neither text nor number."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start} is wrong); save it as UTF-8 and try again"
        ) from error


def _guess(text: str) -> str:
    return {"{": ".jsonl", "[": ".json"}.get(text.lstrip()[:1], ".csv")


def _read_csv(path: Path, text: str, *, delimiter: str) -> Table:
    _require_delimiter(path, text.partition("\n")[0], delimiter=delimiter)
    before = csv.field_size_limit(_LONGEST_FIELD)  # a model's answer may be longer than the usual limit
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader, [])]
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            raise DataError(f"{path} names the column {repeated[0]!r} twice; rename one of them")
        records: list[tuple[int, dict[str, Any]]] = []
        problems: list[str] = []
        line = reader.line_num + 1
        for values in reader:
            if values and len(values) != len(header):
                problems.append(f"line {line}: {len(values)} fields where the header names {len(header)}")
            elif values:
                records.append((line, dict(zip(header, values, strict=True))))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: broken CSV, {error}; mend the quotes there"
        ) from error
    finally:
        csv.field_size_limit(before)
    return _table(str(path), records, problems, columns=header)


def _require_delimiter(path: Path, header: str, *, delimiter: str) -> None:
    """Refuse another separator in the header at once: every row of the file would be a problem otherwise."""
    other = next((mark for mark in _DELIMITERS if mark in header), None)
    if delimiter not in header and other is not None:
        wanted, found = _DELIMITERS[delimiter], _DELIMITERS[other]
        raise DataError(
            f"{path}, line 1: the columns are separated by {found}, where a {path.suffix or 'text'} file has "
            f"{wanted}; save it with {wanted}" + (", or name it .tsv" if other == "\t" else "")
        )


def _read_jsonl(path: Path, text: str) -> Table:
    records: list[tuple[int, dict[str, Any]]] = []
    problems: list[str] = []
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {line}: broken JSON, {error}")
            continue
        if isinstance(record, dict):
            records.append((line, record))
        else:
            problems.append(f"line {line}: expected a JSON object in braces")
    return _table(str(path), records, problems)


def _read_json(path: Path, text: str) -> Table:
    """Read a list of objects, or one object that holds such a list or a list a column."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not JSON ({error}); a file with one object a line ends in .jsonl"
        ) from error
    if isinstance(value, dict):
        lists = {key: item for key, item in value.items() if isinstance(item, list)}
        rows = next((item for item in lists.values() if item and isinstance(item[0], dict)), None)
        if rows is None and lists and len({len(item) for item in lists.values()}) == 1:
            rows = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
        value = rows if rows is not None else [value]
    if not isinstance(value, list):
        raise DataError(f"{path} holds a {type(value).__name__}; give a list of JSON objects")
    good = [(number, item) for number, item in enumerate(value, start=1) if isinstance(item, dict)]
    bad = [
        f"item {n}: expected an object" for n, item in enumerate(value, start=1) if not isinstance(item, dict)
    ]
    return _table(str(path), good, bad)


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        content = pyarrow.parquet.read_table(path)
        return _table(
            str(path), enumerate(content.to_pylist(), start=1), [], columns=list(content.column_names)
        )
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} is not a Parquet file that can be read ({error})") from error


def _table(
    name: str,
    records: Iterable[tuple[int, Mapping[str, Any]]],
    problems: Iterable[str],
    *,
    columns: Iterable[str] = (),
) -> Table:
    rows = tuple(_numbered(records))
    seen = dict.fromkeys([*columns, *(key for row in rows for key in row.fields)])
    return Table(name=name, columns=tuple(seen), rows=rows, problems=tuple(problems))


def _numbered(records: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[TableRow]:
    for number, (line, fields) in enumerate(records, start=1):
        yield TableRow(number=number, line=line, fields=fields)
