"""What rivals take from detection: the discrepancies of the base model on the same pairs."""

from __future__ import annotations

from rasa_moe.align.rivals.base import Job
from rasa_moe.config import Config
from rasa_moe.detect.stage import Detection, detect


def base_detection(job: Job) -> Detection:
    """Return what detection finds in the base model, whose routing no rival has made consistent."""
    config = with_few_resamples(job.config)
    return detect(job.model, job.tokenizer, job.moe, pairs=job.pairs, config=config.detect, seed=config.seed)


def with_few_resamples(config: Config) -> Config:
    """Leave the bootstrap out, whose intervals nobody reads; the selection does not depend on it."""
    detection = config.detect.model_copy(update={"bootstrap": 1})
    return config.model_copy(update={"detect": detection})
