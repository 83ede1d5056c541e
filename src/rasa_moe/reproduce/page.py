"""One self-contained page: findings, frontier, tables; no script, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from rasa_moe.report.markup import Html, disclosure, el, join, table
from rasa_moe.report.page import head
from rasa_moe.reproduce.findings import findings
from rasa_moe.reproduce.frontier import frontier_chart, frontier_points, trial_points
from rasa_moe.reproduce.plan import Plan
from rasa_moe.reproduce.sheets import MAIN, Cell, Sheet, sheets
from rasa_moe.reproduce.tables import Row
from rasa_moe.reproduce.words import CLEARLY, about, budget_words

_TITLE = "Rivals, ablations and transfer"
# Beside the report's own sheet: models side by side, and the frontier in colours that hold on light and dark
# pages.
_STYLE = """
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.sides { gap: 0 2.5rem; }
.sides ul { padding-left: 1.1rem; } .sides li { margin-bottom: .45rem; }
.frontier text { fill: currentColor; font: 11px system-ui, sans-serif; }
.frontier .grid { stroke: currentColor; opacity: .15; }
.frontier .point { stroke: currentColor; stroke-width: .6; }
.frontier .ours { fill: #0b84a5; } .frontier .rival { fill: #e07b39; }
.frontier .base { fill: #888; } .frontier .setting { fill: #8fc6d6; }
"""


def render(plan: Plan, tables: Mapping[str, Sequence[Row]]) -> str:
    """Return the page as HTML text; the same tables always give the same text."""
    body = join(
        (
            el(
                "header",
                el("p", "RASA-MoE reproduction", class_="over"),
                el("h1", _TITLE),
                el("p", budget_words(plan)),
            ),
            el("main", *_sections(plan, tables)),
            el(
                "footer",
                el(
                    "p",
                    "Made by rasa-moe reproduce; the same numbers are in tables/*.csv.",
                ),
            ),
        )
    )
    top = head(f"RASA-MoE: {_TITLE}", more_style=_STYLE)
    return f"<!DOCTYPE html>\n{el('html', top, el('body', body), lang='en')}\n"


def _sections(plan: Plan, tables: Mapping[str, Sequence[Row]]) -> list[Html]:
    """Return what was found, the main table and the frontier; then how it was measured, and the rest."""
    drawn = {
        heading: _section(heading, *(_sheet(sheet) for sheet in group))
        for heading, group in groupby(sheets(plan, tables), key=lambda sheet: sheet.section)
    }
    main = drawn.pop(MAIN, None)
    notes = (el("p", paragraph, class_="note") for paragraph in about(plan))
    return [
        *_findings(plan, tables),
        *([] if main is None else [main]),
        _section("The frontier", *_frontiers(plan, tables)),
        _section("How it was measured", *notes),
        *drawn.values(),
    ]


def _findings(plan: Plan, tables: Mapping[str, Sequence[Row]]) -> list[Html]:
    found = findings(plan, tables)
    if not found:
        return []
    models = [
        el(
            "div",
            el("h3", one.model),
            el("p", one.lead, class_="lead"),
            el("ul", *(el("li", el("b", f"{topic}:"), f" {words}") for topic, words in one.points)),
        )
        for one in found
    ]
    return [
        el(
            "section",
            el("h2", "What was found", class_="over"),
            el("div", *models, class_="sides"),
            el("p", CLEARLY, class_="note"),
            class_="verdict",
        )
    ]


def _frontiers(plan: Plan, tables: Mapping[str, Sequence[Row]]) -> list[Html]:
    drawn = [
        el(
            "p",
            "Up and to the left is better. Large dots are methods as tuned, small ones RASA with one "
            "setting varied or methods after more passes; hover over a dot for its numbers. The horizontal "
            "scale is a square root.",
            class_="note",
        )
    ]
    for model in plan.models:
        drawn.append(
            frontier_chart(
                frontier_points(model, tables),
                title=f"{model}: test goals and families",
            )
        )
        trials = trial_points(model, tables)
        if trials:
            chart = frontier_chart(trials, title=f"{model}: every trial, validation goals and families")
            drawn.append(disclosure("Every trial of the tuning", chart))
    return drawn


def _sheet(sheet: Sheet) -> Html:
    return table(
        sheet.head,
        ([_cell(cell) for cell in row] for row in sheet.body),
        caption=sheet.title,
    )


def _cell(cell: Cell) -> Html:
    small = el("span", cell.small, class_="small") if cell.small else None
    return join((el("span", cell.main, class_="rate" if cell.small else None), small))


def _section(heading: str, *content: Html) -> Html:
    return el("section", el("h2", heading), *content)
