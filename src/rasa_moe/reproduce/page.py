"""One self-contained page: findings, frontier, tables; no script, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from rasa_moe.report.markup import Html, disclosure, el, join, table
from rasa_moe.report.page import head
from rasa_moe.reproduce.frontier import frontier_chart, frontier_points, trial_points
from rasa_moe.reproduce.plan import Plan
from rasa_moe.reproduce.sheets import Cell, Sheet, sheets
from rasa_moe.reproduce.tables import Row
from rasa_moe.reproduce.words import about, budget_words, findings

_TITLE = "Rivals, ablations and transfer"
# Beside the report's own sheet: only what the frontier needs, in colours that hold on light and dark pages.
_STYLE = """
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
    found = findings(plan, tables["paired"])
    parts = [_section("What was found", *(el("p", sentence) for sentence in found))] if found else []
    parts.append(
        _section(
            "How it was measured",
            *(el("p", paragraph, class_="note") for paragraph in about(plan)),
        )
    )
    parts.append(_section("(e) The frontier", *_frontiers(plan, tables)))
    for heading, group in groupby(sheets(plan, tables), key=lambda sheet: sheet.section):
        parts.append(_section(heading, *(_sheet(sheet) for sheet in group)))
    return parts


def _frontiers(plan: Plan, tables: Mapping[str, Sequence[Row]]) -> list[Html]:
    drawn = [
        el(
            "p",
            "Up and to the left is better. Large dots are methods as tuned, small ones RASA with one "
            "setting varied; hover over a dot for its numbers. The horizontal scale is a square root.",
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
