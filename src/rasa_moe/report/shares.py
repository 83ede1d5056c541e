"""The shares of a safety gain: which component holds how much of it, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rasa_moe.report.markup import Html, disclosure, el, join, table
from rasa_moe.report.numbers import DASH, Estimate, count_words, interval_words, percent
from rasa_moe.report.records import Audit, AuditVerdict, Share
from rasa_moe.report.strips import Lane, Scale, chart_row, style_of, tick_row
from rasa_moe.report.vocabulary import AUDIT_VERDICTS, model_label

GAMES = {
    "weights": (
        "Who holds the gain: weights",
        "Shapley shares over all combinations of base and tuned components; the mixture routes for itself.",
    ),
    "routing": (
        "Who holds the gain: routing replayed",
        "The same with every token sent to the experts that the base, or the tuned, model chooses. It shows "
        "rerouting also where no router weight changed.",
    ),
}


def shares_part(audit: Audit, models: Sequence[str]) -> Html | None:
    """Show verdicts, shares and combinations; None where the audit has no shares."""
    if not audit.verdicts:
        return None
    verdicts = [
        el("li", el("strong", f"{model_label(entry.model)}: {_words(entry)}"), f" \u2013 {entry.reason}.")
        for entry in audit.verdicts
    ]
    charts = [_game_chart(audit.shares, game, models) for game in GAMES]
    return el(
        "div",
        el("h3", "Verdict on the gain"),
        el(
            "p",
            "It tells where the gain over the base model sits, not how large it is, nor whether a model is "
            "safe.",
            class_="note",
        ),
        el("ul", *verdicts, class_="findings"),
        disclosure("The rule", el("p", audit.rule, class_="note")) if audit.rule else None,
        *charts,
        _combinations(audit),
        class_="kind",
    )


def _words(entry: AuditVerdict) -> str:
    return AUDIT_VERDICTS.get(entry.verdict, entry.verdict)


def share_scale(shares: Sequence[Estimate]) -> Scale:
    """Cover [0, 1] and what lies beyond it, in quarters, but no more than one unit further on either side."""
    low = max(-1.0, min([0.0, *(share.low for share in shares)]))
    high = min(2.0, max([1.0, *(share.high for share in shares)]))
    first, last = int(low * 4 - 0.999), int(high * 4 + 0.999)
    return Scale(first / 4, last / 4, tuple(at / 4 for at in range(first, last + 1)))


def _game_chart(shares: Sequence[Share], game: str, models: Sequence[str]) -> Html | None:
    found = [entry for entry in shares if entry.game == game and entry.share is not None]
    if not found:
        return None
    heading, about = GAMES[game]
    scale = share_scale([entry.share for entry in found if entry.share is not None])
    rows = [_share_row(entry, models, scale) for entry in found]
    cells = [
        [model_label(entry.model), entry.component, percent(entry.share.rate), _interval(entry.share)]
        for entry in found
        if entry.share is not None
    ]
    numbers = table(
        ("Model", "Component", "Share of the gain", "95% interval"), cells, caption=about, numbers_from=2
    )
    return join(
        (
            el("h4", heading),
            el("p", about, class_="note"),
            el("div", tick_row(scale), *rows, class_="dots"),
            disclosure("The same numbers as a table", numbers),
        )
    )


def _share_row(entry: Share, models: Sequence[str], scale: Scale) -> Html:
    lane = Lane(entry.model, style_of(entry.model, models), entry.share)
    what = f"{model_label(entry.model)}: {entry.component}"
    note = _interval(entry.share) if entry.share else ""
    return chart_row(el("span", what, class_="name"), [lane], label=what, note=note, scale=scale)


def _combinations(audit: Audit) -> Html | None:
    if not audit.combinations:
        return None
    cells = [
        [
            model_label(entry.model),
            entry.game,
            ", ".join(entry.tuned) or "nothing (the base model)",
            count_words(entry.estimate) if entry.estimate else DASH,
            f"{percent(entry.estimate.rate)} ({_interval(entry.estimate)})"
            if entry.estimate
            else "not scored",
        ]
        for entry in audit.combinations
    ]
    caption = "Attack success of every combination; what is not listed as tuned is the base model\u2019s."
    numbers = table(
        ("Model", "Routing", "Tuned", "Count", "Attack success"), cells, caption=caption, numbers_from=3
    )
    return disclosure("Every combination", numbers)


def _interval(estimate: Estimate) -> str:
    return interval_words(estimate.low, estimate.high)
