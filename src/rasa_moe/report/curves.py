"""Training curves as SVG that fits its box: losses, KL, and how far the routing drifted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rasa_moe.report.markup import Html, compact, el
from rasa_moe.report.numbers import percent

HEIGHT = 190
# Enough for a line that is 700 pixels wide; more points would only make the file larger.
MOST_POINTS = 240


@dataclass(frozen=True)
class Line:
    """One line: its name, colour class, dash class and values; None is a gap."""

    name: str
    style: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Mark:
    """A vertical line at a position of the x axis with a label, such as the start of a round."""

    at: int
    label: str


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    ends: tuple[str, str],
    marks: Sequence[Mark] = (),
    is_share: bool = False,
) -> Html:
    """Draw lines over equally spaced positions, the y axis starting at zero.

    Args:
        lines: all of the same length.
        title: heading of the chart; also spoken by screen readers with first and last value of each line.
        x_label: what the x axis counts.
        ends: labels of the first and last position.
        marks: vertical lines.
        is_share: values are shares: percentages on the axis, and a dot at each value.

    Returns:
        A figure.
    """
    values = [value for line in lines for value in line.values if value is not None]
    ticks = nice_ticks(max(values, default=0.0))
    picture = el(
        "svg",
        *(
            el("line", x1="0", x2="100%", y1=_y(tick, ticks), y2=_y(tick, ticks), class_="grid")
            for tick in ticks
        ),
        *_marks(marks, max((len(line.values) for line in lines), default=0)),
        _paths(lines, ticks),
        *(dot for line in lines if is_share for dot in _dots(line, ticks)),
        class_="plot",
        width="100%",
        height=HEIGHT,
        role="img",
        aria_label=f"{title}. {_spoken(lines)}",
    )
    plot = el("div", _y_axis(ticks, is_share=is_share), picture, class_="curve")
    below = el("div", el("span", ends[0]), el("span", x_label), el("span", ends[1]), class_="x-axis")
    return el("figure", el("figcaption", title), _legend(lines), plot, below)


def shorten(values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Average neighbours until at most MOST_POINTS are left."""
    size = math.ceil(len(values) / MOST_POINTS) or 1
    return tuple(_mean(values[at : at + size]) for at in range(0, len(values), size))


def shortened_position(at: int, length: int) -> int:
    """Return where position `at` of `length` values lies after `shorten`."""
    return at // (math.ceil(length / MOST_POINTS) or 1)


def nice_ticks(top: float) -> tuple[float, ...]:
    """Return about four ticks from zero to at least `top`, in steps of 1, 2 or 5 times a power of ten."""
    if top <= 0:
        return (0.0, 1.0)
    power = 10.0 ** math.floor(math.log10(top / 4))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice * 4 >= top * (1 - 1e-9))
    count = math.ceil(top / step - 1e-9)
    return tuple(round(step * at, 12) for at in range(count + 1))


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _x(at: int, length: int) -> float:
    return 100 * at / (length - 1) if length > 1 else 50.0


def _y(value: float, ticks: Sequence[float]) -> float:
    return HEIGHT * (1 - value / ticks[-1])


def _y_axis(ticks: Sequence[float], *, is_share: bool) -> Html:
    numbers = [
        el("text", percent(tick) if is_share else f"{tick:g}", x=40, y=_y(tick, ticks) + 4, text_anchor="end")
        for tick in ticks
    ]
    return el("svg", *numbers, class_="plot", width=46, height=HEIGHT, aria_hidden="true")


def _paths(lines: Sequence[Line], ticks: Sequence[float]) -> Html:
    """Draw the lines on a scale of 0 to 100 that is stretched to the box, whatever its size."""
    paths = [
        el("path", d=_steps(line, ticks[-1]), class_=f"line {line.style}", vector_effect="non-scaling-stroke")
        for line in lines
    ]
    stretched = {"viewBox": "0 0 100 100", "preserveAspectRatio": "none"}
    return el("svg", *paths, x="0", y="0", width="100%", height=HEIGHT, class_="at", **stretched)


def _steps(line: Line, top: float) -> str:
    steps: list[str] = []
    pen_down = False
    for at, value in enumerate(line.values):
        if value is not None:
            place = f"{compact(_x(at, len(line.values)))} {compact(100 * (1 - value / top))}"
            steps.append(f"{'L' if pen_down else 'M'}{place}")
        pen_down = value is not None
    return "".join(steps)


def _dots(line: Line, ticks: Sequence[float]) -> list[Html]:
    return [
        el(
            "circle",
            el("title", f"{line.name}: {percent(value)}"),
            cx=f"{compact(_x(at, len(line.values)))}%",
            cy=_y(value, ticks),
            r=3.5,
            class_=f"dot {line.style}",
        )
        for at, value in enumerate(line.values)
        if value is not None
    ]


def _marks(marks: Sequence[Mark], length: int) -> list[Html]:
    drawn: list[Html] = []
    for mark in marks:
        x = f"{compact(_x(mark.at, length))}%"
        drawn.append(el("line", x1=x, x2=x, y1=0, y2=HEIGHT, class_="mark-line"))
        drawn.append(el("text", mark.label, x=x, y=-6))
    return drawn


def _legend(lines: Sequence[Line]) -> Html:
    return el("ul", *(_legend_item(line) for line in lines), class_="legend")


def _legend_item(line: Line) -> Html:
    stroke = el("line", x1=0, x2=22, y1=8, y2=8, class_=f"line {line.style}")
    return el("li", el("svg", stroke, width=22, height=16, aria_hidden="true"), line.name)


def _spoken(lines: Sequence[Line]) -> str:
    parts = []
    for line in lines:
        present = [value for value in line.values if value is not None]
        if present:
            parts.append(f"{line.name} from {present[0]:.3g} to {present[-1]:.3g}")
    return "; ".join(parts)
