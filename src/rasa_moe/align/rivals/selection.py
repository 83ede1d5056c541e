"""What rivals take from detection, and RASA itself on other experts than it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rasa_moe.align.rasa import rasa
from rasa_moe.align.rivals.base import Job, Tuned, whole_tensors
from rasa_moe.config import Config
from rasa_moe.detect.stage import Detection, detect
from rasa_moe.moe import ExpertId


def rasa_on(job: Job, choose: Callable[[Detection], Sequence[ExpertId]], *, method: str) -> Tuned:
    """Repair other experts than detection found; everything else is RASA's.

    Args:
        job: What the method is given.
        choose: Takes the experts to repair from what detection found.
        method: Name in the log.
    """
    repaired = rasa(
        job.model,
        job.tokenizer,
        job.moe,
        pairs=job.pairs,
        retain=job.retain,
        config=with_few_resamples(job.config),
        routing=job.routing,
        choose=choose,
        checkpoint_path=job.checkpoint_path,
        readings=job.readings,
        progress=lambda _, done, total: job.progress(method, done, total),
    )
    log = tuple({**line, "method": method} for line in repaired.log)
    return Tuned(tensors=whole_tensors(job.model, repaired.patch), log=log)


def base_detection(job: Job) -> Detection:
    """Return what detection finds in the base model, whose routing no rival has made consistent."""
    config = with_few_resamples(job.config)
    return detect(job.model, job.tokenizer, job.moe, pairs=job.pairs, config=config.detect, seed=config.seed)


def with_few_resamples(config: Config) -> Config:
    """Leave the bootstrap out, whose intervals nobody reads; the selection does not depend on it."""
    detection = config.detect.model_copy(update={"bootstrap": 1})
    return config.model_copy(update={"detect": detection})
