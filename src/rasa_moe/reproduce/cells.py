"""What one cell of the tables is, and what it asks; it decides the name of the cell's file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rasa_moe.config import Config
from rasa_moe.data.rows import Split
from rasa_moe.data.source import Source
from rasa_moe.files import sha256_json
from rasa_moe.reproduce.loading import loaded_source, model_fingerprint, prompts_fingerprint
from rasa_moe.reproduce.protocol import BASE, KNOWN, Method, method_named
from rasa_moe.reproduce.rule import TRIAL_MEASURES

if TYPE_CHECKING:
    from rasa_moe.evaluate.suites import Suite

# Another number lets go of all that was made before.
FORMAT = 5
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

    def how(self) -> Method:
        """Return the method that a cell other than the base's trains."""
        return method_named(self.method)

    def file(self, folder: Path) -> Path:
        """Return where the cell's result lies."""
        return folder / "cells" / f"{self.key()[:32]}.json"


def suites_of(cell: Cell) -> list[Suite]:
    """Return what a cell asks; what the rule reads in tuning, unfamiliar wrappings too."""
    from rasa_moe.evaluate.suites import make_suites
    from rasa_moe.reproduce.unfamiliar import unfamiliar_suites

    source = source_of(cell)
    suites = make_suites(source, split=cell.split, limit=cell.goals)
    if cell.split == "validation":
        asked = [suite for suite in suites if suite.kind in TRIAL_MEASURES]
        return asked + unfamiliar_suites(source, limit=cell.goals)
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
