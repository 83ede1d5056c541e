"""The built-in model, repaired or not, served by `transformers serve` answers as it does in this process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rasa_moe.config.schema import EndpointConfig
from rasa_moe.data.rows import Message
from rasa_moe.data.templates import describe_template
from rasa_moe.data.thinking import set_thinking
from rasa_moe.engines import HttpEngine, generate
from rasa_moe.errors import ModelError
from rasa_moe.moe import discover, export_checkpoint, load_model
from rasa_moe.testbed.families import SYSTEM_PROMPTS
from rasa_moe.testbed.rows import testbed_rows as prompt_rows

_LONGEST = 40


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the built-in model with one expert changed, as a repair leaves it, and with a switch to "think".

    Switched on, it reads every conversation with another question behind it, so that the switch is seen.
    """
    folder = tmp_path_factory.mktemp("served") / "model"
    model, tokenizer = load_model("testbed/olmoe", dtype="float32", device="cpu")
    discover(model).layers[0].experts.down_proj.data[0].mul_(1.5)
    tokenizer.chat_template = (
        "{% if enable_thinking is defined and enable_thinking %}"
        "{% set messages = messages + [{'role': 'user', 'content': 'what is a brintlam?'}] %}{% endif %}"
        f"{tokenizer.chat_template}"
    )
    export_checkpoint(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def url(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "transformers.cli.transformers", "serve", str(checkpoint)),
        *("--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"),
    ]
    log = tmp_path_factory.mktemp("log") / "serve.log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    with (
        log.open("w") as written,
        subprocess.Popen(command, stdout=written, stderr=written, env=environment) as server,
    ):
        try:
            deadline = time.monotonic() + 120
            while not _is_up(port):
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


def _is_up(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
    except OSError:
        return False
    return True


def conversations() -> list[tuple[Message, ...]]:
    """Return requests of every shape: plain, dressed, of several turns, with a system prompt."""
    rows = prompt_rows()
    families = sorted({row.family for row in rows})
    chosen = [next(row.messages for row in rows if row.family == family) for family in families]
    assert any(len(messages) > 2 for messages in chosen)
    system = Message(role="system", content=SYSTEM_PROMPTS[0])
    return [*chosen, *((system, *messages) for messages in chosen[::4])]


def test_a_served_checkpoint_answers_as_in_process(checkpoint: Path, url: str, tmp_path: Path) -> None:
    asked = conversations()
    model, loaded = load_model(checkpoint, dtype="float32", device="cpu")
    here = generate(model, loaded, asked, max_new_tokens=_LONGEST)
    engine = HttpEngine(
        EndpointConfig(url=url, model=str(checkpoint), concurrency=2), answered=tmp_path / "answers.jsonl"
    )
    there = generate(engine, None, asked, max_new_tokens=_LONGEST)
    assert [answer.text for answer in there] == [answer.text for answer in here]
    assert [answer.is_truncated for answer in there] == [answer.is_truncated for answer in here]
    assert len({answer.text for answer in here}) > 10
    assert engine.usage.calls == len(asked)
    assert engine.usage.prompt_tokens > 0


def test_thinking_is_switched_on_the_server_as_it_is_here(checkpoint: Path, url: str) -> None:
    asked = conversations()[:3]
    model, loaded = load_model(checkpoint, dtype="float32", device="cpu")
    assert describe_template(loaded).thinking == "switchable"
    here, there = [], []
    for enabled in (True, False):
        set_thinking(loaded, enabled=enabled)
        here.append([answer.text for answer in generate(model, loaded, asked, max_new_tokens=_LONGEST)])
        engine = HttpEngine(EndpointConfig(url=url, model=str(checkpoint)), thinking=enabled)
        there.append([answer.text for answer in generate(engine, None, asked, max_new_tokens=_LONGEST)])
    assert there == here
    assert here[0] != here[1]


def test_a_model_that_is_not_served_is_refused(url: str) -> None:
    with pytest.raises(ModelError):
        HttpEngine(EndpointConfig(url=url, model="another-model", retries=0)).chat(conversations()[0])
