"""Representation rerouting, as in circuit breakers: hidden states of harmful answers leave the base model's.

The model is not taught to refuse: on a jailbreak followed by its harmful answer, hidden states are pushed
until they share no direction with the base model's; on refusals and harmless conversations they are held in
place. The weight moves linearly from rerouting to retaining in the course of training.
Deviation: all weights are trained instead of adapters, and the base model's hidden states are taken once.

Shape letters: N answer tokens of a part, H watched layers, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from rasa_moe.align.batches import TrainingBatch
from rasa_moe.align.rivals.base import Job, Rival, Tuned
from rasa_moe.align.rivals.training import AllWeights, train
from rasa_moe.data.chats import Batch

_METHOD = "rerouting"
_KEPT = ("anchor", "retain")
# Layers whose output is watched, as shares of the depth: the published settings for 32 layers are 10 and 20.
_DEPTHS = (1 / 3, 2 / 3)


class _Rerouting:
    """Both losses against the base model's hidden states, taken when this object is made."""

    def __init__(self, job: Job, batches: list[TrainingBatch], *, weight: float, steps: int) -> None:
        self._model = job.model
        self._weight, self._steps, self._step = weight, steps, 0
        # Refusal and harmful answer change places: the same pairs in the same batches, answered as attacked.
        attacked = replace(
            job, pairs=[replace(pair, anchor_answer=pair.jailbreak_answer) for pair in job.pairs]
        )
        self._harmful = [batch.part("jailbreak") for batch in attacked.batches()]
        self._kept = [[batch.part(name) for name in _KEPT if name in batch.parts] for batch in batches]
        with torch.no_grad():
            self._harmful_states = [self._states(chats) for chats in self._harmful]
            self._kept_states = [[self._states(chats) for chats in parts] for parts in self._kept]

    def begin_epoch(self, epoch: int) -> None:
        """Set the schedule to the first step of an epoch, so that a resumed training agrees."""
        self._step = epoch * len(self._harmful)

    def __call__(self, batch: TrainingBatch, index: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        progress = min(self._step / self._steps, 1.0)
        self._step += 1
        similarity = functional.cosine_similarity(
            self._states(self._harmful[index]), self._harmful_states[index], dim=-1
        )
        away = similarity.relu().mean()
        drifts = [
            (self._states(chats) - base).norm(dim=-1).mean()
            for chats, base in zip(self._kept[index], self._kept_states[index], strict=True)
        ]
        held = torch.stack(drifts).mean()
        loss = self._weight * ((1 - progress / 2) * away + progress / 2 * held)
        return loss, {"loss_jailbreak": away, "loss_retain": held}

    def _states(self, chats: Batch) -> Tensor:
        """Return the watched hidden states at the answer's tokens, (H,N,D) fp32."""
        output = self._model(
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
        lr=settings.lr,
        begin_epoch=loss.begin_epoch,
    )


REROUTING = Rival(
    _METHOD,
    "every weight, harmful answers' hidden states pushed away (circuit breakers)",
    _train,
    trains_in_place=True,
)
