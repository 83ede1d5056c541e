"""The tables as plain rows: one dict a line, the same for CSV, Markdown and the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rasa_moe.evaluate.statistics import adjusted_p_values
from rasa_moe.reproduce.estimates import difference_over_seeds, mean_over_seeds
from rasa_moe.reproduce.plan import Plan, ablation_values
from rasa_moe.reproduce.protocol import BASE, PASSES, RASA
from rasa_moe.reproduce.results import MEASURES, Measured, select, stack
from rasa_moe.reproduce.rule import Trial

Row = dict[str, Any]
_ATTACKS = ("attack_trained", "attack_held_out")
_COMPARED = (
    "attack_trained",
    "attack_held_out",
    "attack_begun",
    "wrapped_benign",
    "over_refusal",
    "ability",
)
_CLEAR = 0.05
ALL_KNOWN = "all known families"
BETTER, WORSE, UNCLEAR = "RASA better", "RASA worse", "not clear"


def trainings_of(measured: Sequence[Measured], model: str, method: str) -> list[Measured]:
    """Return the trainings behind a method's lines; the base model has one, untrained."""
    return select(measured, "base" if method == BASE else "main", model, method=method)


def means_table(measured: Sequence[Measured], plan: Plan) -> list[Row]:
    """Return one line a (model, method, measure): the main table."""
    rows = []
    for model in plan.models:
        for method in (BASE, *(method.name for method in plan.method_list())):
            trainings = trainings_of(measured, model, method)
            rows += [{"model": model, "method": method, **line} for line in _mean_lines(trainings)]
    return rows


def suites_table(measured: Sequence[Measured], plan: Plan, *, attacks: bool) -> list[Row]:
    """Return one line a (model, method, suite): table (a) with `attacks`, else the suites of table (c)."""
    rows = []
    for model in plan.models:
        base = trainings_of(measured, model, BASE)[0]
        asked = [
            (suite["kind"], suite["name"], suite["group"])
            for suite in base.content["suites"]
            if (suite["kind"] in (*_ATTACKS, "plain_harmful")) == attacks
        ]
        for kind, name, group in asked:
            for method in (BASE, *(method.name for method in plan.method_list())):
                values = stack(trainings_of(measured, model, method), kind, suite=name)
                line = {
                    "model": model,
                    "suite": name,
                    "kind": kind,
                    "group": group,
                    "method": method,
                }
                rows += [] if values is None else [{**line, **asdict(mean_over_seeds(values))}]
    return rows


def paired_table(measured: Sequence[Measured], plan: Plan) -> list[Row]:
    """Return RASA against every other method, paired; p-values are adjusted over all lines of a model."""
    rows: list[Row] = []
    for model in plan.models if RASA in plan.methods else ():
        trainings = {method.name: trainings_of(measured, model, method.name) for method in plan.method_list()}
        rows += _compared(model, trainings)
    return rows


def passes_table(measured: Sequence[Measured], plan: Plan) -> list[Row]:
    """Return table (e): one line a (model, method, passes over the pairs, measure), all on the same seeds."""
    rows: list[Row] = []
    for model in plan.models if plan.shows_passes else ():
        for method in plan.seen_again():
            often = select(measured, "passes", model, method=method.name)
            once = select(measured, "main", model, method=method.name)[: len(often)]
            for passes, trainings in ((plan.scale.epochs, once), (PASSES, often)):
                line = {"model": model, "method": method.name, "passes": passes}
                rows += [{**line, **mean} for mean in _mean_lines(trainings)]
    return rows


def passes_paired_table(measured: Sequence[Measured], plan: Plan) -> list[Row]:
    """Return RASA against the others that saw the pairs as often, `PASSES` times, as in `paired_table`."""
    rows: list[Row] = []
    for model in plan.models if plan.shows_passes else ():
        names = [method.name for method in plan.seen_again()]
        rows += _compared(model, {name: select(measured, "passes", model, method=name) for name in names})
    return rows


def _compared(model: str, trainings: Mapping[str, Sequence[Measured]]) -> list[Row]:
    """Return RASA minus every other method, with p-values adjusted over all lines."""
    lines = [
        {"model": model, **line}
        for other, theirs in trainings.items()
        if other != RASA
        for line in _against(trainings[RASA], theirs, other)
    ]
    adjusted = adjusted_p_values([line["p_value"] for line in lines])
    for line, p_value in zip(lines, adjusted, strict=True):
        line["p_value_adjusted"] = p_value
        line["verdict"] = _verdict(line)
    return lines


def _against(ours: Sequence[Measured], theirs: Sequence[Measured], other: str) -> Iterator[Row]:
    both = {one.place.seed for one in ours if not one.has_failed} & {
        one.place.seed for one in theirs if not one.has_failed
    }
    for name in _COMPARED:
        values = [stack([one for one in side if one.place.seed in both], name) for side in (ours, theirs)]
        if values[0] is not None and values[1] is not None:
            difference = asdict(difference_over_seeds(values[0], values[1]))
            yield {
                "measure": name,
                "first": RASA,
                "second": other,
                **difference,
            }


def _verdict(line: Row) -> str:
    """Say "RASA better", "RASA worse" or "not clear": the adjusted test and the interval must agree."""
    is_clear = line["p_value_adjusted"] < _CLEAR and (line["ci_low"] > 0 or line["ci_high"] < 0)
    if not is_clear:
        return UNCLEAR
    lower_is_better = MEASURES[line["measure"]][1]
    return BETTER if (line["difference"] < 0) == lower_is_better else WORSE


def transfer_table(measured: Sequence[Measured], plan: Plan) -> list[Row]:
    """Return table (b): RASA trained on one family (or all known families), asked in every other."""
    rows = []
    for model in plan.models if plan.scale.transfer_seeds else ():
        for trained in [*plan.known_families(), ALL_KNOWN]:
            if trained == ALL_KNOWN:
                trainings = trainings_of(measured, model, RASA)
            else:
                trainings = select(measured, "transfer", model, row=trained)
            usable = [one for one in trainings if not one.has_failed]
            suites = usable[0].content["suites"] if usable else []
            for suite in suites:
                values = stack(usable, suite["kind"], suite=suite["name"])
                if suite["kind"] in _ATTACKS and values is not None:
                    line = {
                        "model": model,
                        "trained": trained,
                        "tested": suite["name"],
                        "group": suite["group"],
                    }
                    line["is_trained"] = suite["kind"] == _ATTACKS[0]
                    rows.append(line | asdict(mean_over_seeds(values)))
    return rows


def ablation_table(measured: Sequence[Measured], plan: Plan) -> list[Row]:
    """Return table (d): one line a (model, axis, value, measure)."""
    rows = []
    for model in plan.models if plan.scale.ablation_seeds else ():
        for axis, value, _ in ablation_values():
            trainings = select(measured, "ablation", model, row=axis, value=value)
            experts = next(
                (one.content["num_experts"] for one in trainings if not one.has_failed),
                None,
            )
            line = {
                "model": model,
                "axis": axis,
                "value": value,
                "num_experts": experts,
            }
            rows += [{**line, **mean} for mean in _mean_lines(trainings)]
            failed = [one.content["error"] for one in trainings if one.has_failed]
            rows += [{**line, "measure": "failed", "error": failed[0]}] if failed else []
    return rows


def tuning_table(
    plan: Plan,
    trials: Mapping[tuple[str, str], Sequence[Trial]],
    chosen: Mapping[tuple[str, str], float],
) -> list[Row]:
    """Return one line a trial, on validation goals, with what was chosen; or the values in use."""
    rows: list[Row] = []
    for model in plan.models:
        for method in plan.method_list():
            facts = {"model": model, "method": method.name, "setting": method.tuned}
            value = chosen[model, method.name]
            if not plan.scale.tunes:
                rows.append({**facts, "value": value, "is_chosen": True})
                continue
            rows += [
                {
                    **facts,
                    "value": trial.value,
                    "trainings": trial.trainings,
                    "attack_left_out": _none_if_nan(trial.attack),
                    "wrapped_benign": _none_if_nan(trial.wrapped),
                    "ability": _none_if_nan(trial.ability),
                    "harm_and_cost": _none_if_infinite(trial.harm_and_cost),
                    "is_chosen": trial.value == value,
                }
                for trial in trials[model, method.name]
            ]
    return rows


def _mean_lines(trainings: Sequence[Measured]) -> Iterator[Row]:
    failed = sum(one.has_failed for one in trainings)
    for name in MEASURES:
        values = stack(trainings, name)
        if values is not None:
            yield {"measure": name, **asdict(mean_over_seeds(values)), "failed": failed}


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _none_if_infinite(value: float) -> float | None:
    return None if math.isinf(value) else value
