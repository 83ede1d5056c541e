"""Finished rows leave a batch, and a batch too large for memory is halved; neither changes an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from models import FAMILIES
from rasa_moe.data.chats import EncodedChat, collate
from rasa_moe.engines import greedy as rooms
from rasa_moe.engines.greedy import greedy, halving
from rasa_moe.errors import ModelError

PROMPTS = [[5, 9, 12], [7], [30, 31, 32, 33, 34], [11, 4], [40, 41, 42], [50]]
LIMIT = 24


def batch_of(prompts: Sequence[list[int]]) -> Any:
    return collate([EncodedChat(ids, prompt_length=len(ids)) for ids in prompts], 0, side="left")


def run(model: Any, prompts: Sequence[list[int]], stops: frozenset[int]) -> list[list[int]]:
    rows = greedy(model, batch_of(prompts), max_new_tokens=LIMIT, stops=stops, pad_id=0)
    return [cut(row, stops) for row in rows]


def cut(row: list[int], stops: frozenset[int]) -> list[int]:
    return row[: next((place for place, token in enumerate(row) if token in stops), len(row))]


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_rows_that_leave_change_no_other_row(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES[family]()
    free = [run(model, [prompt], frozenset()) for prompt in PROMPTS]
    stops = frozenset(row[0][3 + 2 * place] for place, row in enumerate(free))  # ends at different steps
    monkeypatch.setattr(rooms, "_STEPS", 4)
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    together = run(model, PROMPTS, stops)
    handle.remove()
    assert together == [cut(row[0], stops) for row in free]
    assert len({len(row) for row in together}) > 1, "rows must end at different steps"
    if family in ("olmoe", "qwen3_moe"):  # others end too early, or keep more than keys and values
        assert sizes[-1] < len(PROMPTS)


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_a_shared_beginning_is_read_once_and_changes_no_answer(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FAMILIES[family]()
    beginning = [(7 * place) % 50 + 3 for place in range(12)]
    prompts = [beginning + prompt for prompt in PROMPTS]
    read: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    monkeypatch.setattr(rooms, "SHARED_TOKENS", 1000)
    apart = run(model, prompts, frozenset())
    num_apart = sum(read)
    read.clear()
    monkeypatch.setattr(rooms, "SHARED_TOKENS", 4)
    assert run(model, prompts, frozenset()) == apart
    handle.remove()
    assert len({tuple(row) for row in apart}) > 1, "equal answers could not show a mistake"
    if family in ("olmoe", "qwen3_moe"):  # others look at a window of positions, or are not read so
        assert num_apart - sum(read) == (len(PROMPTS) - 1) * len(beginning)


def test_prompts_that_begin_with_each_other_keep_a_token_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["olmoe"]()
    monkeypatch.setattr(rooms, "SHARED_TOKENS", 2)
    prompts = [[5, 9, 12, 30], [5, 9, 12], [5, 9, 12], [5, 9, 12, 30, 31]]
    alone = [run(model, [prompt], frozenset())[0] for prompt in prompts]
    assert run(model, prompts, frozenset()) == alone


def test_a_batch_too_large_for_memory_is_halved_until_it_fits() -> None:
    tried: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        tried.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("too large")
        return [item * item for item in items]

    assert halving(work, range(10)) == [item * item for item in range(10)]
    assert tried == [10, 5, 2, 3, 5, 2, 3]


def test_a_single_conversation_too_large_for_memory_is_one_sentence() -> None:
    def work(items: Sequence[int]) -> list[int]:
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(ModelError, match="batch_tokens"):
        halving(work, range(4))
