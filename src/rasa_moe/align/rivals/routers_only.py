"""All routers, nothing else: whatever it gains is rerouting, by construction."""

from __future__ import annotations

from rasa_moe.align.rivals.base import Job, Rival, Tuned
from rasa_moe.align.rivals.training import supervised, train
from rasa_moe.moe import TrainableRouters

_METHOD = "routers_only"


def _train(job: Job) -> Tuned:
    return train(
        job,
        method=_METHOD,
        weights=TrainableRouters(job.moe),
        loss=supervised(job),
        batches=job.batches(),
        epochs=job.config.rivals.routers_only.epochs,
        lr=job.rate("rivals.routers_only.lr"),
    )


ROUTERS_ONLY = Rival(_METHOD, "all routers, with the repair loss", _train)
