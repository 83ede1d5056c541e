"""Load training.jsonl and audit.json."""

from __future__ import annotations

import math
from pathlib import Path

from rasa_moe.report.reading import Record, read_json, read_json_lines
from rasa_moe.report.records import (
    Audit,
    AuditRow,
    AuditVerdict,
    Combination,
    Drift,
    Moved,
    Returned,
    Share,
    Training,
    TrainingStep,
)

CURVES = (
    "loss",
    "loss_jailbreak",
    "loss_anchor",
    "loss_retain",
    "loss_recovery",
    "loss_drift",
    "kl",
    "kl_retain",
)


def load_training(path: Path) -> Training:
    """Read the log of all methods; lines of events other than "moved" carry nothing the page shows."""
    steps: list[TrainingStep] = []
    moved: list[Moved] = []
    for record in read_json_lines(path):
        if record.values.get("event") == "moved":
            moved.append(_moved(record))
        elif "event" not in record.values and "step" in record.values:
            steps.append(_step(record))
    return Training(steps=tuple(steps), moved=tuple(moved))


def _step(record: Record) -> TrainingStep:
    # A loss that became NaN is a finding, not a broken file: it is left as a gap and counted.
    present = {name: record.values[name] for name in CURVES if record.values.get(name) is not None}
    finite = {
        name: float(value)
        for name, value in present.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
    return TrainingStep(
        method=record.text("method"),
        phase=record.text("phase"),
        round=record.count("round", default=0),
        values=finite,
        has_broken_value=len(finite) < len(present),
    )


def _moved(record: Record) -> Moved:
    changes = record.values.get("relative_change")
    if not isinstance(changes, dict):
        raise record.fail("'relative_change' should be an object")
    inner = Record(changes, record.where, record.remedy)
    numbers = {str(part): inner.optional_number(part, low=0) for part in changes}
    return Moved(
        method=record.text("method"),
        phase=record.text("phase"),
        round=record.count("round", default=0),
        relative_change={part: value for part, value in numbers.items() if value is not None},
    )


def load_audit(path: Path) -> Audit:
    """Read audit.json."""
    record = read_json(path)
    return Audit(
        rows=tuple(_audit_row(entry) for entry in record.entries("rows")),
        drift=tuple(_drift(entry) for entry in record.entries("drift")),
        returned=tuple(_returned(entry) for entry in record.entries("returned")),
        sentences=record.texts("sentences"),
        shares=tuple(_share(entry) for entry in record.entries("shapley")),
        combinations=tuple(_combination(entry) for entry in record.entries("combinations")),
        verdicts=tuple(
            AuditVerdict(entry.text("model"), entry.text("verdict"), entry.text("reason", default=""))
            for entry in record.entries("verdicts")
        ),
        rule=record.text("rule", default=""),
    )


def _share(entry: Record) -> Share:
    return Share(
        model=entry.text("model"),
        game=entry.text("game"),
        component=entry.text("component"),
        share=entry.estimate("share", low=-math.inf, high=math.inf),
    )


def _combination(entry: Record) -> Combination:
    return Combination(
        model=entry.text("model"),
        game=entry.text("game"),
        tuned=entry.texts("tuned"),
        estimate=entry.counted(),
    )


def _audit_row(entry: Record) -> AuditRow:
    return AuditRow(
        name=entry.text("name"),
        description=entry.text("description", default=""),
        model=entry.text("model", default=""),
        estimate=entry.counted(),
    )


def _drift(entry: Record) -> Drift:
    return Drift(
        model=entry.text("model"), layer=entry.count("layer"), drift=entry.number("drift", low=0, high=1)
    )


def _returned(entry: Record) -> Returned:
    # A share of the gain may leave [0, 1]: a swap can make matters worse than the base, or better than the
    # tune.
    share = entry.estimate("share_returned", low=-math.inf, high=math.inf)
    return Returned(
        model=entry.text("model"),
        component=entry.text("component"),
        base_rate=entry.number("base_rate", low=0, high=1),
        tuned_rate=entry.number("tuned_rate", low=0, high=1),
        swapped_rate=entry.number("swapped_rate", low=0, high=1),
        share=share,
    )
