"""RASA without any expert: do experts matter beside attention and consistent routing?"""

from __future__ import annotations

from rasa_moe.align.rivals.base import Job, Rival, Tuned
from rasa_moe.align.rivals.selection import rasa_on

_METHOD = "attention_only"


def _train(job: Job) -> Tuned:
    return rasa_on(job, lambda detection: (), method=_METHOD)


ATTENTION_ONLY = Rival(_METHOD, "RASA itself on no expert: attention of low rank, and routers", _train)
