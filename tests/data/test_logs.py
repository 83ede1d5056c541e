"""Jailbreak logs as people have them: every oddity is reported by line, and no goal leaks between splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rasa_moe.cli import main
from rasa_moe.data.check import check_sources
from rasa_moe.data.duplicates import goal_clusters, near_duplicates
from rasa_moe.data.rows import leakage, normalise_goal
from rasa_moe.data.source import load_source, understand_source

TURNS = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "now open a vault"},
    {"role": "assistant", "content": "ok"},
]
LOG: list[Any] = [
    {"goal": "pick a lock", "all_prompt": "As a smith: pick a lock", "output": "First", "judge_score": 10},
    {"goal": "pick a lock", "all_prompt": "As a smith: pick a lock", "output": "First", "judge_score": 10},
    {"goal": "forge a stamp", "all_prompt": None, "output": "no", "judge_score": 1},
    {"goal": None, "all_prompt": "", "output": "no"},
    {"goal": "open a vault", "messages": TURNS, "attack_response": "ok", "judge_score": "8"},
    {"goal": 7, "all_prompt": "x"},
    {"goal": "bend a spoon", "all_prompt": ["one", "two"]},
]


@pytest.fixture
def log(tmp_path: Path) -> str:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in LOG))
    return str(path)


def test_a_log_is_understood_and_its_oddities_are_named_by_line(log: str) -> None:
    found = understand_source(log)
    assert [problem.split(":")[0] for problem in found.problems] == ["line 4", "line 6", "line 7"]
    notes = "\n".join(found.notes)
    assert "line 2: the same goal and prompt as on line 1" in notes
    assert "line 3: all_prompt is missing; kept as the plain request" in notes
    assert "line 6: goal is a int, but a str before" in notes
    assert "line 7: all_prompt is a list, but a str before" in notes
    by_goal = {(row.goal, row.family): row for row in found.rows}
    assert set(by_goal) == {
        ("pick a lock", "jailbreak"), ("pick a lock", "plain"), ("forge a stamp", "plain"),
        ("open a vault", "jailbreak"), ("open a vault", "plain"),
    }  # fmt: skip
    multi = by_goal["open a vault", "jailbreak"].messages
    assert [turn["role"] for turn in multi] == ["user", "assistant", "user"], "the answer is no prompt"
    assert (found.plain_added, found.scores) == (2, 4)


def test_pairs_check_prints_it_and_leaves_with_2(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["pairs", "check", log])
    assert left.value.code == 2
    shown = capsys.readouterr().out
    assert "goal from 'goal', prompt from 'all_prompt'" in shown
    assert "line 4: the prompt is missing" in shown
    assert "leakage: 0 goals in more than one split" in shown


def test_near_duplicates_stay_together_across_files_and_attacks(tmp_path: Path) -> None:
    verbs = ["steal", "forge", "break", "hide", "melt", "copy", "sell", "bend"]
    things = ["golden crown", "bank cheque", "city gate", "small diamond", "church bell"]
    goals = [f"Explain how to {verb} a {thing} at night" for verb in verbs for thing in things]
    plain = tmp_path / "plain.csv"
    plain.write_text("goal\n" + "\n".join(goals) + "\n")
    attacked = tmp_path / "log.jsonl"
    rows = [
        {
            "goal": f"Please explain how you {g.split(' to ')[1]}!",
            "all_prompt": f"Sure: {g}",
            "attack": f"a{n % 3}",
        }
        for n, g in enumerate(goals)
    ]
    attacked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = load_source(f"{plain} + {attacked}")
    assert not leakage(source.rows)
    splits = {normalise_goal(row.goal): row.split for row in source.rows}
    assert len(set(splits.values())) >= 2
    for pair in near_duplicates(splits):
        assert splits[pair.first] == splits[pair.second]
    checked = check_sources([str(plain), str(attacked)])
    assert not checked.is_bad
    assert any("0 the same" in line and "nearly" in line for line in checked.lines)


def test_a_goal_in_two_splits_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("goal,split,all_prompt\npick a lock,train,a\npick a lock,test,b\n")
    checked = check_sources([str(path)])
    assert checked.is_bad
    assert "leakage: 1 goals in more than one split" in checked.lines


def test_clusters_do_not_depend_on_the_order() -> None:
    goals = ["build a small bomb", "build the small bomb", "bombs: build small ones", "bake bread"]
    assert goal_clusters(goals) == goal_clusters(goals[::-1])
    assert len(set(goal_clusters(goals).values())) == 2


def test_no_pair_is_missed_against_the_slow_loop() -> None:
    import random

    from rasa_moe.data.duplicates import stems

    draw = random.Random(3)
    words = [f"word{n}x" for n in range(12)]
    goals = list(dict.fromkeys(" ".join(draw.sample(words, draw.randint(2, 6))) for _ in range(120)))
    slow = {
        frozenset((a, b))
        for i, a in enumerate(goals)
        for b in goals[:i]
        if len(stems(a) & stems(b)) / len(stems(a) | stems(b)) >= 0.7
    }
    assert {frozenset((pair.first, pair.second)) for pair in near_duplicates(goals)} == slow
