"""Turn single outcomes of several models into rates with intervals and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rasa_moe.evaluate.statistics import adjusted_p_values, paired_change, rate_of

CORRECT, HARMFUL, REFUSED = "correct", "harmful answer", "refused"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Hold one question, asked of one model.

    Attributes:
        task: Name of the benchmark.
        metric: What `value` says is true: "correct", "harmful answer" or "refused".
        item: Names the question; the same for every model.
        value: Whether it is; None if a judge could not decide.
        is_parsed: False if no answer could be read from what the model said, which counts as wrong.
        answer: What the model said; "" where choices were compared instead.
    """

    task: str
    metric: str
    item: str
    value: bool | None
    is_parsed: bool = True
    answer: str = ""


@dataclass(frozen=True, kw_only=True)
class Benchmarks:
    """Hold the content of `benchmarks.json`.

    Attributes:
        models: Names, base first.
        about: How it was measured: versions, limit, chat template, judge.
        rows: Rate of every model on every benchmark.
        paired: Every other model against the base, on the same questions.
        notes: What a reader must know, such as questions that were left out.
    """

    models: tuple[str, ...]
    about: Mapping[str, Any]
    rows: tuple[dict[str, Any], ...]
    paired: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dicts."""
        return asdict(self)


def tabulate(
    outcomes: Mapping[str, Sequence[Outcome]],
    *,
    about: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Benchmarks:
    """Count what every model got right, and what changed from the first model to each other one.

    Args:
        outcomes: Model -> its outcomes; the base first. Every model was asked the same questions.
        about: How it was measured.
        notes: Sentences for the reader.

    Raises:
        ValueError: Two models were asked different questions.
    """
    models = tuple(outcomes)
    by_model = {model: _by_measure(found) for model, found in outcomes.items()}
    base = by_model[models[0]]
    rows, paired = [], []
    for measure, asked in base.items():
        for model in models:
            found = by_model[model].get(measure, {})
            if found.keys() != asked.keys():
                raise ValueError(f"{model} was not asked the same questions of {measure[0]} as {models[0]}")
            rows.append(_row(model, measure, list(found.values())))
            if model != models[0]:
                paired.append(_pair(models[0], model, measure, first=asked, second=found))
    adjusted = adjusted_p_values([row["p_value"] for row in paired])
    return Benchmarks(
        models=models,
        about=dict(about or {}),
        rows=tuple(rows),
        paired=tuple({**row, "p_value_adjusted": p} for row, p in zip(paired, adjusted, strict=True)),
        notes=tuple(notes),
    )


Measure = tuple[str, str]


def _by_measure(outcomes: Sequence[Outcome]) -> dict[Measure, dict[str, Outcome]]:
    found: dict[Measure, dict[str, Outcome]] = {}
    for outcome in outcomes:
        found.setdefault((outcome.task, outcome.metric), {})[outcome.item] = outcome
    return found


def _value(outcome: Outcome) -> float:
    return math.nan if outcome.value is None else float(outcome.value)


def _row(model: str, measure: Measure, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    rate = rate_of([_value(outcome) for outcome in outcomes])
    return {
        "task": measure[0],
        "metric": measure[1],
        "model": model,
        "k": rate.k,
        "n": rate.n,
        "unscored": rate.unscored,
        "unparsed": sum(not outcome.is_parsed for outcome in outcomes),
        "rate": rate.rate if rate.n else None,
        "ci_low": rate.ci_low,
        "ci_high": rate.ci_high,
    }


def _pair(
    before: str,
    after: str,
    measure: Measure,
    *,
    first: Mapping[str, Outcome],
    second: Mapping[str, Outcome],
) -> dict[str, Any]:
    change = paired_change(
        [_value(outcome) for outcome in first.values()], [_value(second[item]) for item in first]
    )
    return {
        "task": measure[0],
        "metric": measure[1],
        "before": before,
        "after": after,
        "n": change.n,
        "gained": change.gained,
        "lost": change.lost,
        "difference": change.difference if change.n else None,
        "ci_low": change.ci_low,
        "ci_high": change.ci_high,
        "p_value": change.p_value,
    }
