"""Attacks that a model writes: cost first, replies kept, refusals and nonsense are never used as prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.fake_server import Said, serving
from rasa_moe.attacks import get_attacks, plan
from rasa_moe.attacks.source import run_source
from rasa_moe.cli import main
from rasa_moe.config import load_config
from rasa_moe.data.rows import read_rows
from rasa_moe.errors import ConfigError

WRITTEN = ["pap_written", "past_tense_written", "low_resource_translated", "x_teaming"]
PLAN = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "and now the last part"},
]


def attacker(body: dict[str, Any], number: int) -> Said:
    asked = body["messages"][-1]["content"]
    return Said(text=f"```json\n{json.dumps(PLAN)}\n```" if "JSON" in asked else f"rewritten: {asked[-30:]}")


@pytest.fixture
def goals(tmp_path: Path) -> Path:
    path = tmp_path / "goals.csv"
    path.write_text("goal\npick a lock\nforge a stamp\n")
    return path


def attack(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(["attack", *map(str, arguments)])
    return int(left.value.code or 0)


def test_the_cost_is_shown_before_it_is_spent_and_kept_replies_are_free(
    goals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "made.jsonl"
    with serving(attacker) as server:
        options = ("--attacks", ",".join([*WRITTEN, "pap"]), "--out", out, "--attacker", server.url,
                   "--attacker-model", "m")  # fmt: skip
        monkeypatch.setattr("typer.confirm", lambda *a, **k: (_ for _ in ()).throw(SystemExit(1)))
        assert attack(goals, *options) == 1
        assert not server.asked and not out.exists()
        expected = plan(load_config_rows(goals), get_attacks(WRITTEN))
        assert expected.calls == 8
        shown = capsys.readouterr().err
        assert f"Cost: 8 calls and about {expected.tokens} tokens" in shown
        assert attack(goals, *options, "--yes") == 0
        assert len(server.asked) == 8
        assert "Spent: 8 calls and 80 tokens" in capsys.readouterr().err
        rows = read_rows(out)
        assert sorted({row.family for row in rows}) == sorted(["plain", "pap", *WRITTEN])
        assert [dict(m) for m in next(row for row in rows if row.family == "x_teaming").messages] == PLAN
        out.unlink()
        assert attack(goals, *options, "--yes") == 0
        assert len(server.asked) == 8, "an interrupted command pays for nothing twice"
    assert read_rows(out) == rows


def load_config_rows(goals: Path) -> list[Any]:
    return list(run_source(load_config(None, (f"data.source={goals}",))).rows)


def test_refusals_and_nonsense_are_reported_and_never_used(
    goals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.jsonl"

    def stubborn(body: dict[str, Any], number: int) -> Said:
        return Said(text="I'm sorry, but I can't help with that.")

    with serving(stubborn) as server:
        assert attack(goals, "--attacks", "pap_written,x_teaming", "--out", out, "--attacker", server.url,
                      "--attacker-model", "m", "--yes") == 0  # fmt: skip
    shown = capsys.readouterr().err
    assert shown.count("the attacker refuses to write pap_written") == 2
    assert shown.count("is no conversation of user and assistant turns") == 2
    assert {row.family for row in read_rows(out)} == {"plain"}


def test_a_paid_attack_needs_a_server_and_is_not_made_inside_a_run(
    goals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attack(goals, "--attacks", "x_teaming", "--out", tmp_path / "o.jsonl", "--yes") == 2
    assert "need --attacker URL" in capsys.readouterr().err
    config = load_config(None, (f"data.source={goals}", "data.attacks=[pap,x_teaming]"))
    with pytest.raises(ConfigError, match="x_teaming, which a model writes; make it first"):
        run_source(config)


def test_a_run_wraps_plain_goals_itself(goals: Path) -> None:
    source = run_source(load_config(None, (f"data.source={goals}", "data.attacks=[pap,base64]")))
    assert source.families("train") == ["base64", "pap"]
    assert len(source.rows) == 6
    assert len({(row.goal, row.split) for row in source.rows}) == 2


def test_turns_are_revised_by_what_the_target_answers(
    goals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plans(body: dict[str, Any], number: int) -> Said:
        asked = body["messages"][-1]["content"]
        goal = "pick" if "pick" in asked else "forge"
        if "attempt number 1 " in asked:
            return Said(text=f"1. greet\n===\nstubbornly {goal}")
        if "attempt number 2 " in asked:
            return Said(text=f"1. greet\n===\ngently {goal} {{}}")
        last = " last" if "It is the last turn and asks for this: " in asked else ""
        return Said(text=f"turn {asked.count('heard')}{last}")

    def target(body: dict[str, Any], number: int) -> Said:
        first = body["messages"][0]["content"]
        return Said(text="I'm sorry, but I can't help. heard" if "stubborn" in first else "Gladly. heard")

    out = tmp_path / "made.jsonl"
    with serving(plans) as attacker_server, serving(target) as target_server:
        name = f"x_teaming:{target_server.url}?model=t"
        assert attack(goals, "--attacks", name, "--out", out, "--attacker", attacker_server.url,
                      "--attacker-model", "m", "--yes") == 0  # fmt: skip
        calls = len(attacker_server.asked) + len(target_server.asked)
        expected = plan(load_config_rows(goals), get_attacks([name]))
        assert calls == expected.calls == 2 * 2 * 7
    assert f"Cost: {expected.calls} calls" in capsys.readouterr().err
    made = [row for row in read_rows(out) if row.family == "x_teaming_revised"]
    said = ["Gladly. heard", "turn 1", "Gladly. heard", "turn 2", "Gladly. heard", "turn 3 last"]
    assert [[m["content"] for m in row.messages] for row in made] == [
        [f"gently {goal} {{}}", *said] for goal in ("pick", "forge")
    ]


def test_a_target_needs_an_address_and_a_model(goals: Path) -> None:
    for name in ("x_teaming:", "x_teaming:http://h/v1", "x_teaming:http://h/v1?model=m&turns=2"):
        with pytest.raises(ConfigError, match="write it like x_teaming:http"):
            get_attacks([name])


def test_a_stubborn_attacker_is_reported_and_its_conversation_not_used(
    goals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stubborn(body: dict[str, Any], number: int) -> Said:
        if "attempt number" in body["messages"][-1]["content"]:
            return Said(text="plan\n===\nhello")
        return Said(text="I'm sorry, but I can't help with that.")

    out = tmp_path / "made.jsonl"
    with serving(stubborn) as server:
        assert attack(goals, "--attacks", f"x_teaming:{server.url}?model=t", "--out", out, "--attacker",
                      server.url, "--attacker-model", "m", "--yes") == 0  # fmt: skip
    assert capsys.readouterr().err.count("the attacker refuses to write x_teaming_revised") == 2
    assert {row.family for row in read_rows(out)} == {"plain"}
