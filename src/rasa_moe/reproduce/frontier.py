"""The frontier: robustness against the price in refused harmless requests, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rasa_moe.report.markup import Html, el
from rasa_moe.report.numbers import percent
from rasa_moe.reproduce.protocol import BASE, PASSES, RASA
from rasa_moe.reproduce.tables import Row
from rasa_moe.reproduce.words import LABELS

WIDTH, HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 14, 44


@dataclass(frozen=True)
class Point:
    """One method or setting.

    Attributes:
        name: Shown on hovering, and beside the point if `is_named`.
        price: Refused share of wrapped harmless requests.
        robustness: 1 - ASR on held-out families.
        style: Class of the dot.
        is_named: Whether a label is drawn.
    """

    name: str
    price: float
    robustness: float
    style: str
    is_named: bool = False


def frontier_points(model: str, tables: Mapping[str, Sequence[Row]]) -> list[Point]:
    """Return base model, methods as tuned and after more passes, and ablations of RASA, on test prompts."""
    points = []
    means = {(row["method"], row["measure"]): row["rate"] for row in tables["means"] if row["model"] == model}
    for method in dict.fromkeys(method for method, _ in means):
        price, attack = (
            means.get((method, "wrapped_benign")),
            means.get((method, "attack_held_out")),
        )
        if price is not None and attack is not None:
            style = {RASA: "ours", BASE: "base"}.get(method, "rival")
            points.append(Point(LABELS[method], price, 1 - attack, style, is_named=True))
    settings: dict[str, dict[str, float]] = {}
    for row in tables["d_ablations"]:
        if row["model"] == model and row.get("rate") is not None:
            settings.setdefault(f"RASA, {row['axis']}: {row['value']}", {})[row["measure"]] = row["rate"]
    for row in tables["e_passes"]:
        if (row["model"], row["passes"]) == (model, PASSES):
            settings.setdefault(f"{LABELS[row['method']]}, {PASSES} passes", {})[row["measure"]] = row["rate"]
    points += [
        Point(name, rates["wrapped_benign"], 1 - rates["attack_held_out"], "setting")
        for name, rates in settings.items()
        if {"wrapped_benign", "attack_held_out"} <= rates.keys()
    ]
    return points


def trial_points(model: str, tables: Mapping[str, Sequence[Row]]) -> list[Point]:
    """Return every trial of every method, on validation goals and families."""
    return [
        Point(
            f"{LABELS[row['method']]}, {row['setting']} = {row['value']:g}",
            row["wrapped_benign"],
            1 - row["attack_left_out"],
            "ours" if row["method"] == RASA else "rival",
            is_named=bool(row["is_chosen"]),
        )
        for row in tables["tuning"]
        if row["model"] == model and row.get("attack_left_out") is not None
    ]


def frontier_chart(points: Sequence[Point], *, title: str) -> Html:
    """Draw the points; up and to the left is better.

    The price is drawn on a square-root scale, because the methods worth telling apart crowd near 0.
    """
    # A rate of nothing that could be scored is nowhere.
    points = [point for point in points if not math.isnan(point.price + point.robustness)]
    labels = _label_places([point for point in points if point.is_named])
    picture = el(
        "svg",
        *_axes(),
        *(_dot(point) for point in points if not point.is_named),
        *(_dot(point) for point in points if point.is_named),
        *(el("text", name, x=x, y=y, class_="tag") for name, x, y in labels),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        width="100%",
        role="img",
        aria_label=f"{title}. " + "; ".join(_spoken(point) for point in points if point.is_named),
        class_="frontier",
    )
    return el("figure", el("figcaption", title), picture)


def _x(price: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * math.sqrt(max(price, 0.0))


def _y(robustness: float) -> float:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - robustness)


def _axes() -> list[Html]:
    drawn = []
    for value in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        y = _y(value)
        drawn.append(el("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        drawn.append(el("text", percent(value), x=_LEFT - 6, y=y + 4, text_anchor="end"))
    for value in (0.0, 0.01, 0.03, 0.1, 0.25, 0.5, 1.0):
        x = _x(value)
        drawn.append(el("line", x1=x, x2=x, y1=_TOP, y2=HEIGHT - _BOTTOM, class_="grid"))
        drawn.append(
            el(
                "text",
                percent(value),
                x=x,
                y=HEIGHT - _BOTTOM + 16,
                text_anchor="middle",
            )
        )
    middle = (WIDTH + _LEFT) / 2
    drawn.append(
        el(
            "text",
            "Wrapped harmless requests refused",
            x=middle,
            y=HEIGHT - 6,
            text_anchor="middle",
        )
    )
    across = f"rotate(-90 12 {HEIGHT / 2:g})"
    drawn.append(
        el(
            "text",
            "1 - ASR, held-out families",
            x=12,
            y=HEIGHT / 2,
            text_anchor="middle",
            transform=across,
        )
    )
    return drawn


def _dot(point: Point) -> Html:
    radius = 5.5 if point.is_named else 3.0
    return el(
        "circle",
        el("title", _spoken(point)),
        cx=_x(point.price),
        cy=_y(point.robustness),
        r=radius,
        class_=f"point {point.style}",
    )


def _label_places(points: Sequence[Point]) -> list[tuple[str, float, float]]:
    """Put each label beside its point, moved down until it covers no other label."""
    placed: list[tuple[str, float, float]] = []
    for point in sorted(points, key=lambda one: (_y(one.robustness), one.price)):
        x, y = _x(point.price) + 9, _y(point.robustness) + 4
        while any(abs(y - other_y) < 12 and abs(x - other_x) < 170 for _, other_x, other_y in placed):
            y += 12
        placed.append((point.name, x, y))
    return placed


def _spoken(point: Point) -> str:
    return f"{point.name}: {percent(point.robustness)} robust, {percent(point.price)} refused"
