"""The supervised loss of a batch: refusals and what is retained, pass by pass."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rasa_moe.align.batches import MicroBatch, TrainingBatch
from rasa_moe.align.loop import Summand
from rasa_moe.align.losses import RETAINED, predicting, score_drift, supervised_losses, weighted_sum
from rasa_moe.align.readings import Read, read_now
from rasa_moe.align.shifts import ContextShifts
from rasa_moe.config import AlignConfig
from rasa_moe.distributed import current
from rasa_moe.moe import logits_at

DRIFT = "drift"
States = Sequence[Sequence[Tensor]]
"""Batch -> pass over its harmless conversations -> final hidden states, (M,D)."""


class SupervisedLoss:
    """Compute the weighted sum of the parts' cross-entropies, and of the drift of scores.

    With a weight for the drift, construct it while the model is still the base model, whose final hidden
    states are read here; the head must not be trained.

    Args:
        model: The model.
        batches: In the order of their indices.
        weights: Part of a batch, or "drift" -> its weight; what is not named takes no part.
        batch_tokens: Most tokens of one pass.
        shifts: The contexts in which refused requests are shown; None for their own.
        read: Reads final hidden states, or has them from a training before.
    """

    def __init__(
        self,
        model: Any,
        batches: Sequence[TrainingBatch],
        *,
        weights: Mapping[str, float],
        batch_tokens: int,
        shifts: ContextShifts | None = None,
        read: Read = read_now,
    ) -> None:
        self._model = model
        self._shifts = shifts
        self._weights = weights
        self._batch_tokens = batch_tokens
        has_retained = all(RETAINED in batch.parts for batch in batches)
        is_held = weights.get(DRIFT, 0) > 0 and has_retained
        self._states = (
            read("final states", lambda: final_states(model, batches, batch_tokens=batch_tokens))
            if is_held
            else None
        )

    def begin_epoch(self, epoch: int) -> None:
        """Shift another half of the refusals; `epoch` counts all epochs of the training."""
        if self._shifts is not None:
            self._shifts.begin_epoch(epoch)

    def __call__(
        self,
        batch: TrainingBatch,
        index: int,
        around: Callable[[int], AbstractContextManager[None]] = lambda number: nullcontext(),
    ) -> Generator[Summand]:
        """Yield what each micro-batch adds to the loss and to its parts, for batch number `index`.

        `around` gives the context of the forward pass of micro-batch `number`.
        """
        held: Sequence[Tensor] = () if self._states is None else self._states[index]
        for number, micro in enumerate(self.micro_batches(batch)):
            states = held[number] if number < len(held) else None
            with self._shifted(batch, index, micro, partial(around, number)), around(number):
                logits = forward(self._model, micro, also=states).logits
            if states is None:
                yield summand(supervised_losses(logits, batch, micro), self._weights)
                continue
            logits, base = logits.tensor_split([len(logits) - len(states)])
            losses = supervised_losses(logits, batch, micro)
            losses[DRIFT] = score_drift(logits, base.detach(), batch, micro)
            yield summand(losses, self._weights)

    def micro_batches(self, batch: TrainingBatch) -> list[MicroBatch]:
        """Return the passes of a batch: where scores are held, those of harmless conversations come first.

        What has no weight is not forwarded.
        """
        learned = tuple(name for name in batch.parts if self._weights.get(name, 0) > 0)
        if self._states is None:
            return batch.micro_batches(*learned, batch_tokens=self._batch_tokens)
        others = tuple(name for name in learned if name != RETAINED)
        passes = _held(batch, batch_tokens=self._batch_tokens)
        return passes + batch.micro_batches(*others, batch_tokens=self._batch_tokens) if others else passes

    def num_held(self, index: int) -> int:
        """Return how many of the passes of batch number `index`, the first ones, hold scores."""
        return 0 if self._states is None else len(self._states[index])

    def _shifted(
        self,
        batch: TrainingBatch,
        index: int,
        micro: MicroBatch,
        around: Callable[[], AbstractContextManager[None]],
    ) -> AbstractContextManager[None]:
        if self._shifts is None:
            return nullcontext()

        def loss() -> Tensor:
            with around():
                losses = supervised_losses(forward(self._model, micro).logits, batch, micro)
            return torch.stack(list(losses.values())).sum()

        return self._shifts(batch, index, micro, loss)


@torch.no_grad()
def final_states(model: Any, batches: Sequence[TrainingBatch], *, batch_tokens: int) -> States:
    """Return a model's final hidden states on the harmless conversations of each batch, on the CPU.

    Scores are made of them anew in every step: those of a large vocabulary would fill the memory.
    """
    return [
        [_states_of(model, micro) for micro in _held(batch, batch_tokens=batch_tokens)] for batch in batches
    ]


def _states_of(model: Any, micro: MicroBatch) -> Tensor:
    with logits_at(model, predicting(micro.chats)) as seen:
        _call(model, micro)
    return seen[0].cpu()


def _held(batch: TrainingBatch, *, batch_tokens: int) -> list[MicroBatch]:
    return batch.micro_batches(RETAINED, batch_tokens=batch_tokens)


def part_weights(config: AlignConfig) -> dict[str, float]:
    """Return the weight of each part of a batch in supervised training."""
    return {
        "jailbreak": 1.0,
        "recovery": config.recovery_weight,
        "anchor": config.anchor_weight,
        RETAINED: config.retain_weight,
    }


def summand(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Summand:
    """Return the weighted sum of parts, and the parts under the names of the log."""
    return weighted_sum(losses, weights), {f"loss_{name}": loss for name, loss in losses.items()}


def forward(model: Any, micro: MicroBatch, *, also: Tensor | None = None) -> Any:
    """Call the model on this process' rows of a micro-batch (all rows where it is alone), without a cache.

    Its `logits` are (N,V): nobody reads those of prompts and padding. `also` is (M,D), see `logits_at`.
    """
    with logits_at(model, predicting(micro.chats), also=also):
        return _call(model, micro)


def _call(model: Any, micro: MicroBatch) -> Any:
    own, chats = current().own_rows, micro.chats
    return model(input_ids=own(chats.input_ids), attention_mask=own(chats.attention_mask), use_cache=False)
