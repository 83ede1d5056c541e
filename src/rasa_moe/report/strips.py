"""Dots with intervals, one lane a model; percent coordinates let them fit a phone without scrolling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rasa_moe.report.markup import Html, el, join
from rasa_moe.report.numbers import DASH, Estimate, percent, rate_words
from rasa_moe.report.vocabulary import BASE, REPAIRED, model_label

LANE_HEIGHT = 16
# Shape tells the models apart as well as colour does, for print and for colour-blind readers.
SHAPES = {
    "circle": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",
    "diamond": "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
    "square": "M-4.2 -4.2H4.2V4.2H-4.2Z",
    "triangle": "M0 -5.2L5.2 4.2H-5.2Z",
    "cross": "M-4.5 -1.5H-1.5V-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5Z",
}
RIVAL_STYLES = (("c3", "square"), ("c4", "triangle"), ("c5", "cross"))


@dataclass(frozen=True)
class Style:
    """How a model is drawn: a colour class of the style sheet and a shape."""

    color: str
    shape: str


@dataclass(frozen=True)
class Scale:
    """A linear scale and its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> str:
        """Return where a value lies, as a percentage of the width; outside values stop at the ends."""
        inside = min(max(value, self.low), self.high)
        return f"{100 * (inside - self.low) / (self.high - self.low):.2f}%"


UNIT = Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))


def style_of(model: str, models: Sequence[str]) -> Style:
    """Return the style of a model; rivals other than full fine-tuning take turns."""
    fixed = {BASE: Style("c0", "circle"), REPAIRED: Style("c1", "circle"), "full": Style("c2", "diamond")}
    if model in fixed:
        return fixed[model]
    others = [name for name in models if name not in fixed]
    place = others.index(model) if model in others else 0
    return Style(*RIVAL_STYLES[place % len(RIVAL_STYLES)])


@dataclass(frozen=True)
class Lane:
    """One dot with its interval. `estimate` is None where the model was not measured."""

    model: str
    style: Style
    estimate: Estimate | None


def strip(lanes: Sequence[Lane], *, label: str, scale: Scale = UNIT) -> Html:
    """Draw lanes below each other on one scale.

    Args:
        lanes: from top to bottom.
        label: what is shown, spoken before the numbers by screen readers.
        scale: the horizontal scale.

    Returns:
        An SVG as wide as its box.
    """
    spoken = "; ".join(f"{model_label(lane.model)} {_spoken(lane.estimate)}" for lane in lanes)
    height = LANE_HEIGHT * len(lanes)
    grid = [_grid_line(scale.at(tick), height) for tick in scale.ticks]
    marks = [_lane(lane, LANE_HEIGHT * at + LANE_HEIGHT / 2, scale) for at, lane in enumerate(lanes)]
    return el(
        "svg",
        *grid,
        *marks,
        class_="strip",
        width="100%",
        height=height,
        role="img",
        aria_label=f"{label}: {spoken}",
    )


def chart_row(
    name: Html, lanes: Sequence[Lane], *, label: str, note: str, scale: Scale = UNIT, is_mean: bool = False
) -> Html:
    """Set a strip between its name and its numbers; on a phone they stand below each other.

    Args:
        name: what the row is, as shown.
        lanes: one for each model.
        label: what the row is, as spoken.
        note: text to the right, such as the change.
        scale: the horizontal scale.
        is_mean: set the row apart from those it sums up.

    Returns:
        A row of a chart that starts with `tick_row`.
    """
    values = [el("span", percent(lane.estimate.rate) if lane.estimate else DASH) for lane in lanes]
    return el(
        "div",
        el("div", name, class_="cell label-cell"),
        el("div", strip(lanes, label=label, scale=scale), class_="cell"),
        el("div", *values, class_="values", aria_hidden="true"),
        el("div", note, class_="change"),
        class_="row mean" if is_mean else "row",
    )


def tick_row(scale: Scale = UNIT) -> Html:
    """Set the numbers of the scale above the strips of a chart."""
    return el(
        "div", el("span"), el("div", axis(scale), class_="cell"), el("span"), el("span"), class_="row ticks"
    )


def axis(scale: Scale = UNIT) -> Html:
    """Draw the numbers above a column of strips."""
    labels = (el("text", percent(tick), x=scale.at(tick), y=11, text_anchor="middle") for tick in scale.ticks)
    return el("svg", *labels, class_="axis", width="100%", height=15, aria_hidden="true")


def marker(style: Style, *, x: str, y: float, title: str | None = None) -> Html:
    """Draw the shape of a model at a place given in percent of the width."""
    shape = el(
        "path", el("title", title) if title else None, d=SHAPES[style.shape], class_=f"mark {style.color}"
    )
    return el("svg", shape, x=x, y=y, width=1, height=1, class_="at")


def legend(models: Sequence[str]) -> Html:
    """List the models with their shapes."""
    return el("ul", *(_legend_item(model, style_of(model, models)) for model in models), class_="legend")


def _legend_item(model: str, style: Style) -> Html:
    key = el("svg", marker(style, x="50%", y=8), width=16, height=16, aria_hidden="true")
    return el("li", key, model_label(model))


def _lane(lane: Lane, y: float, scale: Scale) -> Html:
    if lane.estimate is None:
        return el("text", "not measured", x="0", y=y + 4, class_="absent")
    found = lane.estimate
    line = el(
        "line",
        x1=scale.at(found.low),
        x2=scale.at(found.high),
        y1=y,
        y2=y,
        class_=f"range {lane.style.color}",
    )
    title = f"{model_label(lane.model)}: {rate_words(found)}"
    return join((line, marker(lane.style, x=scale.at(found.rate), y=y, title=title)))


def _grid_line(x: str, height: int) -> Html:
    # Longer than the strip: the box around it cuts the line where a tall label makes the row taller.
    return el("line", x1=x, x2=x, y1=-200, y2=height + 200, class_="grid")


def _spoken(estimate: Estimate | None) -> str:
    return "not measured" if estimate is None else rate_words(estimate)
