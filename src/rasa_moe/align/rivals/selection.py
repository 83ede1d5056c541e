"""The choices of experts that rivals are matched to: RASA's own, measured again on the same pairs."""

from __future__ import annotations

from rasa_moe.align.rivals.base import Job
from rasa_moe.detect.stage import Detection, detect


def rasa_detection(job: Job) -> Detection:
    """Return what detection finds on the pairs of the job with the settings of the job.

    The selection depends on neither seed nor resamples, so it is the one that RASA itself repairs.
    """
    config = job.config.detect.model_copy(update={"bootstrap": 1})
    return detect(job.model, job.tokenizer, job.moe, pairs=job.pairs, config=config, seed=job.config.seed)
