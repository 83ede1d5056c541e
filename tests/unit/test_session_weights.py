"""In which type a session holds weights, what it refuses before any work, and how it tells files apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rasa_moe import inputs
from rasa_moe.align.rivals import RIVALS
from rasa_moe.config import load_config
from rasa_moe.errors import ModelError
from rasa_moe.files import sha256_file
from rasa_moe.inputs import source_hashes
from rasa_moe.moe import loading
from rasa_moe.rundir import RunDirectory
from rasa_moe.session import Session, working_dtype
from unit.tiny import tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("device=cuda", "model=testbed/olmoe"), "float32"),
        (("device=cuda", "model=testbed/olmoe", "dtype=bfloat16"), "bfloat16"),
        (("device=cuda", "model=some/model"), "auto"),
        (("device=cuda", "model=some/model", "dtype=float32"), "float32"),
        (("device=cpu", "model=some/model"), "float32"),
        (("device=cpu", "model=some/model", "dtype=bfloat16"), "bfloat16"),
    ],
)
def test_the_type_of_the_weights(overrides: tuple[str, ...], expected: str) -> None:
    assert working_dtype(load_config(None, overrides)) == expected


def session_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, dtype: torch.dtype
) -> Session:
    def load(*arguments: Any, **options: Any) -> tuple[Any, Any]:
        return tiny_model().to(dtype), tiny_tokenizer()

    monkeypatch.setattr(loading, "load_model", load)
    return Session(RunDirectory.start(tmp_path / "run", load_config(None, overrides)))


def test_a_method_that_trains_in_place_is_refused_when_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tmp_path, monkeypatch, "compare=[experts_only, full]", dtype=torch.bfloat16)
    for _ in range(2):  # also when asked again
        with pytest.raises(ModelError, match=r"'full'.*bfloat16.*dtype: float32, or leave the method out"):
            _ = session.model


@pytest.mark.parametrize(
    ("compare", "dtype"), [("full", torch.float32), ("experts_only", torch.bfloat16), ("", torch.bfloat16)]
)
def test_other_methods_and_float32_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare: str, dtype: torch.dtype
) -> None:
    session = session_of(tmp_path, monkeypatch, f"compare=[{compare}]", dtype=dtype)
    assert session.model.dtype == dtype


def test_the_methods_that_train_in_place_say_so() -> None:
    in_place = {name for name, rival in RIVALS.items() if rival.trains_in_place}
    assert in_place == {"full", "full_no_retain", "lora", "router_kl", "rerouting"}


def fingerprint(tmp_path: Path) -> str:
    config = load_config(None, (f"model='{tmp_path / 'base'}'",))
    return source_hashes(Session(RunDirectory.start(tmp_path / "run", config)), ("model",))["model"]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Return a file as large as those of real checkpoints, with a hole instead of most of its bytes."""
    file = tmp_path / "base" / "model-00001-of-00001.safetensors"
    file.parent.mkdir()
    with open(file, "wb") as opened:
        opened.truncate((64 << 20) + 1)
    return file


def test_a_large_file_that_was_changed_in_place_is_noticed(tmp_path: Path, shard: Path) -> None:
    before = fingerprint(tmp_path)
    with open(shard, "r+b") as opened:
        opened.seek(50 << 20)
        opened.write(b"x")
    assert fingerprint(tmp_path) != before


def test_a_large_file_is_read_once(tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(inputs, "sha256_file", lambda file: (read.append(file.name), sha256_file(file))[1])
    (shard.parent / "config.json").write_text("{}")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    assert read.count(shard.name) == 1, "remembered in the run directory"
    (tmp_path / "run" / ".hashes.json").write_text("[")
    assert fingerprint(tmp_path) == before, "what is remembered is no more than a help"
