"""RASA on random experts, as many in every layer as it would choose: does the choice by AAD matter?"""

from __future__ import annotations

from rasa_moe.align.rasa import rasa
from rasa_moe.align.rivals.base import Job, Rival, Tuned, whole_tensors
from rasa_moe.align.rivals.selection import with_few_resamples
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
    repaired = rasa(
        job.model,
        job.tokenizer,
        job.moe,
        pairs=job.pairs,
        retain=job.retain,
        config=with_few_resamples(job.config),
        routing=job.routing,
        choose=lambda detection: random_experts(job, detection),
        checkpoint_path=job.checkpoint_path,
        progress=lambda _, done, total: job.progress(_METHOD, done, total),
    )
    log = tuple({**line, "method": _METHOD} for line in repaired.log)
    return Tuned(tensors=whole_tensors(job.model, repaired.patch), log=log)


RANDOM_EXPERTS = Rival(_METHOD, "RASA itself on random experts, as many in every layer", _train)
