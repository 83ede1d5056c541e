"""A blank cell is never another value: the row is named by its line, or follows what is known of its goal."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from rasa_moe.data.check import check_sources
from rasa_moe.data.source import load_source, understand_source
from rasa_moe.data.understand import Understood
from rasa_moe.errors import DataError

WRAPPED = {"goal": "pick a lock", "kind": "harmful", "family": "story", "prompt": "A tale: pick a lock"}


def csv_of(folder: Path, *rows: dict[str, str]) -> str:
    path = folder / "log.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def jsonl_of(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def found_in(folder: Path, *rows: dict[str, Any]) -> Understood:
    return understand_source(jsonl_of(folder, *rows))


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ({"kind": ""}, "line 3: kind is empty; choose one of harmful, harmless, question, ability"),
        ({"goal": ""}, "line 3: goal is empty; give the plain request that the prompt wraps, or the family"),
        ({"goal": " ", "family": ""}, "line 3: goal is empty; give the plain request"),
        ({"goal": "", "kind": "harmless"}, "line 3: goal is empty; give the plain request"),
    ],
    ids=["kind", "goal", "goal and family", "goal of a harmless request"],
)
def test_a_blank_kind_or_goal_makes_a_bad_row(tmp_path: Path, cells: dict[str, str], problem: str) -> None:
    name = csv_of(tmp_path, WRAPPED, {**WRAPPED, "prompt": "Else: pick a lock", **cells})
    found = understand_source(name)
    assert [line.startswith(problem) for line in found.problems] == [True]
    assert {row.family for row in found.rows} == {"story", "plain"}
    assert check_sources([name]).is_bad
    with pytest.raises(DataError, match="1 bad row"):
        load_source(name)


def test_a_goal_may_be_blank_where_nothing_is_wrapped(tmp_path: Path) -> None:
    rows = [
        {**WRAPPED, "goal": "", "family": "Plain", "prompt": "forge a stamp"},
        {**WRAPPED, "goal": "", "kind": "ability", "family": "sums", "prompt": "1 + 1"},
        {**WRAPPED, "goal": "", "kind": "question", "family": "", "prompt": "why locks?"},
    ]
    found = found_in(tmp_path, *rows)
    assert not found.problems
    assert [(row.goal, row.family) for row in found.rows] == [
        ("forge a stamp", "plain"), ("1 + 1", "sums"), ("why locks?", "log"),
    ]  # fmt: skip


def test_attacks_without_a_column_of_goals_are_one_problem(tmp_path: Path) -> None:
    attacks = [{"attack": f"a{n}", "prompt": f"Tale {n}", "label": "harmful"} for n in range(30)]
    found = found_in(tmp_path, {"attack": "plain", "prompt": "pick a lock", "label": "harmful"}, *attacks)
    assert found.problems == (
        "line 2: no column holds the goal of the attack 'a0', nor those of other attacks; add a column goal "
        "with the plain request that each attack wraps",
    )
    assert [(row.goal, row.family) for row in found.rows] == [("pick a lock", "plain")]


def test_an_attack_that_is_its_goal_is_kept_plain_and_named(tmp_path: Path) -> None:
    same = {**WRAPPED, "prompt": "pick a lock"}
    assert found_in(tmp_path, same).notes == ("line 1: prompt is the goal itself; kept as the plain request",)
    del same["prompt"]
    assert found_in(tmp_path, same).notes == ("line 1: prompt is missing; kept as the plain request",)


def test_a_blank_split_follows_the_same_goal_and_then_near_ones(tmp_path: Path) -> None:
    goals = [f"explain building the alpha station reactor engine module {word}" for word in "abcdefgh"]
    named = [
        {"goal": goals[0], "prompt": "A: x", "split": "validation"},
        {"goal": goals[1], "prompt": "A: y", "split": "test"},
    ]
    blank = [{"goal": goal, "prompt": f"B: {goal}", "split": ""} for goal in goals]
    name = csv_of(tmp_path, blank[0], *named, *blank[1:])
    splits = {row.goal: row.split for row in load_source(name).rows}
    assert splits == {goal: "test" if goal == goals[1] else "validation" for goal in goals}
    assert not check_sources([name]).is_bad


@pytest.mark.parametrize(
    ("written", "kind"), [("Harmful", "harmful"), ("BENIGN", "harmless"), (" Question ", "question")]
)
def test_a_kind_has_any_case(tmp_path: Path, written: str, kind: str) -> None:
    for column in ("kind", "label"):
        (row,) = found_in(tmp_path, {"prompt": "pick a lock", column: written}).rows
        assert row.kind == kind


def test_references_are_texts(tmp_path: Path) -> None:
    row = {"prompt": "1 + 1", "kind": "ability"}
    assert found_in(tmp_path, {**row, "reference": ["2", "two"]}).rows[0].reference == ("2", "two")
    assert found_in(tmp_path, {**row, "reference": ""}).rows[0].reference == ()
    assert found_in(tmp_path, {**row, "reference": 2}).problems == (
        "line 1: reference must be a string or a list of strings",
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "x.csv",
            '"Goal";"label"\na;safe\n',
            "separated by semicolons, where a .csv file has commas; save it",
        ),
        ("x.csv", "Goal\tlabel\na\tsafe\n", "separated by tabs, where a .csv .* or name it .tsv"),
        ("x.tsv", "Goal,label\na,safe\n", "separated by commas, where a .tsv file has tabs"),
    ],
)
def test_another_separator_is_one_sentence(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        load_source(str(tmp_path / name))


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_rows_is_a_problem_that_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_text(content)
    checked = check_sources([str(file)], columns=[], kind="harmful")
    assert checked.is_bad
    assert any("there are no rows" in line for line in checked.lines)
    assert "  problems: none" not in checked.lines
