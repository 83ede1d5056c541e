"""Expert choice by affinity, as in ESFT: train the experts that the task's tokens are sent to most.

Deviation: ESFT takes experts layer by layer until they hold a share of the affinity; here as many as RASA
selects are taken over all layers, so that the two choices are compared at equal size.
"""

from __future__ import annotations

from rasa_moe.align.rivals.base import Job, Rival, Tuned
from rasa_moe.align.rivals.selection import base_detection
from rasa_moe.align.rivals.training import supervised, train
from rasa_moe.detect.aad import select_experts
from rasa_moe.moe import ExpertId, ExpertSlices

_METHOD = "affinity_experts"


def affinity_experts(job: Job) -> list[ExpertId]:
    """Return the experts that the jailbreaks' tokens choose most often, as many as RASA selects."""
    detection = base_detection(job)
    chosen = select_experts(detection.jailbreak_rates, budget=len(detection.experts))
    return [ExpertId(job.moe.layers[row].index, expert) for row, expert in chosen]


def _train(job: Job) -> Tuned:
    return train(
        job,
        method=_METHOD,
        weights=ExpertSlices(job.moe, affinity_experts(job)),
        loss=supervised(job),
        batches=job.batches(),
        epochs=job.config.rivals.affinity_experts.epochs,
        lr=job.rate("rivals.affinity_experts.lr"),
    )


AFFINITY_EXPERTS = Rival(_METHOD, "the experts jailbreaks use most (ESFT-style), as many as RASA", _train)
