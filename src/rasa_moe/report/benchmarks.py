"""Benchmarks on the page: rates of every model, and paired differences from the base."""

from __future__ import annotations

from pathlib import Path

from rasa_moe.report.markup import Html, el, join, table
from rasa_moe.report.numbers import interval_words, p_value, percent, points
from rasa_moe.report.reading import Record, read_json
from rasa_moe.report.vocabulary import model_label

FILE = "benchmarks.json"


def benchmarks_part(directory: Path) -> Html | None:
    """Show `benchmarks.json` of a run directory; None where it is absent."""
    path = directory / FILE
    if not path.exists():
        return None
    record = read_json(path)
    head = ("Benchmark", "What is counted", "Model", "Count", "Rate", "Unread")
    rows = [_row(entry) for entry in record.entries("rows")]
    changes = [_change(entry) for entry in record.entries("paired")]
    return join(
        (
            el(
                "p",
                "Every model was asked the same questions. An answer that cannot be read counts as wrong.",
                class_="note",
            ),
            table(head, rows, caption="Rates with 95 % intervals.", numbers_from=3),
            table(
                ("Benchmark", "What is counted", "Model", "Up", "Down", "Difference", "p, corrected"),
                changes,
                caption="Change from the base model, question by question.",
                numbers_from=3,
            )
            if changes
            else None,
            *(el("p", note, class_="note") for note in record.texts("notes")),
        )
    )


def _row(entry: Record) -> list[str]:
    estimate = entry.estimate() if entry.count("n") else None
    rate = "not scored"
    if estimate is not None:
        rate = f"{percent(estimate.rate)} ({interval_words(estimate.low, estimate.high)})"
    return [
        entry.text("task"),
        entry.text("metric"),
        model_label(entry.text("model")),
        f"{entry.count('k')} of {entry.count('n')}",
        rate,
        str(entry.count("unparsed", default=0)),
    ]


def _change(entry: Record) -> list[str]:
    difference = entry.optional_number("difference", low=-1, high=1)
    shown = "not scored"
    if difference is not None:
        low, high = entry.number("ci_low", low=-1, high=1), entry.number("ci_high", low=-1, high=1)
        shown = f"{points(difference)} ({points(low)} to {points(high)})"
    adjusted = entry.optional_number("p_value_adjusted", low=0, high=1)
    return [
        entry.text("task"),
        entry.text("metric"),
        model_label(entry.text("after")),
        str(entry.count("gained")),
        str(entry.count("lost")),
        shown,
        p_value(adjusted) if adjusted is not None else "",
    ]
