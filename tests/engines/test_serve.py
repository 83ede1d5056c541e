"""A checkpoint served by `transformers serve` answers over HTTP as it does in this process."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from models import VOCABULARY, olmoe
from rasa_moe.config.schema import EndpointConfig
from rasa_moe.data.rows import Message
from rasa_moe.engines import HttpEngine, generate
from rasa_moe.moe import export_checkpoint, load_model

for package in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(package, reason="transformers serve needs the extra: pip install rasa-moe[serve]")

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '> ' + m.content + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
CONVERSATIONS = [
    (Message(role="user", content="w9 w12 w30"),),
    (Message(role="system", content="w40"), Message(role="user", content="w8")),
    (
        Message(role="user", content="w11"),
        Message(role="assistant", content="w20 w21"),
        Message(role="user", content="w50 w51 w52 w53"),
    ),
]


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<unk>", "<end>", "<user>", "<system>", "<assistant>"]
    words = {token: number for number, token in enumerate(special)}
    words |= {f"w{number}": number for number in range(len(special), VOCABULARY)}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    built = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="<end>"
    )
    built.chat_template = TEMPLATE
    return built


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    export_checkpoint(olmoe(), tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def url(checkpoint: Path) -> Iterator[str]:
    from transformers.cli.serve import Serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Serve(
        force_model=str(checkpoint),
        host="127.0.0.1",
        port=port,
        device="cpu",
        dtype="float32",
        non_blocking=True,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill_server()


def test_a_served_checkpoint_answers_as_in_process(checkpoint: Path, url: str, tmp_path: Path) -> None:
    model, loaded = load_model(checkpoint, dtype="float32", device="cpu")
    here = generate(model, loaded, CONVERSATIONS, max_new_tokens=6)
    engine = HttpEngine(
        EndpointConfig(url=url, model=str(checkpoint), concurrency=2), answered=tmp_path / "answers.jsonl"
    )
    there = generate(engine, None, CONVERSATIONS, max_new_tokens=6)
    assert [answer.text for answer in there] == [answer.text for answer in here]
    assert [answer.is_truncated for answer in there] == [answer.is_truncated for answer in here]
    assert len({answer.text for answer in here}) > 1
    assert engine.usage.calls == 3
    assert engine.usage.prompt_tokens > 0


def test_a_model_that_is_not_served_is_refused(url: str) -> None:
    from rasa_moe.errors import ModelError

    with pytest.raises(ModelError):
        HttpEngine(EndpointConfig(url=url, model="another-model", retries=0)).chat(CONVERSATIONS[0])
