"""Representation rerouting, as in circuit breakers: hidden states of harmful answers leave the base model's.

The model is not taught to refuse: on a jailbreak followed by its harmful answer, hidden states are pushed
until they share no direction with the base model's; on refusals and harmless conversations they are held in
place. The weight moves linearly from rerouting to retaining in the course of training.
Deviation: all weights are trained instead of adapters, and the base model's hidden states are taken once.

Shape letters: N answer tokens of a part, H watched layers, D model width.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from rasa_moe.align.batches import TrainingBatch
from rasa_moe.align.loop import Summand
from rasa_moe.align.rivals.base import Job, Rival, Tuned
from rasa_moe.align.rivals.training import AllWeights, train
from rasa_moe.data.chats import Batch
from rasa_moe.distributed import working_alike

_METHOD = "rerouting"
_KEPT = ("anchor", "retain")
# Layers whose output is watched, as shares of the depth: the published settings for 32 layers are 10 and 20.
_DEPTHS = (1 / 3, 2 / 3)


@dataclass(frozen=True, eq=False)
class _Pass:
    """Hold one forward pass.

    Attributes:
        part: Of the batch, all of the chats belong to it.
        chats: (b,S).
        base: (H,N,D) fp32, what `_states` gave for the base model.
        num_tokens: Answer tokens of the whole part.
    """

    part: str
    chats: Batch
    base: Tensor
    num_tokens: Tensor


class _Rerouting:
    """Both losses against the base model's hidden states, taken when this object is made."""

    def __init__(self, job: Job, batches: list[TrainingBatch], *, weight: float, steps: int) -> None:
        self._job = job
        self._weight, self._steps, self._step = weight, steps, 0
        # Refusal and harmful answer change places: the same pairs in the same batches, answered as attacked.
        attacked = replace(
            job, pairs=[replace(pair, anchor_answer=pair.jailbreak_answer) for pair in job.pairs]
        )
        with torch.no_grad():
            self._passes = [
                [
                    *self._passes_of(harmful, "jailbreak"),
                    *(one for name in _KEPT if name in batch.parts for one in self._passes_of(batch, name)),
                ]
                for harmful, batch in zip(attacked.batches(), batches, strict=True)
            ]

    def begin_epoch(self, epoch: int) -> None:
        """Set the schedule to the first step of an epoch, so that a resumed training agrees."""
        self._step = epoch * len(self._passes)

    def __call__(self, batch: TrainingBatch, index: int) -> Generator[Summand]:
        progress = min(self._step / self._steps, 1.0)
        self._step += 1
        num_kept = sum(name in batch.parts for name in _KEPT)
        for one in self._passes[index]:
            states = self._states(one.chats)
            if one.part == "jailbreak":
                turned = functional.cosine_similarity(states, one.base, dim=-1).relu()
                away = turned.mean(dim=0).sum() / one.num_tokens
                yield self._weight * (1 - progress / 2) * away, {"loss_jailbreak": away}
            else:
                drift = (states - one.base).norm(dim=-1)
                held = drift.mean(dim=0).sum() / one.num_tokens / num_kept
                yield self._weight * progress / 2 * held, {"loss_retain": held}

    def _passes_of(self, batch: TrainingBatch, part: str) -> list[_Pass]:
        num_tokens = batch.part(part).spans["response"].sum()
        # At the base model the gradient is nothing but rounding, which AdamW makes large. Processes that
        # are to end alike must round alike, so each computes all rows.
        with working_alike():
            passes = batch.micro_batches(part, batch_tokens=self._job.config.align.batch_tokens)
        return [_Pass(part, one.chats, self._states(one.chats), num_tokens) for one in passes]

    def _states(self, chats: Batch) -> Tensor:
        """Return the watched hidden states at the answer's tokens, (H,N,D) fp32."""
        output = self._job.model(
            input_ids=chats.input_ids,
            attention_mask=chats.attention_mask,
            use_cache=False,
            output_hidden_states=True,
        )
        depth = len(output.hidden_states) - 1
        chosen = [output.hidden_states[max(1, round(share * depth))] for share in _DEPTHS]
        return torch.stack([states[chats.spans["response"]] for states in chosen]).float()


def _train(job: Job) -> Tuned:
    settings = job.config.rivals.rerouting
    batches = job.batches()
    weights = AllWeights(job.model, method=_METHOD)
    loss = _Rerouting(job, batches, weight=settings.weight, steps=settings.epochs * len(batches))
    return train(
        job,
        method=_METHOD,
        weights=weights,
        loss=loss,
        batches=batches,
        epochs=settings.epochs,
        lr=job.rate("rivals.rerouting.lr"),
        begin_epoch=loss.begin_epoch,
    )


REROUTING = Rival(
    _METHOD,
    "every weight, harmful answers' hidden states pushed away (circuit breakers)",
    _train,
    trains_in_place=True,
)
