"""Full-parameter fine-tuning on the same pairs, batches and losses: said to take the shortcut."""

from __future__ import annotations

from rasa_moe.align.rivals.base import Job, Rival, Tuned
from rasa_moe.align.rivals.training import AllWeights, supervised, train


def _train_full(job: Job) -> Tuned:
    return train(
        job,
        method="full",
        weights=AllWeights(job.model, method="full"),
        loss=supervised(job),
        batches=job.batches(),
        epochs=job.config.full.epochs,
        lr=job.rate("full.lr"),
    )


def _train_on_jailbreaks_alone(job: Job) -> Tuned:
    return train(
        job,
        method="full_no_retain",
        weights=AllWeights(job.model, method="full_no_retain"),
        loss=supervised(job, weights={**dict.fromkeys(job.part_weights, 0.0), "jailbreak": 1.0}),
        batches=job.batches(),
        epochs=job.config.full.epochs,
        lr=job.rate("full.lr"),
    )


FULL = Rival(
    "full", "every weight, the same pairs and harmless conversations", _train_full, trains_in_place=True
)
FULL_NO_RETAIN = Rival(
    "full_no_retain", "every weight, the jailbreaks alone", _train_on_jailbreaks_alone, trains_in_place=True
)
