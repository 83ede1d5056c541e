"""In which type a session holds the weights, and what it refuses before any work is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rasa_moe.align.rivals import RIVALS
from rasa_moe.config import load_config
from rasa_moe.errors import ModelError
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
