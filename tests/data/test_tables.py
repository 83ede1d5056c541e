"""Every format gives the same rows; what cannot be read is named by line; columns and kinds are guessed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from rasa_moe.data import hub
from rasa_moe.data.columns import map_columns, parse_columns
from rasa_moe.data.public import PUBLIC_SETS
from rasa_moe.data.rows import write_rows
from rasa_moe.data.source import load_source, understand_source
from rasa_moe.data.tables import Table, TableRow, read_table
from rasa_moe.errors import ConfigError, DataError

ROWS = [{"Behavior": "pick a lock", "n": "1"}, {"Behavior": 'forge, "quoted"\nstamp', "n": "2"}]


def write(folder: Path, ending: str) -> str:
    path = folder / f"goals.{ending}"
    if ending == "csv":
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["Behavior", "n"])
            writer.writeheader()
            writer.writerows(ROWS)
    elif ending == "json":
        path.write_text(json.dumps({"data": ROWS}))
    elif ending == "jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in ROWS))
    elif ending == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    else:
        datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(folder / "saved"))
        return f"hf:{folder / 'saved'}#test"
    return str(path)


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet", "hub"])
def test_every_format_gives_the_same_goals(tmp_path: Path, ending: str) -> None:
    name = write(tmp_path, ending)
    assert [dict(row.fields) for row in read_table(name).rows] == ROWS
    source = load_source(name)
    assert [row.goal for row in source.rows] == [row["Behavior"] for row in ROWS]
    assert {(row.kind, row.family) for row in source.rows} == {("harmful", "plain")}


def test_a_data_set_of_the_hub_is_asked_for_by_configuration_revision_and_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def load(path: str, config: str | None, *, revision: str | None, split: str) -> list[dict[str, str]]:
        asked.append((path, config, revision, split))
        return [{"goal": "pick a lock"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(load_source("hf:walled/Set:hard@abc123#test").rows) == 1
    assert len(load_source("hf:walled/Set").rows) == 1
    assert asked == [("walled/Set", "hard", "abc123", "test"), ("walled/Set", None, None, "train")]
    with pytest.raises(DataError, match="no data set name"):
        hub.parse_hub_name("hf:#x")


@pytest.mark.parametrize("name", sorted(PUBLIC_SETS))
def test_a_public_set_is_known_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = PUBLIC_SETS[name]
    values = dict.fromkeys(filter(None, known.columns.values()), "some text")
    if "kind" in known.columns:
        values[known.columns["kind"]] = next(iter(known.kinds))
    monkeypatch.setattr(hub, "_load", lambda wanted: [values])
    found = understand_source(name)
    assert not found.problems
    expected = next(iter(known.kinds.values()), known.kind)
    assert {row.kind for row in found.rows} == {expected}


def test_of_a_conversation_only_its_first_request_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [{"role": "user", "content": "bake"}, {"role": "assistant", "content": "Flour."}]
    row = {"prompt": "bake", "prompt_id": "1", "messages": [*turns, {"role": "user", "content": "and then?"}]}
    monkeypatch.setattr(hub, "_load", lambda wanted: [row])
    (found,) = understand_source("ultrachat").rows
    assert [message["content"] for message in found.messages] == ["bake"]
    assert (found.family, found.kind) == ("plain", "harmless")


def test_a_kind_that_is_said_behind_a_set_counts_or_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "_load", lambda wanted: [{"instruction": "bake", "data_type": "vanilla_benign"}])
    assert [row.kind for row in understand_source("alpaca as question").rows] == ["question"]
    assert [row.kind for row in understand_source("alpaca", kind="harmful").rows] == ["harmless"]
    with pytest.raises(
        ConfigError, match="wildjailbreak say their kinds themselves; leave 'as harmful' away"
    ):
        understand_source("wildjailbreak as harmful")
    path = tmp_path / "own.jsonl"
    write_rows(path, understand_source("alpaca").rows)
    with pytest.raises(ConfigError, match=r"own\.jsonl say their kinds themselves"):
        understand_source(f"{path} as question")


def test_lines_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "goals.jsonl"
    path.write_text('{"goal": "a"}\n{"goal": \n[1]\n{"goal": "b"}\n')
    table = read_table(path)
    assert [row.line for row in table.rows] == [1, 4]
    assert [problem.split(":")[0] for problem in table.problems] == ["line 2", "line 3"]
    with pytest.raises(DataError, match="2 bad rows"):
        table.require_sound()
    (tmp_path / "x.csv").write_text("a,b\n1,2\n1\n")
    assert read_table(tmp_path / "x.csv").problems == ("line 3: 1 fields where the header names 2",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"\xff\xfe\x00", "not UTF-8"),
        ("a.csv", b"a,a\n1,2\n", "names the column 'a' twice"),
        ("a.json", b"{", "is not JSON"),
        ("a.parquet", b"PAR1", "not a Parquet file"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)


def table_of(*rows: dict[str, Any]) -> Table:
    numbered = tuple(TableRow(number=n, line=n, fields=row) for n, row in enumerate(rows, start=1))
    return Table(name="t.csv", columns=tuple(rows[0]), rows=numbered)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "g"}, {"goal": "prompt"}),
        ({"prompt": "g", "all_prompt": "p"}, {"goal": "prompt", "prompt": "all_prompt"}),
        (
            {"goal": "g", "prompt": "p", "output": "o"},
            {"goal": "goal", "prompt": "prompt", "answer": "output"},
        ),
        ({"Goal": "g", "messages": []}, {"goal": "Goal", "prompt": "messages"}),
        ({"forbidden_prompt": "g"}, {"goal": "forbidden_prompt"}),
        ({"prompt": "g", "label": "safe"}, {"kind": "label", "goal": "prompt"}),
        ({"prompt": "g", "label": "3"}, {"goal": "prompt"}),
    ],
)
def test_columns_are_guessed(row: dict[str, Any], expected: dict[str, str]) -> None:
    assert map_columns(table_of(row), {}) == expected


def test_a_user_names_columns_and_wrong_names_are_refused(tmp_path: Path) -> None:
    assert parse_columns(["goal = My Column"]) == {"goal": "My Column"}
    for wrong in ("goal", "goool=x", "goal="):
        with pytest.raises(ConfigError, match="should look like goal=COLUMN"):
            parse_columns([wrong])
    path = tmp_path / "x.csv"
    path.write_text("My Column\npick a lock\n")
    with pytest.raises(DataError, match="1 bad row"):
        load_source(str(path))
    assert load_source(str(path), columns=["goal=my column"]).rows[0].goal == "pick a lock"
    with pytest.raises(DataError, match="no column 'other'; its columns are My Column"):
        load_source(str(path), columns=["goal=other"])


def test_a_request_keeps_the_text_it_speaks_of(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('Behavior,ContextString\nsummarise it,"a long text"\nsummarise it,other\nplain one,\n')
    goals = [row.goal for row in load_source(str(path)).rows]
    assert goals == ["a long text\n\nsummarise it", "other\n\nsummarise it", "plain one"]
