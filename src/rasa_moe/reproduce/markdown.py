"""The tables as Markdown: percentages with 95 % intervals, the main table first."""

from __future__ import annotations

from collections.abc import Sequence

from rasa_moe.reproduce.findings import findings
from rasa_moe.reproduce.plan import Plan
from rasa_moe.reproduce.sheets import Sheet, sheets
from rasa_moe.reproduce.tables import Row
from rasa_moe.reproduce.words import CLEARLY, about, budget_words


def markdown(plan: Plan, tables: dict[str, list[Row]]) -> str:
    """Return the whole document."""
    parts = ["# Rivals, ablations and transfer", budget_words(plan), *_findings(plan, tables)]
    parts += ["## How it was measured", *about(plan)]
    heading = ""
    for sheet in sheets(plan, tables):
        if sheet.section != heading:
            heading = sheet.section
            parts.append(f"## {heading}")
        parts += [f"**{sheet.title}**", _table(sheet)]
    return "\n\n".join(parts) + "\n"


def _findings(plan: Plan, tables: dict[str, list[Row]]) -> list[str]:
    parts = []
    for one in findings(plan, tables):
        points = "\n".join(f"- {topic}: {words}" for topic, words in one.points)
        parts += [f"**{one.model}.** {one.lead}", points]
    return ["## What was found", *parts, CLEARLY] if parts else []


def _table(sheet: Sheet) -> str:
    lines = [_line(sheet.head), _line(["---", *["---:"] * (len(sheet.head) - 1)])]
    return "\n".join([*lines, *(_line([cell.text for cell in row]) for row in sheet.body)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
