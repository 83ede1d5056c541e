"""Which cells the tables need: those known before tuning, and those that follow from what was chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rasa_moe.config import Config
from rasa_moe.reproduce.cells import Cell
from rasa_moe.reproduce.loading import loaded_source
from rasa_moe.reproduce.protocol import (
    ABLATIONS,
    BASE,
    FOLDS,
    KNOWN,
    METHODS,
    PASSES,
    RASA,
    SEEN_AGAIN,
    Method,
    Scale,
    method_named,
    seen,
    trials_of,
    with_settings,
)

# Each training of a trial has a seed of its own, so that no draw of pairs decides it; tables use 1, 2, ...
TUNING_SEED = 0
# (third of the known families left out, seed) of the trainings in each look at a trial.
LOOKS: tuple[tuple[tuple[int, int], ...], ...] = (
    ((0, TUNING_SEED),),
    ((1, 101), (2, 102)),
    ((0, 103), (1, 104), (2, 105)),
)


@dataclass(frozen=True)
class Place:
    """Where a cell goes in the tables.

    Attributes:
        table: "base", "tuning base", "tuning", "main", "passes", "transfer" or "ablation".
        model: Name of the model.
        method: Name of the method.
        row: Value of the tuned setting, trained family, or axis of the ablation.
        value: Value on that axis; in tuning, which third of the known families is left out.
        seed: Seed of the training.
    """

    table: str
    model: str
    method: str
    row: str = ""
    value: str = ""
    seed: int = TUNING_SEED


Planned = tuple[Place, Cell]


@dataclass(frozen=True)
class Plan:
    """Turn a scale, models and methods into cells.

    Attributes:
        scale: How much is measured.
        models: Names or directories.
        methods: Names of methods.
        config: Settings that all cells share.
    """

    scale: Scale
    models: tuple[str, ...]
    methods: tuple[str, ...]
    config: Config

    def __post_init__(self) -> None:
        if not 1 <= self.scale.thirds <= FOLDS:
            raise ValueError(f"{self.scale.thirds} thirds to leave out; there are {FOLDS} thirds")

    def method_list(self) -> list[Method]:
        """Return the methods in the order of the protocol."""
        return [method for method in METHODS if method.name in self.methods]

    def families(self) -> list[tuple[str, ...]]:
        """Return the choices of families that cells train on."""
        chosen = [self.known_families()]
        if self.scale.tunes:
            chosen += self.tuning_families()
        if self.scale.transfer_seeds:
            chosen += [(family,) for family in self.known_families()]
        return list(dict.fromkeys(chosen))

    def known_families(self) -> tuple[str, ...]:
        """Return the families that may be trained or tuned on: all of them are, for the tables."""
        return tuple(loaded_source(self.config.data.source).families(*KNOWN))

    def tuning_families(self) -> list[tuple[str, ...]]:
        """Return the choices of families that every trial trains on: the known ones without another third."""
        known = self.known_families()
        folds = [tuple(known[fold::FOLDS]) for fold in range(self.scale.thirds)]
        kept = [tuple(family for family in known if family not in fold) for fold in folds if fold]
        # One family cannot be left out of one.
        return [families for families in kept if families] or [known]

    def before_tuning(self) -> Iterator[Planned]:
        """Yield the base models, also on validation goals if there is a choice among trials."""
        for model in self.models:
            config = self._config(model, {}, seed=TUNING_SEED)
            yield (
                Place("base", model, BASE),
                Cell(BASE, config, "test", self.scale.goals, families=self.known_families()),
            )
            if self.scale.tunes:
                for third, families in enumerate(self.tuning_families()):
                    place = Place("tuning base", model, BASE, value=f"third {third}")
                    yield place, self._validation(BASE, config, families)

    def look(self, number: int, left: Mapping[tuple[str, str], Sequence[float]]) -> Iterator[Planned]:
        """Yield the trainings that trials get in one look.

        Args:
            number: Index in `LOOKS`.
            left: (model, method) -> values of the tuned setting that are still to choose from.
        """
        thirds = self.tuning_families()
        for (model, name), values in left.items():
            method = method_named(name)
            for value in values:
                settings = {**method.settings, method.tuned: value}
                for third, seed in LOOKS[number]:
                    if third < len(thirds):
                        config = self._config(model, settings, seed=seed)
                        place = Place("tuning", model, name, f"{value:g}", f"third {third}", seed)
                        yield place, self._validation(name, config, thirds[third])

    def all_trials(self) -> dict[tuple[str, str], list[float]]:
        """Return (model, method) -> values of its trials; nothing if the scale does not tune."""
        if not self.scale.tunes:
            return {}
        return {
            (model, method.name): list(trials_of(method, self.scale, self.config))
            for model in self.models
            for method in self.method_list()
        }

    def after_tuning(self, chosen: Mapping[tuple[str, str], float]) -> Iterator[Planned]:
        """Yield the cells of the tables.

        Args:
            chosen: (model, method) -> value of the tuned setting.
        """
        yield from self._as_tuned("main", chosen, seeds=self.scale.seeds, methods=self.method_list())
        if RASA in self.methods:
            yield from self._as_tuned(
                "passes", chosen, seeds=self.scale.pass_seeds, methods=self.seen_again(), passes=PASSES
            )
            yield from self._transfer(chosen)
            yield from self._ablations(chosen)

    @property
    def shows_passes(self) -> bool:
        """Whether some methods also see every pair `PASSES` times."""
        return bool(self.scale.epochs and self.scale.pass_seeds) and RASA in self.methods

    def seen_again(self) -> list[Method]:
        """Return the methods that also see every pair `PASSES` times."""
        return [method for method in self.method_list() if method.name in SEEN_AGAIN]

    def _as_tuned(
        self,
        table: str,
        chosen: Mapping[tuple[str, str], float],
        *,
        seeds: int,
        methods: Sequence[Method],
        passes: int | None = None,
    ) -> Iterator[Planned]:
        """Yield methods as tuned, seed by seed; None sees pairs as often as the scale says."""
        often = {} if passes is None else seen(passes)
        for seed in range(1, seeds + 1):
            for model in self.models:
                for method in methods:
                    settings = {**often, **method.settings, method.tuned: chosen[model, method.name]}
                    config = self._config(model, settings, seed=seed)
                    yield Place(table, model, method.name, seed=seed), self._trained(method.name, config)

    def _transfer(self, chosen: Mapping[tuple[str, str], float]) -> Iterator[Planned]:
        if not self.scale.transfer_seeds:
            return
        for model in self.models:
            for family in self.known_families():
                for seed in range(1, self.scale.transfer_seeds + 1):
                    config = self._config(model, {"align.expert_lr": chosen[model, RASA]}, seed=seed)
                    cell = Cell(
                        RASA,
                        config,
                        "test",
                        self.scale.goals,
                        goal_share=self.scale.goal_share,
                        families=(family,),
                        only_attacks=True,
                    )
                    yield Place("transfer", model, RASA, family, seed=seed), cell

    def _ablations(self, chosen: Mapping[tuple[str, str], float]) -> Iterator[Planned]:
        for model in self.models if self.scale.ablation_seeds else ():
            for axis, value, changes in ablation_values():
                for seed in range(1, self.scale.ablation_seeds + 1):
                    settings = {"align.expert_lr": chosen[model, RASA], **changes}
                    pairs = settings.pop("pairs", self.scale.pairs)
                    config = self._config(model, settings, seed=seed)
                    cell = self._trained(RASA, config, pairs=pairs)
                    yield Place("ablation", model, RASA, axis, value, seed), cell

    def _config(self, model: str, settings: Mapping[str, Any], *, seed: int) -> Config:
        shared = {
            "model": model,
            "seed": seed,
            "align.batch_size": self.scale.batch_size,
            # One thread gains nothing from larger passes, and less padding is less work: 0.86x the time.
            "align.batch_tokens": 1024,
            **({} if self.scale.epochs is None else seen(self.scale.epochs)),
        }
        return with_settings(self.config, {**shared, **settings})

    def _validation(self, method: str, config: Config, families: tuple[str, ...]) -> Cell:
        scale = self.scale
        return Cell(
            method,
            config,
            "validation",
            scale.tuning_goals,
            goal_share=scale.goal_share,
            pairs=scale.pairs,
            families=families,
        )

    def _trained(self, method: str, config: Config, *, pairs: int | None = None) -> Cell:
        scale = self.scale
        return Cell(
            method,
            config,
            "test",
            scale.goals,
            goal_share=scale.goal_share,
            pairs=scale.pairs if pairs is None else pairs,
            families=self.known_families(),
        )


def ablation_values() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (axis, value in words, settings) of every ablation."""
    for axis, values in ABLATIONS.items():
        for value, changes in values:
            yield axis, value, dict(changes)


def unique(planned: Sequence[Planned]) -> list[Cell]:
    """Return the cells without repetition: one training may stand in several tables."""
    return list({cell.key(): cell for _, cell in planned}.values())
