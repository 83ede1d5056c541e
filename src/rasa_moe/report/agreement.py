"""How far the judges agree that scored the answers of the run."""

from __future__ import annotations

from pathlib import Path

from rasa_moe.report.markup import Html, el, join, table
from rasa_moe.report.numbers import interval_words, percent
from rasa_moe.report.reading import Record, read_json

FILE = "judges.json"


def agreement_part(directory: Path) -> Html | None:
    """Show `judges.json` of a run directory; None where it is absent."""
    path = directory / FILE
    if not path.exists():
        return None
    record = read_json(path)
    rows = [_row(entry) for entry in record.entries("agreement")]
    note = (
        f"{record.count('answers')} answers of the run, scored again by {', '.join(record.texts('judges'))}. "
        "Counted are answers that both judges could score; refusal in part counts as refusal."
    )
    head = ("Judges", "Agree", "Share", "Cohen's kappa")
    return join((el("p", note, class_="note"), table(head, rows, caption="Agreement of judges.")))


def _row(entry: Record) -> list[str]:
    estimate = entry.estimate() if entry.count("n") else None
    kappa = entry.optional_number("kappa", low=-1, high=1)
    return [
        entry.text("compared"),
        f"{entry.count('k')} of {entry.count('n')}",
        f"{percent(estimate.rate)} ({interval_words(estimate.low, estimate.high)})"
        if estimate
        else "not scored",
        "not defined" if kappa is None else f"{kappa:.2f}",
    ]
