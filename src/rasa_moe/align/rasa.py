"""The whole method on objects: consistent routing, the choice of experts, and their repair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rasa_moe.align.loop import LogLine
from rasa_moe.align.readings import BaseReadings
from rasa_moe.align.stage import align, make_consistent
from rasa_moe.collect.stage import RetainRow
from rasa_moe.config import Config
from rasa_moe.data.rows import Pair
from rasa_moe.detect.stage import Detection, detect
from rasa_moe.moe import ExpertId, ExpertPatch, MoeMap
from rasa_moe.progress import Progress, no_progress


@dataclass(frozen=True, eq=False, kw_only=True)
class Repaired:
    """Hold what the method found and made.

    Attributes:
        detection: The scores of all experts, and the chosen ones.
        patch: Repaired rows and routers; the model itself is as it was.
        log: As in `Alignment`, of all phases that ran here.
    """

    detection: Detection
    patch: ExpertPatch
    log: tuple[LogLine, ...]


def rasa(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    *,
    pairs: Sequence[Pair],
    retain: Sequence[RetainRow],
    config: Config,
    routing: ExpertPatch | None = None,
    choose: Callable[[Detection], Sequence[ExpertId]] = lambda detection: detection.experts,
    base_name: str = "",
    checkpoint_path: Path | None = None,
    readings: BaseReadings | None = None,
    progress: Progress = no_progress,
) -> Repaired:
    """Repair a model: `make_consistent`, `detect` and `align`, one after the other.

    Args:
        model: The base model; it is left as it was.
        tokenizer: Its tokenizer.
        moe: Its map.
        pairs: Jailbreaks that worked, each with its refused plain request.
        retain: Harmless conversations with the model's own answers.
        config: `align`, `detect` and `seed` are read.
        routing: Consistent routers of an earlier `make_consistent` with the same `routing_settings`, seed and
            rows; None makes them here.
        choose: Takes the experts to repair from what detection found.
        base_name: Name written into the patch.
        checkpoint_path: Written after every phase, for the routers beside it; a later call goes on there.
        readings: As in `align`.
        progress: Called after every step.

    Raises:
        ConfigError: As in `detect`.
        TrainingError: As in `align`.
    """
    readings = readings or BaseReadings()
    shared: dict[str, Any] = {
        "pairs": pairs,
        "retain": retain,
        "config": config.align,
        "seed": config.seed,
        "base_name": base_name,
        "readings": readings,
        "progress": progress,
    }
    beside = None if checkpoint_path is None else checkpoint_path.with_name(f"routing-{checkpoint_path.name}")
    log: tuple[LogLine, ...] = ()
    if routing is None:
        consistent = make_consistent(model, tokenizer, moe, checkpoint_path=beside, **shared)
        if consistent is not None:
            routing, log = consistent.patch, consistent.log
    both = config.align.both_routings
    detection = readings.read(
        "detection",
        lambda: detect(
            model,
            tokenizer,
            moe,
            pairs=pairs,
            config=config.detect,
            routing=routing,
            both_routings=both,
            seed=config.seed,
            progress=progress,
        ),
        pairs=pairs,
        retain=(),
        facts=[config.detect.model_dump(), both, config.seed, routing and routing.manifest],
    )
    alignment = align(
        model,
        tokenizer,
        moe,
        experts=choose(detection),
        routing=routing,
        checkpoint_path=checkpoint_path,
        **shared,
    )
    return Repaired(detection=detection, patch=alignment.patch, log=log + alignment.log)
