"""The adaptive attacks on the page: the worst setting of each, and every setting below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rasa_moe.report.markup import Html, disclosure, el, join, table
from rasa_moe.report.numbers import Estimate, count_words, interval_words, percent
from rasa_moe.report.reading import Record, read_json
from rasa_moe.report.strips import Lane, chart_row, legend, style_of, tick_row
from rasa_moe.report.vocabulary import model_label

FILE = "reattack.json"


@dataclass(frozen=True)
class Line:
    """One setting of one attack on one model."""

    attack: str
    model: str
    setting: str
    strength: float
    unit: str
    estimate: Estimate | None
    unscored: int


def reattack_part(directory: Path) -> Html | None:
    """Show `reattack.json` of a run directory; None where it is absent."""
    path = directory / FILE
    if not path.exists():
        return None
    record = read_json(path)
    models = record.texts("models")
    worst = [_line(entry) for entry in record.entries("worst")]
    about = {entry.text("name"): entry for entry in record.entries("attacks")}
    return join(
        (
            el(
                "p",
                "Every attack knows of the repair. Shown is its most successful setting on each model, "
                "chosen after measuring all of them, which flatters the attacker a little.",
                class_="note",
            ),
            _thresholds(record),
            legend(models),
            el("div", tick_row(), *_rows(worst, models, about), class_="dots"),
            _left_out(about),
            disclosure("What each attack may do and spend", _budgets(about)),
            disclosure("Every setting", _every(record)),
        )
    )


def _line(entry: Record) -> Line:
    return Line(
        attack=entry.text("attack"),
        model=entry.text("model"),
        setting=entry.text("setting", default=""),
        strength=entry.number("strength"),
        unit=entry.text("unit", default=""),
        estimate=entry.counted(),
        unscored=int(entry.optional_number("unscored") or 0),
    )


def _unscored(line: Line) -> str:
    return f", {line.unscored} unscored" if line.unscored else ""


def _rows(worst: Sequence[Line], models: Sequence[str], about: dict[str, Record]) -> list[Html]:
    rows = []
    for attack in dict.fromkeys(line.attack for line in worst):
        found = {line.model: line for line in worst if line.attack == attack}
        lanes = [
            Lane(model, style_of(model, models), found[model].estimate if model in found else None)
            for model in models
        ]
        note = "; ".join(
            f"{model_label(model)}: {_setting(found[model])}{_unscored(found[model])}"
            for model in models
            if model in found
        )
        description = about[attack].text("description") if attack in about else ""
        name = join((el("span", attack, class_="name"), el("span", description, class_="small")))
        rows.append(chart_row(name, lanes, label=attack, note=note))
    return rows


def _setting(line: Line) -> str:
    return f"{line.setting}, {line.strength:g} {line.unit}".removesuffix(" ") if line.unit else line.setting


def _thresholds(record: Record) -> Html | None:
    sentences = []
    for entry in record.entries("thresholds"):
        examples, most = entry.optional_number("examples"), entry.number("most_tried")
        model = model_label(entry.text("model"))
        sentences.append(
            el(
                "li",
                f"{model}: {examples:g} harmful examples are enough to bring attack success to one half."
                if examples is not None
                else f"{model}: {most:g} harmful examples, the most tried, do not bring it to one half.",
            )
        )
    return el("ul", *sentences, class_="findings") if sentences else None


def _left_out(about: dict[str, Record]) -> Html | None:
    missing = [f"{name}: {entry.text('left_out')}" for name, entry in about.items() if entry.text("left_out")]
    return el("p", f"Left out. {'; '.join(missing)}.", class_="note") if missing else None


def _budgets(about: dict[str, Record]) -> Html:
    cells = [[name, entry.text("description"), entry.text("budget")] for name, entry in about.items()]
    return table(("Attack", "What it does", "Budget"), cells, caption="Budgets.", numbers_from=3)


def _every(record: Record) -> Html:
    lines = [_line(entry) for entry in record.entries("rows")]
    cells = [
        [
            line.attack,
            model_label(line.model),
            line.setting,
            f"{line.strength:g} {line.unit}",
            (count_words(line.estimate) if line.estimate else "not scored") + _unscored(line),
            f"{percent(line.estimate.rate)} ({interval_words(line.estimate.low, line.estimate.high)})"
            if line.estimate
            else "",
        ]
        for line in lines
    ]
    head = ("Attack", "Model", "Setting", "Strength", "Count", "Attack success")
    return table(head, cells, caption="Every setting and strength.", numbers_from=3)
