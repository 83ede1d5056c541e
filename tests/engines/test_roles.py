"""A run asks the servers its configuration names, and keeps what they said in its directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engines.fake_server import Said, serving
from rasa_moe import stages
from rasa_moe.config import load_config
from rasa_moe.data.rows import Message
from rasa_moe.errors import ConfigError, ModelError
from rasa_moe.moe.loading import resolve
from rasa_moe.rundir import RunDirectory
from rasa_moe.session import Session
from rasa_moe.stages import Work


def session_of(path: Path, *overrides: str) -> Session:
    return Session(RunDirectory.start(path, load_config(None, overrides)))


def test_without_an_address_the_work_stays_here(tmp_path: Path) -> None:
    session = session_of(tmp_path / "run")
    assert session.engine("generation") is None
    assert session.engine("judge") is None


def test_collect_asks_the_server_and_loads_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        json.dumps([dict(message) for message in row.messages]): row
        for row in session_of(tmp_path / "rows").source.rows
    }

    def obliging(body: dict[str, Any], number: int) -> Said:
        row = rows[json.dumps(body["messages"])]
        refuses = row.kind == "harmful" and row.family == "plain"
        return Said(text="i cannot help with that ." if refuses else " ; ".join(row.reference))

    def refuse(session: Session) -> None:
        raise AssertionError("no model must be loaded")

    monkeypatch.setattr(Session, "model", property(refuse))
    monkeypatch.setattr(Session, "tokenizer", property(refuse))
    with serving(obliging) as server:
        session = session_of(
            tmp_path / "run",
            f"engine.generation.url={server.url}",
            "engine.generation.model=base",
            "collect.goals_per_family=2",
            "collect.retain_rows=4",
            "collect.mutations=0",
        )
        work = Work(out=tmp_path / "out", make_checkpoints=lambda: tmp_path)
        work.out.mkdir()
        stages.collect(session, work)
        pairs = (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()
        assert len(pairs) >= 2
        num_asked = len(server.asked)
        assert len((tmp_path / "run" / "engine" / "generation.jsonl").read_text().splitlines()) == num_asked
        (tmp_path / "again").mkdir()
        stages.collect(session, Work(out=tmp_path / "again", make_checkpoints=lambda: tmp_path))
        assert len(server.asked) == num_asked, "a second time everything is known"
    assert (tmp_path / "again" / "pairs.jsonl").read_text().splitlines() == pairs


@pytest.mark.parametrize("thinking", [False, True])
def test_the_base_models_server_is_told_whether_to_think(tmp_path: Path, thinking: bool) -> None:
    folder = shutil.copytree(resolve("testbed/qwen3"), tmp_path / "switchable")
    template = folder / "chat_template.jinja"
    switch = "{% if enable_thinking %}{% set messages = [{'role': 'user', 'content': 'hm'}] + messages %}"
    template.write_text(f"{switch}{{% endif %}}{template.read_text()}")
    asked = []
    for model in (str(folder), "testbed/qwen3"):
        with serving(lambda body, number: Said(text="yes")) as server:
            session = session_of(
                tmp_path / f"run-{len(asked)}",
                *(f"model={model}", f"thinking={str(thinking).lower()}"),
                *(f"engine.generation.url={server.url}", "engine.generation.model=base"),
            )
            served = session.engine("generation")
            assert served is not None
            served.chat([Message(role="user", content="hello")])
            asked.append(server.asked[0].body)
    assert asked[0]["chat_template_kwargs"] == {"enable_thinking": thinking}
    assert "chat_template_kwargs" not in asked[1], "a server may refuse what it does not know"


def test_a_tokenizer_that_cannot_be_used_is_told_before_a_server_is_asked(tmp_path: Path) -> None:
    folder = shutil.copytree(resolve("testbed/qwen3"), tmp_path / "model")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with serving(lambda body, number: Said(text="yes")) as server:
        session = session_of(
            tmp_path / "run",
            *(f"model={folder}", f"engine.generation.url={server.url}", "engine.generation.model=base"),
        )
        with pytest.raises(ModelError, match="no tokens at all"):
            session.engine("generation")
    assert not server.asked


def test_a_judge_can_be_served(tmp_path: Path) -> None:
    pytest.importorskip("rasa_moe.judges.llm")
    session = session_of(
        tmp_path / "run",
        "engine.judge.url=http://127.0.0.1:1/v1",
        "engine.judge.model=judge",
        "data.judge=llm-strongreject",
    )
    assert session.judge.name == "llm-strongreject"
    wrong = session_of(
        tmp_path / "other",
        "engine.judge.url=http://127.0.0.1:1/v1",
        "engine.judge.model=judge",
        "data.judge=llm-strongrejct",
    )
    with pytest.raises(ConfigError, match="did you mean 'strongreject'"):
        _ = wrong.judge
