"""All experts, nothing else: does it matter which experts are repaired?"""

from __future__ import annotations

from rasa_moe.align.rivals.base import Job, Rival, Tuned
from rasa_moe.align.rivals.training import supervised, train
from rasa_moe.moe import ExpertSlices

_METHOD = "experts_only"


def _train(job: Job) -> Tuned:
    return train(
        job,
        method=_METHOD,
        weights=ExpertSlices(job.moe, job.moe.expert_ids()),
        loss=supervised(job),
        batches=job.batches(),
        epochs=job.config.rivals.experts_only.epochs,
        lr=job.rate("rivals.experts_only.lr"),
    )


EXPERTS_ONLY = Rival(_METHOD, "all experts, with the repair loss", _train)
