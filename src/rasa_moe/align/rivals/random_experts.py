"""RASA on random experts, as many in every layer as it would choose: does the choice by AAD matter?"""

from __future__ import annotations

from dataclasses import replace

from rasa_moe.align.rivals.base import Job, Rival, Tuned, whole_tensors
from rasa_moe.align.rivals.selection import rasa_detection
from rasa_moe.align.stage import align
from rasa_moe.detect.aad import random_like
from rasa_moe.moe import ExpertId

_METHOD = "random_experts"


def random_experts(job: Job) -> list[ExpertId]:
    """Draw, once and by seed, as many experts in every layer as RASA selects there."""
    moe = job.moe
    selected = [(moe.row_of(expert.layer), expert.expert) for expert in rasa_detection(job).experts]
    drawn = random_like(selected, (moe.num_layers, moe.num_experts), seed=job.config.seed)
    return [ExpertId(moe.layers[row].index, expert) for row, expert in drawn]


def _train(job: Job) -> Tuned:
    alignment = align(
        job.model,
        job.tokenizer,
        job.moe,
        pairs=job.pairs,
        retain=job.retain,
        experts=random_experts(job),
        config=job.config.align,
        seed=job.config.seed,
        checkpoint_path=job.checkpoint_path,
        progress=lambda _, done, total: job.progress(_METHOD, done, total),
    )
    log = tuple({**line, "method": _METHOD} for line in alignment.log)
    return replace(Tuned(tensors=whole_tensors(job.model, alignment.patch)), log=log)


RANDOM_EXPERTS = Rival(_METHOD, "RASA itself on random experts, as many in every layer", _train)
