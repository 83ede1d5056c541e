"""One cell of the tables: train one method once, ask it once. What a cell is decides the name of its file."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rasa_moe.config import Config
from rasa_moe.data.rows import Pair, Split
from rasa_moe.data.source import Source, load_source
from rasa_moe.errors import ConfigError, TrainingError
from rasa_moe.files import reported, sha256_file, sha256_json, write_json
from rasa_moe.reproduce.protocol import BASE, KNOWN, METHODS

if TYPE_CHECKING:
    from torch import Tensor

    from rasa_moe.collect.stage import RetainRow
    from rasa_moe.evaluate.suites import Suite

FORMAT = 3
# Settings that can change what a cell holds; the others may change without any cell being done again.
_DECIDING = {"seed", "collect", "detect", "align", "full", "rivals"}
_ATTACKS = ("attack_trained", "attack_held_out")


@dataclass(frozen=True)
class Cell:
    """Everything that decides the content of one cell.

    Attributes:
        method: Name of a method, or "base" for the untouched model.
        config: Settings and seed; names the model and the prompts.
        families: Families to train on; empty for the source's own train families.
        split: Split of the goals that are asked.
        goals: Most goals of one suite.
        goal_share: Share of the train goals whose pairs are drawn, by the config's seed.
        pairs: Most pairs; None for all of the drawn goals.
        only_attacks: Whether the questions besides attacks are left out.
    """

    method: str
    config: Config
    split: Split
    goals: int
    goal_share: float = 1.0
    pairs: int | None = None
    families: tuple[str, ...] = ()
    only_attacks: bool = False

    def key(self) -> str:
        """Return the SHA-256 of what decides the content: these facts, model files and prompts."""
        facts = {
            "format": FORMAT,
            "method": self.method,
            "config": self.config.model_dump(mode="json", include=_DECIDING),
            "answers": [
                self.config.evaluate.max_new_tokens,
                self.config.evaluate.batch_tokens,
            ],
            "split": self.split,
            "goals": self.goals,
            "only_attacks": self.only_attacks,
            "model": model_fingerprint(self.config.model),
            "prompts": prompts_fingerprint(self.config.data.source),
        }
        if (
            self.method != BASE
        ):  # the base model is not trained, so nothing about training decides its answers
            facts |= {
                "goal_share": self.goal_share,
                "pairs": self.pairs,
                "families": self.families,
            }
        elif self.families:
            facts |= {"families": self.families}
        return sha256_json(facts)

    def file(self, folder: Path) -> Path:
        """Return where the cell's result lies."""
        return folder / "cells" / f"{self.key()[:32]}.json"


def run_cell(cell: Cell, folder: Path) -> None:
    """Train, ask and write the result; a training that blows up is a result, too."""
    from rasa_moe.evaluate.stage import answer_suites, outcomes
    from rasa_moe.judges import get_judge

    model, tokenizer, moe = loaded(cell.config.model)
    source = source_of(cell)
    facts: dict[str, Any] = {
        "cell": describe(cell),
        "suites": [],
        "error": None,
        "num_experts": None,
    }
    started = time.perf_counter()
    tensors: Mapping[str, Tensor] = {}
    if cell.method != BASE:
        try:
            tensors, facts["num_experts"] = _tuned(cell, folder)
        except (TrainingError, ConfigError) as error:
            facts["error"] = str(error)
    facts["train_seconds"] = round(time.perf_counter() - started, 2)
    if facts["error"] is None:
        from rasa_moe.align.rivals import in_use

        started = time.perf_counter()
        suites = suites_of(cell)
        with in_use(moe, tensors):
            judged = answer_suites(
                model,
                tokenizer,
                suites=suites,
                judge=get_judge("exact" if source.is_synthetic else "rules"),
                max_new_tokens=cell.config.evaluate.max_new_tokens,
                batch_tokens=cell.config.evaluate.batch_tokens,
            )
        facts["suites"] = [
            {
                "name": suite.name,
                "kind": suite.kind,
                "group": suite.group,
                "goals": [row.goal for row in suite.rows],
                "outcomes": outcomes(suite, judged),
            }
            for suite in suites
        ]
        facts["answer_seconds"] = round(time.perf_counter() - started, 2)
    write_json(cell.file(folder), facts)


def suites_of(cell: Cell) -> list[Suite]:
    """Return what a cell asks; in tuning, harmless requests in unfamiliar wrappings as well."""
    from rasa_moe.evaluate.suites import make_suites
    from rasa_moe.reproduce.unfamiliar import unfamiliar_suites

    source = source_of(cell)
    suites = make_suites(source, split=cell.split, limit=cell.goals)
    if cell.split == "validation":
        suites += unfamiliar_suites(source, limit=cell.goals)
    return [suite for suite in suites if not cell.only_attacks or suite.kind in _ATTACKS]


def source_of(cell: Cell) -> Source:
    """Return a cell's prompts; in tuning, a known family that is left out becomes one of validation."""
    source = loaded_source(cell.config.data.source, cell.families)
    if cell.split != "validation" or not cell.families:
        return source
    own = loaded_source(cell.config.data.source)
    left_out = dict.fromkeys(set(own.families(*KNOWN)) - set(cell.families), cell.split)
    return replace(source, family_splits={**source.family_splits, **left_out})


def describe(cell: Cell) -> dict[str, Any]:
    """Return what a reader of the file wants to know about the cell."""
    return {
        "method": cell.method,
        "model": cell.config.model,
        "seed": cell.config.seed,
        "families": list(cell.families),
        "split": cell.split,
        "goals": cell.goals,
        "goal_share": cell.goal_share,
        "pairs": cell.pairs,
        "config": cell.config.model_dump(mode="json"),
    }


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
    from rasa_moe.collect.stage import collect
    from rasa_moe.data import write_pairs
    from rasa_moe.judges import get_judge

    place = data_folder(config, families, folder)
    if (place / "collected.json").exists():
        return
    model, tokenizer, _ = loaded(config.model)
    source = loaded_source(config.data.source, tuple(families))
    judge = get_judge("exact" if source.is_synthetic else "rules")
    collected = collect(model, tokenizer, source=source, judge=judge, config=config.collect)
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


def _tuned(cell: Cell, folder: Path) -> tuple[dict[str, Tensor], int | None]:
    """Train the cell's method; return its tensors and, for RASA, the number of experts it repaired."""
    from rasa_moe.align import rasa
    from rasa_moe.align.rivals import RIVALS, whole_tensors
    from rasa_moe.align.rivals.selection import with_few_resamples

    model, tokenizer, moe = loaded(cell.config.model)
    pairs, retain = _data(cell, folder)
    method = next(method for method in METHODS if method.name == cell.method)
    if method.rival is not None:
        rival = RIVALS[method.rival]
        return rival(model, tokenizer, moe, pairs=pairs, retain=retain, config=cell.config).tensors, None
    # The intervals of AAD are not part of any table here, so one resample will do.
    config = with_few_resamples(cell.config)
    repaired = rasa(model, tokenizer, moe, pairs=pairs, retain=retain, config=config)
    return whole_tensors(model, repaired.patch), len(repaired.detection.experts)


def _data(cell: Cell, folder: Path) -> tuple[list[Pair], list[RetainRow]]:
    collect_data(cell.config, cell.families, folder)
    pairs, retain = _collected(data_folder(cell.config, cell.families, folder))
    drawn = draw_pairs(pairs, share=cell.goal_share, most=cell.pairs, seed=cell.config.seed)
    return drawn, list(retain)


@cache
def _collected(place: Path) -> tuple[tuple[Pair, ...], tuple[RetainRow, ...]]:
    """Read pairs and retain set once a process."""
    from rasa_moe.artifacts import read_retain
    from rasa_moe.data import read_pairs

    return tuple(read_pairs(place / "pairs.jsonl")), tuple(read_retain(place / "retain.jsonl"))


@cache
def loaded(name: str) -> tuple[Any, Any, Any]:
    """Load a model once a process, in fp32 on the CPU; return (model, tokenizer, map)."""
    from rasa_moe.moe import discover, load_model

    model, tokenizer = load_model(name, dtype="float32", device="cpu")
    return model, tokenizer, discover(model)


@cache
def model_fingerprint(name: str) -> str:
    """Return a hash of a model's files, or of its name where it is not a folder."""
    folder = Path(name)
    if name.startswith("testbed/"):
        from rasa_moe.testbed import model_path

        folder = model_path(name.removeprefix("testbed/"))
    if not folder.is_dir():
        return sha256_json(name)
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return sha256_json([[file.name, sha256_file(file)] for file in files])


@cache
def prompts_fingerprint(source: str) -> str:
    """Return a hash of all prompts and of the families' splits."""
    prompts = loaded_source(source)
    return sha256_json([[repr(row) for row in prompts.rows], sorted(prompts.family_splits.items())])


@cache
def loaded_source(name: str, families: tuple[str, ...] = ()) -> Source:
    """Load prompts once a process."""
    return load_source(name, families=families)
