"""Fine-tuning with the routing of harmful prompts held at the last prompt token, as in SafeMoE.

Every weight is trained with the supervised loss; added is the divergence of the routing that a jailbreak's
last prompt token gets from the routing that the base model gave the same goal's plain, refused request.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from rasa_moe.align.batches import MicroBatch, TrainingBatch
from rasa_moe.align.consistency import routing_targets
from rasa_moe.align.loop import Summand
from rasa_moe.align.losses import routing_divergence, supervised_losses
from rasa_moe.align.rivals.base import Job, Rival, Tuned
from rasa_moe.align.rivals.training import AllWeights, train
from rasa_moe.align.supervised import forward, summand
from rasa_moe.distributed import current
from rasa_moe.moe import watch_routers

_METHOD = "router_kl"
_SPAN = "last_prompt"


class _HeldRouting:
    """The supervised loss, and the divergence from the base model's routing, taken at construction."""

    def __init__(self, job: Job, batches: list[TrainingBatch], *, kl_weight: float) -> None:
        self._job = job
        self._kl_weight = kl_weight
        self._batch_tokens = job.config.align.batch_tokens
        with torch.no_grad():
            self._targets = [
                routing_targets(
                    batch,
                    ("anchor",),
                    lambda micro: self._routed(micro)[1],
                    moe=job.moe,
                    batch_tokens=self._batch_tokens,
                )
                for batch in batches
            ]

    def __call__(self, batch: TrainingBatch, index: int) -> Generator[Summand]:
        held = batch.parts["jailbreak"]
        for micro in batch.micro_batches(batch_tokens=self._batch_tokens):
            logits, routing = self._routed(micro)
            is_held, target = torch.isin(micro.rows, held), self._targets[index][micro.rows]
            kl = routing_divergence(
                target[is_held], routing[is_held], kind=self._job.config.align.kl, pairs=len(held)
            )
            loss, named = summand(supervised_losses(logits, batch, micro), self._job.part_weights)
            yield loss + self._kl_weight * kl, {**named, "kl": kl}

    def _routed(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return logits of this process' rows and the routing of every last prompt token, (b,L,E)."""
        with watch_routers(self._job.moe, self._job.model) as watch:
            logits = forward(self._job.model, micro).logits
        span = micro.chats.spans[_SPAN]
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
        lr=job.rate("rivals.router_kl.lr"),
    )


ROUTER_KL = Rival(
    _METHOD,
    "every weight, routing of the last prompt token held (SafeMoE-style)",
    _train,
    trains_in_place=True,
)
