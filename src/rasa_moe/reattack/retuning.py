"""Undo the repair by training: how many harmful examples does it take?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from rasa_moe.data.chats import EncodedChat, collate
from rasa_moe.moe import swapped
from rasa_moe.reattack.base import Attack, Effort, Measured, Target

BATCH = 10


def _run(target: Target, effort: Effort) -> Iterator[Measured]:
    order = torch.randperm(len(target.pairs), generator=torch.Generator().manual_seed(target.seed)).tolist()
    examples = [target.encode(target.pairs[i].jailbreak, target.pairs[i].jailbreak_answer) for i in order]
    for count in effort.retune_examples:
        if count > len(examples):
            return
        own = {name: parameter.detach().clone() for name, parameter in target.model.named_parameters()}
        with swapped(target.model, own):  # puts the weights back whatever happens
            train(target, examples[:count], epochs=effort.retune_epochs, lr=effort.retune_lr)
            outcomes = target.ask(target.rows)
        yield Measured(setting="full fine-tuning", strength=count, unit="examples", outcomes=outcomes)


def train(target: Target, examples: Sequence[EncodedChat], *, epochs: int, lr: float) -> None:
    """Fine-tune every weight on examples, in the order given, response tokens only."""
    model = target.model
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    batches = [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]
    for _ in range(epochs):
        for chosen in batches:
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
    optimizer.zero_grad(set_to_none=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted[name])


ATTACK = Attack(
    "retuning",
    "Fine-tune on harmful answers of the base model to jailbreaks of other goals; needs the weights.",
    lambda effort: (
        f"{', '.join(map(str, effort.retune_examples))} examples, {effort.retune_epochs} epochs, batches of "
        f"{BATCH}, AdamW at {effort.retune_lr:g}, every weight"
    ),
    _run,
)
