"""Write the tables: CSV for machines, Markdown for a README, one page for readers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rasa_moe.files import write_json, write_text
from rasa_moe.reproduce.markdown import markdown
from rasa_moe.reproduce.page import render
from rasa_moe.reproduce.plan import Plan
from rasa_moe.reproduce.results import Measured
from rasa_moe.reproduce.rule import Trial
from rasa_moe.reproduce.tables import (
    Row,
    ablation_table,
    means_table,
    paired_table,
    passes_paired_table,
    passes_table,
    suites_table,
    transfer_table,
    tuning_table,
)

Tables = dict[str, list[Row]]


def write_output(
    folder: Path,
    plan: Plan,
    measured: Sequence[Measured],
    *,
    trials: Mapping[tuple[str, str], Sequence[Trial]],
    chosen: Mapping[tuple[str, str], float],
) -> Path:
    """Write `tables/*.csv`, `results.md`, `chosen.json` and `report.html`; return the page."""
    tables = make_tables(plan, measured, trials=trials, chosen=chosen)
    for name, rows in tables.items():
        write_text(folder / "tables" / f"{name}.csv", csv_text(rows))
    by_model: dict[str, dict[str, float]] = {model: {} for model in plan.models}
    for (model, method), value in chosen.items():
        by_model[model][method] = value
    write_json(folder / "chosen.json", by_model)
    write_text(folder / "results.md", markdown(plan, tables))
    page = folder / "report.html"
    write_text(page, render(plan, tables))
    return page


def make_tables(
    plan: Plan,
    measured: Sequence[Measured],
    *,
    trials: Mapping[tuple[str, str], Sequence[Trial]],
    chosen: Mapping[tuple[str, str], float],
) -> Tables:
    """Return every table by the name of its file; a table that the scale leaves out is empty."""
    return {
        "means": means_table(measured, plan),
        "paired": paired_table(measured, plan),
        "a_attacks": suites_table(measured, plan, attacks=True),
        "b_transfer": transfer_table(measured, plan),
        "c_costs": suites_table(measured, plan, attacks=False),
        "d_ablations": ablation_table(measured, plan),
        "e_passes": passes_table(measured, plan),
        "e_passes_paired": passes_paired_table(measured, plan),
        "tuning": tuning_table(plan, trials, chosen),
    }


def csv_text(rows: Sequence[Row]) -> str:
    """Return rows as CSV; the columns are those of all rows, in order of appearance, and NaN is empty."""
    columns = list({key: None for row in rows for key in row})
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
