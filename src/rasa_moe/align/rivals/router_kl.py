"""Fine-tuning with the routing of harmful prompts held at the last prompt token, as in SafeMoE.

Every weight is trained with the supervised loss; added is the divergence of the routing that a jailbreak's
last prompt token gets from the routing that the base model gave the same goal's plain, refused request.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rasa_moe.align.batches import TrainingBatch
from rasa_moe.align.losses import routing_divergence, supervised_losses, weighted_sum
from rasa_moe.align.repair import forward
from rasa_moe.align.rivals.base import Job, Rival, Tuned
from rasa_moe.align.rivals.training import AllWeights, train
from rasa_moe.distributed import current
from rasa_moe.moe import watch_routers

_METHOD = "router_kl"
_SPAN = "last_prompt"


class _HeldRouting:
    """The supervised loss, and the divergence from the base model's routing, taken at construction."""

    def __init__(self, job: Job, batches: list[TrainingBatch], *, kl_weight: float) -> None:
        self._job = job
        self._kl_weight = kl_weight
        with torch.no_grad():
            self._targets = [self._routed(batch)[1][batch.parts["anchor"]] for batch in batches]

    def __call__(self, batch: TrainingBatch, index: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        logits, routing = self._routed(batch)
        losses = supervised_losses(logits, batch)
        kl = routing_divergence(
            self._targets[index], routing[batch.parts["jailbreak"]], kind=self._job.config.align.kl
        )
        loss = weighted_sum(losses, self._job.part_weights) + self._kl_weight * kl
        return loss, {**{f"loss_{name}": part for name, part in losses.items()}, "kl": kl}

    def _routed(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Return logits of this process' rows and the routing of every last prompt token, (B,L,E)."""
        with watch_routers(self._job.moe, self._job.model) as watch:
            logits = forward(self._job.model, batch).logits
        span = batch.chats.spans[_SPAN]
        routing = watch.mean_probabilities(current().own_rows(span))
        return logits, current().whole_rows(routing, total=len(span))


def _train(job: Job) -> Tuned:
    settings = job.config.rivals.router_kl
    batches = job.batches()
    return train(
        job,
        method=_METHOD,
        weights=AllWeights(job.model, method=_METHOD),
        loss=_HeldRouting(job, batches, kl_weight=settings.kl_weight),
        batches=batches,
        epochs=settings.epochs,
        lr=settings.lr,
    )


ROUTER_KL = Rival(
    _METHOD,
    "every weight, routing of the last prompt token held (SafeMoE-style)",
    _train,
    trains_in_place=True,
)
