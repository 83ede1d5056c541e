"""The checks of a selection answer in batches as large as the run's own, no larger."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rasa_moe.config import load_config
from rasa_moe.data.rows import Pair
from rasa_moe.detect import causal, format_control
from rasa_moe.errors import DataError
from rasa_moe.progress import no_progress
from unit.tiny import user


@pytest.fixture
def session() -> Any:
    config = load_config(None, ["evaluate.batch_tokens=128", "collect.batch_tokens=256"])
    return SimpleNamespace(model=None, tokenizer=None, judge=None, config=config)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Take the place of answering; return the sizes of batches asked for."""
    found: list[int] = []

    def answers(*arguments: Any, batch_tokens: int, **options: Any) -> list[Any]:
        found.append(batch_tokens)
        return []

    monkeypatch.setattr(causal, "generate", answers)
    monkeypatch.setattr(format_control, "answer_rows", answers)
    return found


def test_silencing_asks_in_batches_of_evaluate(session: Any, sizes: list[int]) -> None:
    assert causal._answers(session, []) == []
    assert sizes == [128]


def test_the_format_control_asks_in_batches_of_collect(
    session: Any, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format_control, "_goals_both_ways", lambda *a, **k: ([], {}))
    pair = Pair(
        goal="tea",
        family="story",
        jailbreak=user("a"),
        anchor=user("b"),
        jailbreak_answer="c",
        anchor_answer="d",
    )
    with pytest.raises(DataError, match="nothing to compare"):
        format_control.format_control(session, [pair], span="prompt", limit=1, progress=no_progress)
    assert sizes == [256]
