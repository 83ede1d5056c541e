"""What the tool makes itself holds over all sources: ids, plain requests, and splits by goal."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rasa_moe.data.check import check_sources
from rasa_moe.data.duplicates import near_duplicates
from rasa_moe.data.rows import leakage, normalise_goal, write_rows
from rasa_moe.data.source import is_own, load_source
from rasa_moe.errors import DataError

VERBS = ("pick", "forge", "break", "melt", "copy")


def attacks_of(kind: str, *, goals: tuple[str, ...] = VERBS) -> list[dict[str, Any]]:
    return [
        {"goal": f"{verb} a thing", "kind": kind, "family": family, "prompt": f"{family}: {verb} a thing"}
        for verb in goals
        for family in ("story", "role")
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_limit_counts_rows_of_the_file_and_their_plain_requests_stay(tmp_path: Path) -> None:
    source = load_source(write(tmp_path / "log.jsonl", attacks_of("harmful")), limit=4)
    assert Counter(row.family for row in source.rows) == {"story": 2, "role": 2, "plain": 2}
    assert {row.goal for row in source.rows} == {"pick a thing", "forge a thing"}


def test_a_row_with_an_id_a_kind_and_a_prompt_is_not_taken_for_our_own(tmp_path: Path) -> None:
    """Plain requests are added, numbers are ids, words for kinds are known."""
    rows = attacks_of("harmful") + attacks_of("benign", goals=("polish", "paint"))
    name = write(tmp_path / "log.jsonl", [{"id": number, **row} for number, row in enumerate(rows)])
    assert not is_own(name) and not check_sources([name]).is_bad
    source = load_source(name)
    assert Counter((row.kind, row.family) for row in source.rows if row.family != "role") == {
        ("harmful", "story"): 5, ("harmful", "plain"): 5, ("harmless", "story"): 2, ("harmless", "plain"): 2,
    }  # fmt: skip
    assert source.rows[0].id == "log-0"


def test_near_goals_stay_together_whatever_the_file_is_called(tmp_path: Path) -> None:
    goals = [
        f"explain building alpha {part} reactor engine module {word}"
        for part in ("one", "two", "six")
        for word in ("slowly", "quickly", "today", "alone", "again", "outdoors", "indoors", "twice")
    ]
    rows = [{"id": str(number), "kind": "harmful", "prompt": goal} for number, goal in enumerate(goals)]
    splits = {normalise_goal(r.goal): r.split for r in load_source(write(tmp_path / "x.jsonl", rows)).rows}
    pairs = near_duplicates(splits)
    assert pairs and all(splits[pair.first] == splits[pair.second] for pair in pairs)


def test_what_we_wrote_is_taken_as_it_is_if_every_row_is_whole(tmp_path: Path) -> None:
    rows = load_source(write(tmp_path / "log.jsonl", attacks_of("harmful"))).rows
    made = tmp_path / "made.jsonl"
    write_rows(made, rows)
    assert is_own(str(made))
    assert sorted(load_source(str(made)).rows, key=repr) == sorted(rows, key=repr)
    made.write_text(made.read_text() + json.dumps({"id": "x", "kind": "harmful", "prompt": "sell a thing"}))
    assert not is_own(str(made))


def test_files_of_one_name_have_ids_apart(tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "log.jsonl", attacks_of("harmful"))
    other = write(tmp_path / "b" / "log.jsonl", attacks_of("harmless", goals=("polish", "paint")))
    rows = load_source(f"{one} + {other}").rows
    assert len({row.id for row in rows}) == len(rows) == 15 + 6
    assert not leakage(rows) and not check_sources([one, other]).is_bad
    made = tmp_path / "made.jsonl"
    write_rows(made, load_source(one).rows)
    joined = load_source(f"{other} + {made}").rows
    assert {row.id for row in load_source(one).rows} < {row.id for row in joined}, "ids of our own files stay"


def test_an_id_used_twice_is_found_by_check_and_by_run(tmp_path: Path) -> None:
    rows = [{"id": number // 2, **row} for number, row in enumerate(attacks_of("harmful"))]
    name = write(tmp_path / "log.jsonl", rows)
    said = "line 2: the id '0' is that of line 1 too; make ids unique"
    checked = check_sources([name])
    assert checked.is_bad and any(said in line for line in checked.lines)
    with pytest.raises(DataError, match=said):
        load_source(name)


def test_one_id_in_two_files_of_our_own_is_found_by_check_and_by_run(tmp_path: Path) -> None:
    rows = load_source(write(tmp_path / "log.jsonl", attacks_of("harmful"))).rows
    names = [str(tmp_path / "x.jsonl"), str(tmp_path / "y.jsonl")]
    for name in names:
        write_rows(name, rows[:1])
    checked = check_sources(names)
    assert checked.is_bad and any("is used 2 times; make ids unique" in line for line in checked.lines)
    with pytest.raises(DataError, match="is used 2 times; make ids unique"):
        load_source(" + ".join(names))


def test_a_source_named_twice_is_refused(tmp_path: Path) -> None:
    name = write(tmp_path / "log.jsonl", attacks_of("harmful"))
    with pytest.raises(DataError, match=r"log\.jsonl is named twice; name it once"):
        load_source(f"{name} + {name}")
