"""What cells share, each made once: pairs with their retain set, and consistent routers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rasa_moe.config import Config
from rasa_moe.data.rows import Pair
from rasa_moe.errors import ModelError, RunError, TrainingError
from rasa_moe.files import reported, sha256_json, write_json
from rasa_moe.reproduce.cells import FORMAT, Cell
from rasa_moe.reproduce.loading import (
    base_readings,
    loaded,
    loaded_source,
    model_fingerprint,
    prompts_fingerprint,
)
from rasa_moe.reproduce.protocol import BASE

if TYPE_CHECKING:
    from rasa_moe.collect.stage import RetainRow
    from rasa_moe.moe import ExpertPatch


def draw_pairs(pairs: Sequence[Pair], *, share: float, most: int | None, seed: int) -> list[Pair]:
    """Draw the pairs of a share of the goals, then at most so many of them; by seed, in the order collected.

    Whole goals are drawn because pairs of one goal under several attacks resemble each other.
    """
    goals = sorted({pair.goal for pair in pairs})
    kept = set(random.Random(f"goals {seed}").sample(goals, k=max(1, round(share * len(goals)))))
    places = [place for place, pair in enumerate(pairs) if pair.goal in kept]
    if most is not None and most < len(places):
        places = sorted(random.Random(f"pairs {seed}").sample(places, k=most))
    return [pairs[place] for place in places]


def collect_data(config: Config, families: Sequence[str], folder: Path) -> None:
    """Ask the base model for the pairs and the retain set of a choice of families, unless that is done."""
    from rasa_moe.artifacts import write_retain
    from rasa_moe.collect import begin_otherwise, collect
    from rasa_moe.data import write_pairs
    from rasa_moe.judges import get_judge

    place = data_folder(config, families, folder)
    if (place / "collected.json").exists():
        return
    model, tokenizer, _ = loaded(config.model)
    source = loaded_source(config.data.source, tuple(families))
    judge = get_judge("exact" if source.is_synthetic else "rules")
    collected = collect(model, tokenizer, source=source, judge=judge, config=config.collect)
    collected = begin_otherwise(model, tokenizer, collected, judge=judge, config=config.collect)
    with reported(place):
        place.mkdir(parents=True, exist_ok=True)
        write_pairs(place / "pairs.jsonl", collected.pairs)
        write_retain(place / "retain.jsonl", collected.retain)
        write_json(place / "collected.json", dict(collected.counts))


def data_folder(config: Config, families: Iterable[str], folder: Path) -> Path:
    """Return where pairs and retain set of a model and a choice of families lie."""
    facts = [
        FORMAT,
        model_fingerprint(config.model),
        prompts_fingerprint(config.data.source),
        config.collect.model_dump(mode="json"),
        sorted(families),
    ]
    return folder / "data" / sha256_json(facts)[:32]


def training_data(cell: Cell, folder: Path) -> tuple[list[Pair], list[RetainRow]]:
    """Return the pairs and the retain set of a cell, collected now if they are not yet."""
    collect_data(cell.config, cell.families, folder)
    pairs, retain = _collected(data_folder(cell.config, cell.families, folder))
    drawn = draw_pairs(pairs, share=cell.goal_share, most=cell.pairs, seed=cell.config.seed)
    return drawn, list(retain)


def rows_of(cell: Cell) -> tuple[object, ...]:
    """Return what tells the rows that cells train on apart."""
    return cell.config.model, cell.families, cell.goal_share, cell.pairs, cell.config.seed


@cache
def _collected(place: Path) -> tuple[tuple[Pair, ...], tuple[RetainRow, ...]]:
    """Read pairs and retain set once a process."""
    from rasa_moe.artifacts import read_retain
    from rasa_moe.data import read_pairs

    return tuple(read_pairs(place / "pairs.jsonl")), tuple(read_retain(place / "retain.jsonl"))


def routing_folder(cell: Cell, folder: Path) -> Path | None:
    """Return where the consistent routers of a cell lie; None for a cell that does not take any.

    Cells that differ in nothing but the repair have the same.
    """
    from rasa_moe.align import routing_settings

    if cell.method == BASE or not cell.how().is_repair:
        return None
    settings = routing_settings(cell.config.align)
    if settings is None:
        return None
    data = data_folder(cell.config, cell.families, folder).name
    facts = [data, settings, cell.config.seed, cell.goal_share, cell.pairs]
    return folder / "routing" / sha256_json(facts)[:32]


def make_routing(cell: Cell, folder: Path) -> ExpertPatch | None:
    """Make a cell's routing consistent, or read it where that is done; None as in `routing_folder`.

    Raises:
        TrainingError: The routers cannot be trained at this rate.
        RunError: What was made is damaged.
    """
    from rasa_moe.align import make_consistent
    from rasa_moe.moe import ExpertPatch

    place = routing_folder(cell, folder)
    if place is None:
        return None
    if place.is_dir():
        try:
            return ExpertPatch.load(place)
        except ModelError as error:
            raise RunError(f"{place} cannot be read; delete it to have it made again.") from error
    model, tokenizer, moe = loaded(cell.config.model)
    pairs, retain = training_data(cell, folder)
    made = make_consistent(
        model,
        tokenizer,
        moe,
        pairs=pairs,
        retain=retain,
        config=cell.config.align,
        seed=cell.config.seed,
        readings=base_readings(cell.config.model),
    )
    assert made is not None  # as `routing_settings` says
    made.patch.save(place)
    return made.patch


def prepare_routing(cell: Cell, folder: Path) -> None:
    """Make the routing of all cells that share a cell's; these will tell of a failure themselves."""
    with suppress(TrainingError):
        make_routing(cell, folder)
