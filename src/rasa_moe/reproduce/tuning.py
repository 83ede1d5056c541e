"""Tuning as far as the results on the disk tell: which trials go on to the next look, and what is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from rasa_moe.reproduce.plan import LOOKS, Plan, Planned
from rasa_moe.reproduce.results import mean_of, read_all, select
from rasa_moe.reproduce.rule import MARGINS, TRIAL_MEASURES, Trial, choose, going_on

Trials = dict[tuple[str, str], list[Trial]]
Chosen = dict[tuple[str, str], float]


@dataclass(frozen=True)
class Tuning:
    """What is known of tuning.

    Attributes:
        planned: Cells up to the last look that is known; only of that one some may be missing.
        is_done: Whether none is missing and no look follows.
        guessed: About what the looks after it will add, for the budget.
        trials: (model, method) -> its trials; empty until it is done.
        chosen: (model, method) -> value of the tuned setting; empty until it is done.
    """

    planned: list[Planned]
    is_done: bool
    guessed: list[Planned] = field(default_factory=list)
    trials: Trials = field(default_factory=dict)
    chosen: Chosen = field(default_factory=dict)


def tuning_so_far(plan: Plan, folder: Path) -> Tuning:
    """Play tuning from the cells that are done, up to the first look with one missing.

    Raises:
        RunError: A cell's file is broken.
    """
    planned = list(plan.before_tuning())
    left = plan.all_trials()
    trials: Trials = {}
    for number in range(len(LOOKS)):
        planned += plan.look(number, left)
        if not all(cell.file(folder).exists() for _, cell in planned):
            return Tuning(planned, is_done=False, guessed=_guess(plan, number))
        trials = _trials(plan, planned, folder)
        if number < len(MARGINS):
            left = {method: going_on(trials[method], MARGINS[number]) for method in left}
    chosen = {method: choose(found).value for method, found in trials.items()}
    return Tuning(planned, is_done=True, trials=trials, chosen=chosen)


def _guess(plan: Plan, number: int) -> list[Planned]:
    """Return about what the looks after `number` will add."""
    trials = plan.all_trials()
    if number == 0:  # some trials will miss the second look, about as many trainings as the third will add
        return list(plan.look(1, trials))
    one_each = {method: values[:1] for method, values in trials.items()}
    return [planned for later in range(number + 1, len(LOOKS)) for planned in plan.look(later, one_each)]


def _trials(plan: Plan, planned: Sequence[Planned], folder: Path) -> Trials:
    measured = read_all(folder, planned)
    trials: Trials = {}
    for model, method in plan.all_trials():
        base = {
            one.place.value: [mean_of(one, name) for name in TRIAL_MEASURES[1:]]
            for one in select(measured, "tuning base", model)
        }
        values: dict[str, list[list[float]]] = {}
        for one in select(measured, "tuning", model, method=method):
            means = [mean_of(one, name) for name in TRIAL_MEASURES] + base[one.place.value]
            values.setdefault(one.place.row, []).append(means)
        trials[model, method] = [
            # A mean over a training that failed is NaN, and so is never chosen.
            Trial(float(value), len(found), *map(fmean, zip(*found, strict=True)))
            for value, found in values.items()
        ]
    return trials
