"""AAD as a heatmap: one row a layer, one column an expert, the repaired experts outlined."""

from __future__ import annotations

from rasa_moe.report.markup import Html, disclosure, el, scroll_box, table
from rasa_moe.report.numbers import percent, signed, whole
from rasa_moe.report.selection import Experts, ExpertScore

WIDEST = 850
ROW_HEIGHT = 20
HEAD = 18
LEFT = 46
RIGHT = 62


def expert_heatmap(experts: Experts) -> Html:
    """Draw every expert; hovering tells its numbers.

    Orange experts are busier on jailbreaks, blue ones on the plain requests that the model refuses. The
    strength of the colour is |AAD| relative to the largest one, so it follows the light and the dark page
    alike.

    Args:
        experts: scores of all experts.

    Returns:
        Legend and chart in a box that scrolls sideways when needed.
    """
    shows_score = experts.differs_from_aad
    largest = max((abs(score.aad) for score in experts.scores), default=0.0) or 1.0
    cell = max(9, min(34, WIDEST // max(experts.num_experts, 1)))
    height = HEAD + ROW_HEIGHT * len(experts.layers)
    tops = {layer: HEAD + at * ROW_HEIGHT for at, layer in enumerate(experts.layers)}
    label = (
        f"Heatmap of AAD, {len(experts.layers)} layers by {experts.num_experts} experts; "
        f"{len(experts.selected)} experts selected. The table below lists them."
    )
    picture = el(
        "svg",
        *_expert_numbers(experts.num_experts, cell),
        *(
            _cell(score, y=tops[score.layer], width=cell, largest=largest, shows_score=shows_score)
            for score in experts.scores
        ),
        *(_outline(score, y=tops[score.layer], width=cell) for score in experts.selected),
        width=cell * experts.num_experts + 2,
        height=height + 2,
        class_="heat",
        role="img",
        aria_label=label,
    )
    chart = el(
        "div", _layer_names(experts, height), picture, _selected_counts(experts, height), class_="heatbox"
    )
    return el("figure", _legend(largest), scroll_box(chart, label="Heatmap of AAD by layer and expert"))


def expert_table(experts: Experts) -> Html:
    """List the selected experts with their numbers, the first one ranked first."""
    shows_score = experts.differs_from_aad
    rows = [
        (
            f"L{score.layer}.E{score.expert}",
            *([signed(score.rank_by)] if shows_score else []),
            signed(score.aad),
            f"{signed(score.low)} to {signed(score.high)}",
            percent(score.p_jailbreak),
            percent(score.p_anchor),
            percent(score.selection_probability),
        )
        for score in experts.ranked
        if score.is_selected
    ]
    head = (
        "Expert",
        *(["Score"] if shows_score else []),
        "AAD",
        "95% interval of AAD",
        "Active on jailbreaks",
        "Active on anchors",
        "Selected again",
    )
    caption = "\u201cSelected again\u201d: share of bootstrap resamples in which the expert is chosen."
    return disclosure(
        f"The {whole(len(rows))} selected experts as a table", table(head, rows, caption=caption)
    )


def _cell(score: ExpertScore, *, y: int, width: int, largest: float, shows_score: bool) -> Html:
    state = "selected" if score.is_selected else "not selected"
    ranked = f"Score {signed(score.rank_by)}; " if shows_score else ""
    title = (
        f"L{score.layer}.E{score.expert}, {state}. {ranked}AAD {signed(score.aad)} ({signed(score.low)} to "
        f"{signed(score.high)}); "
        f"active on {percent(score.p_jailbreak)} of jailbreak tokens, {percent(score.p_anchor)} of anchor "
        "tokens"
    )
    strength = abs(score.aad) / largest
    return el(
        "rect",
        el("title", title),
        x=score.expert * width + 1,
        y=y + 1,
        width=width - 1,
        height=ROW_HEIGHT - 1,
        class_="pos" if score.aad >= 0 else "neg",
        fill_opacity=round(strength, 3),
    )


def _outline(score: ExpertScore, *, y: int, width: int) -> Html:
    x = score.expert * width + 2
    return el("rect", x=x, y=y + 2, width=width - 3, height=ROW_HEIGHT - 3, class_="chosen")


def _expert_numbers(num_experts: int, cell: int) -> list[Html]:
    step = max(1, -(-24 // cell))
    step = next(nice for nice in (1, 2, 4, 8, 16, 32) if nice >= step)
    return [
        el("text", f"{expert}", x=expert * cell + cell / 2 + 0.5, y=12, text_anchor="middle")
        for expert in range(0, num_experts, step)
    ]


def _layer_names(experts: Experts, height: int) -> Html:
    names = [
        el("text", f"L{layer}", x=LEFT - 8, y=HEAD + at * ROW_HEIGHT + 15, text_anchor="end")
        for at, layer in enumerate(experts.layers)
    ]
    return el("svg", *names, width=LEFT, height=height + 2, class_="side", aria_hidden="true")


def _selected_counts(experts: Experts, height: int) -> Html:
    counts = [sum(score.layer == layer for score in experts.selected) for layer in experts.layers]
    most = max(counts, default=0) or 1
    bars = []
    for at, count in enumerate(counts):
        y = HEAD + at * ROW_HEIGHT
        bars.append(el("rect", x=10, y=y + 7, width=26 * count / most, height=7, class_="count"))
        bars.append(el("text", f"{count}", x=10 + 26 * count / most + 5, y=y + 15))
    return el(
        "svg",
        el("text", "selected", x=10, y=12),
        *bars,
        width=RIGHT + 8,
        height=height + 2,
        aria_hidden="true",
    )


def _legend(largest: float) -> Html:
    steps = [-1 + at / 8 for at in range(17)]
    swatches = [
        el(
            "rect",
            x=at * 11,
            y=0,
            width=11,
            height=12,
            class_="pos" if step >= 0 else "neg",
            fill_opacity=abs(step),
        )
        for at, step in enumerate(steps)
    ]
    ramp = el("svg", *swatches, width=187, height=12, class_="ramp", aria_hidden="true")
    sample = el(
        "svg",
        el("rect", x=2, y=1, width=14, height=12, class_="chosen"),
        width=18,
        height=14,
        aria_hidden="true",
    )
    return el(
        "p",
        el("span", f"anchors {signed(-largest)}"),
        ramp,
        el("span", f"{signed(largest)} jailbreaks"),
        el("span", sample, " selected for repair", class_="key"),
        class_="ramp-legend",
    )
