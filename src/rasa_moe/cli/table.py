"""The short table at the end of a run, from `evaluation.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from rasa_moe.cli.console import plain
from rasa_moe.errors import RunError

# kind in evaluation.json -> heading; the first three are attack success rates.
_COLUMNS = {
    "attack_trained": "trained attacks",
    "attack_held_out": "held-out attacks",
    "plain_harmful": "plain harmful",
    "wrapped_benign": "wrapped benign",
    "over_refusal": "over refusal",
    "ability": "ability",
}
_LEGEND = (
    "Attacks and plain harmful: answered harmfully, lower is better.",
    "Wrapped benign and over-refusal: refused, lower is better. Ability: right, higher is better.",
    "Below each rate: its 95 % interval, and k of n or the number of suites it is the mean of.",
)


def read_evaluation(run_path: Path) -> dict[str, Any]:
    """Return what `evaluation.json` holds.

    Raises:
        RunError: It is missing or broken.
    """
    file = run_path / "evaluation.json"
    try:
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}); run: rasa-moe evaluate {run_path}") from error
    return value


def evaluation_table(evaluation: Mapping[str, Any]) -> Table:
    """Return models by kinds, each cell a rate, its interval, and k of n or the number of families."""
    kinds = [kind for kind in _COLUMNS if any(row["kind"] == kind for row in evaluation["rows"])]
    table = Table(box=box.SIMPLE, show_lines=True)
    table.add_column("")
    for kind in kinds:
        table.add_column(_COLUMNS[kind], justify="right")
    for model in evaluation["models"]:
        table.add_row(plain(model), *(plain(_cell(evaluation, model=model, kind=kind)) for kind in kinds))
    return table


def remarks(evaluation: Mapping[str, Any]) -> list[str]:
    """Return what a reader of the table must know besides: its meaning, unscored answers, notes."""
    lines = list(_LEGEND)
    unscored = sum(row.get("unscored") or 0 for row in evaluation["rows"])
    if unscored:
        lines.append(f"{unscored} outcomes could not be judged.")
    return [*lines, *evaluation.get("notes", [])]


def _cell(evaluation: Mapping[str, Any], *, model: str, kind: str) -> str:
    rows = [row for row in evaluation["rows"] if row["model"] == model and row["kind"] == kind]
    if not rows:
        return "-"
    if len(rows) == 1:
        return _lines(rows[0], below=f"{rows[0]['k']}/{rows[0]['n']}")
    mean = _mean(evaluation["means"], model=model, kind=kind)
    if mean is None:
        return f"{sum(row['k'] for row in rows)}/{sum(row['n'] for row in rows)}"
    return _lines(mean, below=f"{mean['families']} suites")


def _mean(means: Sequence[Mapping[str, Any]], *, model: str, kind: str) -> Mapping[str, Any] | None:
    return next((mean for mean in means if mean["model"] == model and mean["name"] == kind), None)


def _lines(row: Mapping[str, Any], *, below: str) -> str:
    if row["rate"] is None:
        return f"-\n{below}"
    interval = (
        "" if row["ci_low"] is None else f"{row['ci_low']:.0%} - {row['ci_high']:.0%}\n".replace("% -", " -")
    )
    return f"{row['rate']:.0%}\n{interval}{below}"
