"""One epoch of training keeps the weights that it has where a step would lose them."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch

from rasa_moe.align.batches import TrainingBatch
from rasa_moe.align.loop import Summand, TrainingLog, run_epoch
from rasa_moe.data.chats import collate, encode_chat
from rasa_moe.errors import TrainingError
from unit.tiny import tiny_pairs, tiny_tokenizer


def batch_of() -> TrainingBatch:
    tokenizer = tiny_tokenizer()
    chat = encode_chat(tokenizer, tiny_pairs()[0].anchor, "no")
    return TrainingBatch(collate([chat], tokenizer.pad_token_id, side="right"), {})


def test_a_gradient_that_is_no_number_is_not_stepped_on() -> None:
    weight = torch.nn.Parameter(torch.tensor([4.0, 0.0]))
    log = TrainingLog("rasa")

    def root(batch: TrainingBatch, index: int) -> Generator[Summand]:
        yield weight.sqrt().sum(), {}  # 2, with a gradient of 1/4 and infinity

    with pytest.raises(TrainingError, match=r"^The gradient became inf in rasa repair, round 2; lower"):
        run_epoch(
            [batch_of()],
            [0],
            root,
            optimizer=torch.optim.AdamW([weight], lr=0.1),
            max_grad_norm=1.0,
            log=log,
            phase="repair",
            round_number=2,
            on_step=lambda: None,
        )
    assert weight.tolist() == [4.0, 0.0]
    assert weight.grad is None and log.lines == []
