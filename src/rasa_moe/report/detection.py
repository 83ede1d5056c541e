"""The checks of the selected experts on the page."""

from __future__ import annotations

from pathlib import Path

from rasa_moe.report.markup import Html, disclosure, el, join, table
from rasa_moe.report.numbers import Estimate, count_words, interval_words
from rasa_moe.report.reading import Record, read_json
from rasa_moe.report.strips import Lane, Style, chart_row, tick_row

FILE = "detection_checks.json"
STYLES = {
    "nothing silenced": Style("c0", "circle"),
    "selected experts": Style("c1", "circle"),
    "experts of refusals": Style("c3", "square"),
}


def detection_part(directory: Path) -> Html | None:
    """Show `detection_checks.json` of a run directory; None where it is absent."""
    path = directory / FILE
    if not path.exists():
        return None
    record = read_json(path)
    causal = record.entries("causal")
    return join(
        (
            el("ul", *(el("li", sentence) for sentence in record.texts("sentences")), class_="findings"),
            *(
                _chart(causal, prompts, counted)
                for prompts in dict.fromkeys(entry.text("prompts") for entry in causal)
                for counted in ("harmful", "refused")
            ),
            disclosure("Every expert", _experts(record)),
        )
    )


def _chart(causal: tuple[Record, ...], prompts: str, counted: str) -> Html:
    found = [
        entry for entry in causal if (entry.text("prompts"), entry.text("counted")) == (prompts, counted)
    ]
    named = [entry for entry in found if entry.text("silenced") in STYLES]
    others = [entry.counted() for entry in found if entry.text("silenced") not in STYLES]
    rates = sorted(estimate.rate for estimate in others if estimate is not None)
    rows = [_row(entry.text("silenced"), entry.counted()) for entry in named]
    if rates:
        middle = Estimate(rate=sum(rates) / len(rates), low=rates[0], high=rates[-1])
        rows.append(_row(f"{len(rates)} random sets: mean and range", middle))
    return el(
        "div",
        el("h3", f"Base model with experts silenced: {prompts}, {counted}"),
        el("div", tick_row(), *rows, class_="dots"),
        class_="kind",
    )


def _row(name: str, estimate: Estimate | None) -> Html:
    style = STYLES.get(name, Style("c4", "triangle"))
    note = ""
    if estimate is not None:
        note = "; ".join(filter(None, (interval_words(estimate.low, estimate.high), count_words(estimate))))
    return chart_row(el("span", name, class_="name"), [Lane(name, style, estimate)], label=name, note=note)


def _experts(record: Record) -> Html:
    def numbers(entry: Record) -> list[str]:
        shown = [f"{entry.number(key):+.3f}" for key in ("aad", "aad_format")]
        return [*shown, f"{entry.number('p_value'):.4f}", f"{entry.number('q_value'):.4f}"]

    entries = sorted(record.entries("experts"), key=lambda entry: -entry.number("aad"))
    cells = [
        [
            f"L{entry.count('layer')}.E{entry.count('expert')}",
            *numbers(entry),
            " and ".join(
                word
                for key, word in (("selected", "selected"), ("selected_by_format", "by format, too"))
                if entry.number(key) == 1
            )
            or "no",
        ]
        for entry in entries
    ]
    head = ("Expert", "AAD", "AAD of the format", "p", "q", "Selected")
    about = "Experts by activation discrepancy; q bounds the false discovery rate."
    return table(head, cells, caption=about)
