"""Undo the repair by training: how many harmful examples does it take?

Training is in fp32 whatever the model's own dtype. In bf16 most steps of a usual learning rate round to
nothing, and a defence would look strong because the attack was weak.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from rasa_moe.data.chats import EncodedChat, collate
from rasa_moe.moe import put_back_after
from rasa_moe.reattack.base import Attack, Effort, LeftOut, Measured, Target

BATCH = 10
SETTING, UNIT = "full fine-tuning", "examples"


def _run(target: Target, effort: Effort) -> Iterator[Measured | LeftOut]:
    order = torch.randperm(len(target.pairs), generator=torch.Generator().manual_seed(target.seed)).tolist()
    examples = [target.encode(target.pairs[i].jailbreak, target.pairs[i].jailbreak_answer) for i in order]
    for count in effort.retune_examples:
        if count > len(examples):
            return
        try:
            with put_back_after(target.model), in_float32(target.model):
                train(target, examples[:count], epochs=effort.retune_epochs, lr=effort.retune_lr)
                outcomes = target.ask(target.rows)
        except torch.OutOfMemoryError:
            reason = "memory is too small to train every weight in fp32"
            yield LeftOut(setting=SETTING, strength=count, unit=UNIT, reason=reason)
            return
        yield Measured(setting=SETTING, strength=count, unit=UNIT, outcomes=outcomes)


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Hold every floating weight and buffer in fp32 for a while; those that are so already stay in place.

    Answers given meanwhile are those of the fp32 weights. Afterwards the model has its own tensors back, bit
    for bit, except what was changed in those that were fp32 all along.
    """
    lower = [
        (tensor, tensor.data)
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    ]
    try:
        for tensor, own in lower:
            tensor.data = own.float()
        yield
    finally:
        for tensor, own in lower:
            tensor.grad = None  # fp32 as well
            tensor.data = own


def train(target: Target, examples: Sequence[EncodedChat], *, epochs: int, lr: float) -> None:
    """Fine-tune every weight on examples, in the order given, response tokens only."""
    model = target.model
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    batches = [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]
    try:
        for chosen in batches * epochs:
            batch = collate(chosen, target.tokenizer.pad_token_id, side="right").to(model.device)
            loss = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                labels=batch.labels,
                use_cache=False,
            ).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    finally:
        optimizer.zero_grad(set_to_none=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])


ATTACK = Attack(
    "retuning",
    "Fine-tune on harmful answers of the base model to jailbreaks of other goals; needs the weights.",
    lambda effort: (
        f"{', '.join(map(str, effort.retune_examples))} examples, {effort.retune_epochs} epochs, batches of "
        f"{BATCH}, AdamW at {effort.retune_lr:g}, every weight, in fp32"
    ),
    _run,
)
