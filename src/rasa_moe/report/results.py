"""The verdict, the headline table and the chart of every suite."""

from __future__ import annotations

from rasa_moe.report.compare import Measure, measures
from rasa_moe.report.markup import Html, disclosure, el, join, table
from rasa_moe.report.numbers import (
    DASH,
    Estimate,
    count_words,
    interval_short,
    p_value,
    percent,
    points,
    points_interval,
    whole,
)
from rasa_moe.report.records import Evaluation, PairedResult, SuiteResult
from rasa_moe.report.strips import Lane, chart_row, legend, style_of, tick_row
from rasa_moe.report.verdict import give_verdict
from rasa_moe.report.vocabulary import (
    BASE,
    DONE_SUFFIX,
    HARMFUL_KINDS,
    KINDS,
    NEW_GROUP_MEAN,
    REPAIRED,
    Kind,
    model_label,
)


def verdict_block(evaluation: Evaluation, *, audit_line: str | None, silence: str | None) -> Html:
    """Show the verdict; `audit_line` says what the audit adds to it, `silence` what the answers do."""
    verdict = give_verdict(evaluation)
    cautions = [el("li", caution) for caution in (silence, *verdict.cautions) if caution]
    return el(
        "section",
        el("h2", "Verdict", id="verdict", class_="over"),
        el("p", verdict.label, class_="label"),
        *(el("p", sentence, class_="lead") for sentence in verdict.sentences),
        el("p", audit_line, class_="also") if audit_line else None,
        el("ul", *cautions, class_="cautions") if cautions else None,
        aria_labelledby="verdict",
        class_="verdict",
    )


def headline_table(evaluation: Evaluation) -> Html:
    """Show the mean of every group of suites, one column a model, with the change from base to repaired."""
    models = evaluation.models
    head = ["Group of suites", *map(model_label, models)]
    if evaluation.has_repair:
        head.append("Change, repaired \u2212 base")
    rows = [_headline_row(line, evaluation) for line in measures(evaluation)]
    caption = (
        "Means over the suites of each group, with 95% intervals and pooled counts. "
        "The interval of the change treats the two models as independent, which is the cautious way."
    )
    return el("div", table(head, rows, caption=caption), class_=f"headline columns-{len(head) - 1}")


def _headline_row(line: Measure, evaluation: Evaluation) -> list[str]:
    many = "1 suite" if line.suites == 1 else f"{line.suites} suites"
    about = f"{line.kind.counts}, {many}; {line.kind.better}"
    indent = "sub" if line.name == NEW_GROUP_MEAN else None
    first = el(
        "div", el("span", line.heading, class_="name"), el("span", about, class_="small"), class_=indent
    )
    cells = [first, *(_estimate_cell(line.estimates.get(model)) for model in evaluation.models)]
    return [*cells, _change_cell(line)] if evaluation.has_repair else [*cells]


def _estimate_cell(estimate: Estimate | None) -> Html:
    if estimate is None:
        return el("span", DASH)
    interval = el("span", interval_short(estimate.low, estimate.high), class_="small")
    return join(
        (
            el("span", percent(estimate.rate), class_="rate"),
            interval,
            el("span", count_words(estimate), class_="small"),
        )
    )


def _change_cell(line: Measure) -> Html:
    change = line.change(BASE, REPAIRED)
    if change is None:
        return el("span", DASH)
    word, style = "no clear change", "small"
    if line.is_better(BASE, REPAIRED):
        word, style = "better", "small good"
    elif line.is_worse(BASE, REPAIRED):
        word, style = "worse", "small bad"
    interval = el("span", points_interval(change), class_="small")
    return join(
        (
            el("span", f"{points(change.difference)} pts", class_="rate"),
            interval,
            el("span", word, class_=style),
        )
    )


def suite_charts(evaluation: Evaluation) -> Html:
    """Draw every suite by group, and give the same numbers as tables."""
    kinds = [kind for kind in KINDS.values() if evaluation.suites(kind.name)]
    return join((legend(evaluation.models), *(_kind_chart(evaluation, kind) for kind in kinds)))


def _kind_chart(evaluation: Evaluation, kind: Kind) -> Html:
    rows = [_suite_row(evaluation, kind, suite) for suite in evaluation.suites(kind.name)]
    means = [line for line in measures(evaluation) if line.kind == kind and line.suites > 1]
    return el(
        "div",
        el("h3", kind.heading),
        el(
            "p",
            f"Rate: {kind.counts} ({kind.better}). {kind.about}{_more_words(evaluation, kind)}",
            class_="note",
        ),
        el("div", tick_row(), *(_mean_row(evaluation, line) for line in means), *rows, class_="dots"),
        disclosure("The same numbers as a table", _suite_table(evaluation, kind)),
        class_="kind",
    )


def _more_words(evaluation: Evaluation, kind: Kind) -> str:
    rows = [row for row in evaluation.rows if row.kind == kind.name]
    if any(evaluation.is_new_group(row) for row in rows):
        return (
            " Families are grouped by how their answers open; \u201cnew opening\u201d marks a group of which "
            "no family "
            "was trained, the harder test."
        )
    if any(row.suite.endswith(DONE_SUFFIX) for row in rows):
        return (
            f" Suites ending in {DONE_SUFFIX} count harmless requests done right; the mean is without them."
        )
    return ""


def _mean_row(evaluation: Evaluation, line: Measure) -> Html:
    name = f"Mean of {line.suites}" + (", new openings" if line.name == NEW_GROUP_MEAN else "")
    lanes = _lanes(evaluation, {model: line.estimates.get(model) for model in evaluation.models})
    change = line.change(BASE, REPAIRED)
    note = "" if change is None else f"{points(change.difference)} pts ({points_interval(change)})"
    return chart_row(el("strong", name), lanes, label=f"{line.kind.heading}, {name}", note=note, is_mean=True)


def _suite_row(evaluation: Evaluation, kind: Kind, suite: str) -> Html:
    rows = {model: evaluation.row(model, suite, kind.name) for model in evaluation.models}
    lanes = _lanes(evaluation, {model: row.estimate if row else None for model, row in rows.items()})
    pair = evaluation.pair(suite, kind.name, REPAIRED)
    note = "" if pair is None else f"{points(pair.difference)} pts, {p_value(pair.p_shown)}"
    name = join(
        (el("span", suite, class_="name"), _group_mark(evaluation, [row for row in rows.values() if row]))
    )
    return chart_row(name, lanes, label=suite, note=note)


def _lanes(evaluation: Evaluation, estimates: dict[str, Estimate | None]) -> list[Lane]:
    models = evaluation.models
    return [Lane(model, style_of(model, models), estimates[model]) for model in models]


def _group_mark(evaluation: Evaluation, rows: list[SuiteResult]) -> Html | None:
    group = next((row.group for row in rows if row.group), "")
    if not group or rows[0].kind not in HARMFUL_KINDS:
        return None
    if any(evaluation.is_new_group(row) for row in rows):
        return el("span", f"new opening: {group}", class_="tag")
    return el("span", f"opening: {group}", class_="small")


def _suite_table(evaluation: Evaluation, kind: Kind) -> Html:
    others = [model for model in evaluation.models if model != BASE]
    head = [
        "Suite",
        *map(model_label, evaluation.models),
        *(f"{model_label(model)} \u2212 base, paired" for model in others),
    ]
    rows = [
        [
            suite,
            *(_row_cell(evaluation.row(model, suite, kind.name)) for model in evaluation.models),
            *(_pair_cell(evaluation.pair(suite, kind.name, model)) for model in others),
        ]
        for suite in evaluation.suites(kind.name)
    ]
    adjusted = any(pair.adjusted is not None for pair in evaluation.paired)
    tests = (
        "corrected for the number of tests" if adjusted else "suite by suite, not corrected for their number"
    )
    caption = f"{kind.heading}: {kind.counts} ({kind.better}). p-values are of the paired test, {tests}."
    return table(head, rows, caption=caption)


def _row_cell(row: SuiteResult | None) -> Html:
    if row is None:
        return el("span", DASH)
    asides = [f"{whole(row.unscored)} unscored"] * bool(row.unscored) + [
        f"{whole(row.truncated)} cut off"
    ] * bool(row.truncated)
    aside = el("span", ", ".join(asides), class_="small") if asides else None
    if row.estimate is None:
        return join((el("span", "not scored"), aside))
    return join((_estimate_cell(row.estimate), aside))


def _pair_cell(pair: PairedResult | None) -> Html:
    if pair is None:
        return el("span", DASH)
    interval = f"{points(pair.low)} to {points(pair.high)}; {p_value(pair.p_shown)}"
    counts = f"{pair.better} better, {pair.worse} worse of {pair.n}"
    return join(
        (
            el("span", f"{points(pair.difference)} pts", class_="rate"),
            el("span", interval, class_="small"),
            el("span", counts, class_="small"),
        )
    )
