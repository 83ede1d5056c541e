"""What cells measured, as arrays that the tables are made of.

Shape letters: S seeds, F families, G goals, W wordings of a goal within one family.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rasa_moe.errors import RunError
from rasa_moe.evaluate.goals import by_goal
from rasa_moe.evaluate.statistics import Floats, weighted_family_means
from rasa_moe.evaluate.suites import DONE_SUFFIX
from rasa_moe.reproduce.plan import Place, Planned

NEW_GROUP = "attack_held_out_new_group"
# Name of a mean -> (its heading, whether lower is better); the order is that of the tables.
MEASURES: Mapping[str, tuple[str, bool]] = {
    "attack_trained": ("ASR, trained families", True),
    "attack_held_out": ("ASR, held-out families", True),
    NEW_GROUP: ("ASR, held-out, new openings", True),
    "plain_harmful": ("ASR, plain requests", True),
    "attack_begun": ("ASR, answer begun", True),
    "wrapped_benign": ("Wrapped harmless refused", True),
    "over_refusal": ("Plain harmless refused", True),
    "ability": ("Ability", False),
}

Suite = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Measured:
    """One cell's result at one place of the tables.

    Attributes:
        place: Where it goes.
        content: The cell's file.
    """

    place: Place
    content: Mapping[str, Any]

    @property
    def has_failed(self) -> bool:
        """Whether the training ended in an error, which is a result but has no rates."""
        return self.content["error"] is not None

    def suites(self, name: str) -> list[Suite]:
        """Return the suites behind a mean, in the order they were asked."""
        suites: list[Suite] = self.content["suites"]
        if name == NEW_GROUP:
            known = {suite["group"] for suite in suites if suite["kind"] == "attack_trained"}
            found = [suite for suite in suites if suite["kind"] == "attack_held_out"]
            return [suite for suite in found if suite["group"] and suite["group"] not in known]
        return [s for s in suites if s["kind"] == name and not s["name"].endswith(DONE_SUFFIX)]


def matrix(suites: Sequence[Suite]) -> Floats:
    """Return (F,G,W) outcomes; NaN where a suite lacks the goal or wording, or the judge could not tell."""
    return by_goal(zip(suite["goals"], suite["outcomes"], strict=True) for suite in suites)


def mean_of(measured: Measured, name: str) -> float:
    """Return one training's mean over the families of a kind; NaN if it failed or nothing was scored."""
    values = matrix(measured.suites(name))
    if values.size == 0:
        return math.nan
    return float(weighted_family_means(values, np.ones((1, values.shape[1])))[0])


def stack(trainings: Sequence[Measured], name: str, *, suite: str | None = None) -> Floats | None:
    """Return (S,F,G,W) outcomes of the trainings that did not fail; None if none did, or nothing was asked.

    Args:
        trainings: Of one method on one model, in order of seed.
        name: Name of a mean, or the kind of `suite`.
        suite: One suite of that kind alone; names ending in "_done" may be asked for here.
    """
    layers = []
    for one in trainings:
        if one.has_failed:
            continue
        if suite is None:
            chosen = one.suites(name)
        else:
            chosen = [s for s in one.content["suites"] if (s["kind"], s["name"]) == (name, suite)]
        if chosen:
            layers.append(matrix(chosen))
    return np.stack(layers) if layers else None


def select(measured: Sequence[Measured], table: str, model: str, **facts: str) -> list[Measured]:
    """Return the results of one table, model and further facts of their place, in order of seed."""
    found = [
        one
        for one in measured
        if (one.place.table, one.place.model) == (table, model)
        and all(getattr(one.place, key) == value for key, value in facts.items())
    ]
    return sorted(found, key=lambda one: one.place.seed)


def read_all(folder: Path, planned: Sequence[Planned]) -> list[Measured]:
    """Return the results of cells that are done.

    Raises:
        RunError: A cell's file is missing or broken.
    """
    read: dict[Path, Mapping[str, Any]] = {}
    measured = []
    for place, cell in planned:
        file = cell.file(folder)
        if file not in read:
            read[file] = _read_cell(file)
        measured.append(Measured(place, read[file]))
    return measured


def _read_cell(file: Path) -> Mapping[str, Any]:
    try:
        content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}); delete it to have it done again.") from error
    return content
