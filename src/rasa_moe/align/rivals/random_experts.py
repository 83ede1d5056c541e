"""RASA on random experts, as many in every layer as it would choose: does the choice by AAD matter?"""

from __future__ import annotations

from rasa_moe.align.rivals.base import Job, Rival, Tuned
from rasa_moe.align.rivals.selection import rasa_on
from rasa_moe.detect.aad import random_like
from rasa_moe.detect.stage import Detection
from rasa_moe.moe import ExpertId

_METHOD = "random_experts"


def random_experts(job: Job, detection: Detection) -> list[ExpertId]:
    """Draw, once and by seed, as many experts in every layer as RASA selects there."""
    moe = job.moe
    selected = [(moe.row_of(expert.layer), expert.expert) for expert in detection.experts]
    drawn = random_like(selected, (moe.num_layers, moe.num_experts), seed=job.config.seed)
    return [ExpertId(moe.layers[row].index, expert) for row, expert in drawn]


def _train(job: Job) -> Tuned:
    return rasa_on(job, lambda detection: random_experts(job, detection), method=_METHOD)


RANDOM_EXPERTS = Rival(_METHOD, "RASA itself on random experts, as many in every layer", _train)
