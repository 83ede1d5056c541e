"""The audit part of the page: what swaps of components bring back, and how far the routing drifted."""

from __future__ import annotations

from collections.abc import Sequence

from rasa_moe.report.curves import Line, line_chart
from rasa_moe.report.markup import Html, disclosure, el, join, table
from rasa_moe.report.numbers import DASH, count_words, interval_words, percent
from rasa_moe.report.records import Audit, AuditRow, Drift, Returned
from rasa_moe.report.shares import share_scale, shares_part
from rasa_moe.report.strips import Lane, Scale, chart_row, style_of, tick_row
from rasa_moe.report.vocabulary import REPAIRED, model_label

DRIFT_DASHES = {"c1": "c1", "c2": "c2 dashed", "c3": "c3 dotted"}


def audit_line(audit: Audit | None) -> str | None:
    """Say in one sentence how much of each gain the base routers undo; None when that was not measured."""
    found = (
        [entry for entry in audit.returned if _is_router(entry) and entry.share is not None] if audit else []
    )
    if not found:
        return None
    first = next((entry for entry in found if entry.model == REPAIRED), found[0])
    others = [entry for entry in found if entry.model != first.model]
    parts = [f"{_share_words(first)} of the gain of {_of_model(first.model)}"]
    parts += [f"{_share_words(entry)} of that of {_of_model(entry.model)}" for entry in dict.fromkeys(others)]
    return f"Audit: putting the base model\u2019s routers back undoes {' and '.join(parts)}."


def audit_part(audit: Audit) -> Html:
    """Show the swaps, what they return, and the drift of the routing."""
    sentences = [el("li", sentence) for sentence in audit.sentences]
    models = tuple(dict.fromkeys(row.model for row in audit.rows))
    return join(
        (
            el("ul", *sentences, class_="findings") if sentences else None,
            shares_part(audit, models),
            _swap_chart(audit.rows, models) if audit.rows else None,
            _returned_chart(audit.returned, models) if audit.returned else None,
            _drift_chart(audit.drift, models) if audit.drift else None,
        )
    )


def _swap_chart(rows: Sequence[AuditRow], models: Sequence[str]) -> Html:
    drawn = [_swap_row(row, models) for row in rows]
    cells = [
        [
            _swap_name(row),
            row.description,
            count_words(row.estimate) if row.estimate else DASH,
            f"{percent(row.estimate.rate)} ({interval_words(row.estimate.low, row.estimate.high)})"
            if row.estimate
            else "not scored",
        ]
        for row in rows
    ]
    numbers = table(
        ("Model", "What it is", "Count", "Attack success"),
        cells,
        caption="Attack success after swaps.",
        numbers_from=2,
    )
    return el(
        "div",
        el("h3", "Attack success after swapping components"),
        el(
            "p",
            "Attacks that work again once the base model\u2019s routers are back were rerouted, not "
            "repaired.",
            class_="note",
        ),
        el("div", tick_row(), *drawn, class_="dots"),
        disclosure("The same numbers as a table", numbers),
        class_="kind",
    )


def _swap_row(row: AuditRow, models: Sequence[str]) -> Html:
    lane = Lane(row.model, style_of(row.model, models), row.estimate)
    about = el("span", row.description, class_="small") if row.description else None
    name = join((el("span", _swap_name(row), class_="name"), about))
    note = count_words(row.estimate) if row.estimate else ""
    return chart_row(name, [lane], label=_swap_name(row), note=note)


def _swap_name(row: AuditRow) -> str:
    """Call the model in "rasa + base routers" what the rest of the page calls it."""
    model, *swapped = row.name.split(" + ")
    return " + ".join((model_label(model), *swapped))


def _returned_chart(returned: Sequence[Returned], models: Sequence[str]) -> Html:
    scale = share_scale([entry.share for entry in returned if entry.share is not None])
    return el(
        "div",
        el("h3", "Share of the safety gain that a swap undoes"),
        el(
            "p",
            "0%: the gain stays although the component is the base model\u2019s again. 100%: the gain is "
            "gone.",
            class_="note",
        ),
        el(
            "div",
            tick_row(scale),
            *(_returned_row(entry, models, scale) for entry in returned),
            class_="dots",
        ),
        class_="kind",
    )


def _returned_row(entry: Returned, models: Sequence[str], scale: Scale) -> Html:
    lane = Lane(entry.model, style_of(entry.model, models), entry.share)
    before, tuned, swapped = map(percent, (entry.base_rate, entry.tuned_rate, entry.swapped_rate))
    what = f"{model_label(entry.model)}: {entry.component}"
    rates = el("span", f"ASR {before} base, {tuned} tuned, {swapped} swapped", class_="small")
    note = interval_words(entry.share.low, entry.share.high) if entry.share else "no gain to undo"
    name = join((el("span", what, class_="name"), rates))
    return chart_row(name, [lane], label=what, note=note, scale=scale)


def _drift_chart(drift: Sequence[Drift], models: Sequence[str]) -> Html:
    layers = sorted({entry.layer for entry in drift})
    found = {(entry.model, entry.layer): entry.drift for entry in drift}
    names = tuple(dict.fromkeys(entry.model for entry in drift))
    lines = []
    for model in names:
        color = style_of(model, (*models, *names)).color
        values = tuple(found.get((model, layer)) for layer in layers)
        lines.append(Line(model_label(model), DRIFT_DASHES.get(color, color), values))
    chart = line_chart(
        lines,
        title="Routing drift by layer",
        x_label="layer",
        ends=(f"L{layers[0]}", f"L{layers[-1]}"),
        is_share=True,
    )
    about = "Share of routed (token, slot) choices that differ from the base model\u2019s on the same text."
    rows = [[f"L{layer}", *(_share(found.get((model, layer))) for model in names)] for layer in layers]
    numbers = table(("Layer", *map(model_label, names)), rows, caption=about)
    return el(
        "div",
        chart,
        el("p", about, class_="note"),
        disclosure("The same numbers as a table", numbers),
        class_="kind narrow",
    )


def _share(value: float | None) -> str:
    return DASH if value is None else percent(value)


def _is_router(entry: Returned) -> bool:
    return "router" in entry.component.lower()


def _share_words(entry: Returned) -> str:
    assert entry.share is not None  # audit_line keeps only entries with a share
    return f"{percent(entry.share.rate)} ({interval_words(entry.share.low, entry.share.high)})"


def _of_model(model: str) -> str:
    return {REPAIRED: "the repair", "full": "full fine-tuning"}.get(model, model)
