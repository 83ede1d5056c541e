"""The training part of the page: losses, KL, and how far the weights moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rasa_moe.report.curves import Line, Mark, line_chart, shorten, shortened_position
from rasa_moe.report.markup import Html, disclosure, el, join, table
from rasa_moe.report.numbers import relative, whole
from rasa_moe.report.records import Moved, Training, TrainingStep
from rasa_moe.report.vocabulary import REPAIRED, model_label

# Below this a stage did nothing worth the name; bf16 weights with a tiny learning rate end here.
HARDLY_MOVED = 1e-6


@dataclass(frozen=True)
class Curve:
    """A quantity of the log, how it is called and how it is drawn."""

    key: str
    label: str
    style: str


LOSSES = (
    Curve("loss", "total", "c0"),
    Curve("loss_jailbreak", "jailbreaks", "c1"),
    Curve("loss_anchor", "anchors", "c2 dashed"),
    Curve("loss_retain", "retained behaviour", "c3 dotted"),
    Curve("loss_recovery", "refusals half-way through an answer", "c4"),
    Curve("loss_drift", "drift of scores on harmless conversations", "c5 dashed"),
)
KL = (
    Curve("kl", "KL of jailbreak to anchor routing", "c1"),
    Curve("kl_retain", "KL of plain and harmless routing to what it was", "c3 dotted"),
)
CURVES_OF_PHASE = {
    "repair": ("loss while the experts are repaired", LOSSES),
    "router": ("routing consistency", KL),
}


def training_part(training: Training) -> Html:
    """Draw one chart for each method and phase, then say how far each moved what it trained."""
    phases = dict.fromkeys((step.method, step.phase) for step in training.steps)
    ordered = sorted(phases, key=lambda phase: phase[0] != REPAIRED)
    charts = [_phase_chart(training, method, phase) for method, phase in ordered]
    shown = [chart for chart in charts if chart is not None]
    if not shown and not training.moved:
        return el("p", "The training log holds no optimiser steps.", class_="note")
    return join((el("div", *shown, class_="charts"), *_warnings(training), _moved_table(training.moved)))


def _phase_chart(training: Training, method: str, phase: str) -> Html | None:
    steps = [step for step in training.steps if (step.method, step.phase) == (method, phase)]
    what, curves = CURVES_OF_PHASE.get(phase, ("loss", LOSSES))
    lines = [_line(steps, curve) for curve in curves if any(curve.key in step.values for step in steps)]
    if not lines:
        return None
    # A total beside its only part would draw the same line twice.
    if len(lines) == 2 and lines[0].values == lines[1].values:
        lines = lines[:1]
    return line_chart(
        lines,
        title=f"{model_label(method)}: {what}",
        x_label="optimiser steps",
        ends=("1", whole(len(steps))),
        marks=_rounds(steps, "round" if phase in CURVES_OF_PHASE else "epoch"),
    )


def _line(steps: Sequence[TrainingStep], curve: Curve) -> Line:
    return Line(curve.label, curve.style, shorten([step.values.get(curve.key) for step in steps]))


def _rounds(steps: Sequence[TrainingStep], word: str) -> list[Mark]:
    """Mark where each round or epoch starts, if there are several."""
    starts = [at for at, step in enumerate(steps) if at == 0 or step.round != steps[at - 1].round]
    if len(starts) < 2:
        return []
    return [Mark(shortened_position(at, len(steps)), f"{word} {steps[at].round + 1}") for at in starts]


def _warnings(training: Training) -> list[Html]:
    broken = sum(step.has_broken_value for step in training.steps)
    warnings = []
    if broken:
        warnings.append(
            f"{whole(broken)} of {whole(len(training.steps))} steps have a loss that is not a finite number; "
            "they are gaps in the lines."
        )
    for moved in training.moved:
        still = [part for part, change in moved.relative_change.items() if change < HARDLY_MOVED]
        if still:
            is_all = len(still) == len(moved.relative_change)
            warnings.append(
                f"{model_label(moved.method)}, {moved.phase} phase of round {moved.round + 1}: "
                f"{' and '.join(still)} hardly moved{', so this phase did next to nothing' * is_all}."
            )
    return [el("p", warning, class_="warning") for warning in warnings]


def _moved_table(moved: Sequence[Moved]) -> Html | None:
    if not moved:
        return None
    parts = list(dict.fromkeys(part for entry in moved for part in entry.relative_change))
    rows = [
        [
            model_label(entry.method),
            entry.phase,
            f"{entry.round + 1}",
            *(
                relative(entry.relative_change[part]) if part in entry.relative_change else "\u2013"
                for part in parts
            ),
        ]
        for entry in moved
    ]
    caption = "How far each phase moved what it trained: norm of the change over the norm before."
    head = ["Method", "Phase", "Round", *(part.replace("_", " ").capitalize() for part in parts)]
    content = table(head, rows, caption=caption, numbers_from=2)
    return content if len(rows) <= 12 else disclosure("How far the weights moved", content)
