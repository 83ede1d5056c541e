"""The tables laid out for reading: a sheet is a title, a head and rows of short cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rasa_moe.report.numbers import DASH, interval_short, p_value, percent, points
from rasa_moe.reproduce.plan import Plan
from rasa_moe.reproduce.protocol import BASE, PASSES
from rasa_moe.reproduce.results import MEASURES
from rasa_moe.reproduce.tables import UNCLEAR, Row
from rasa_moe.reproduce.words import LABELS

MAIN = "Every method"
PASSES_SECTION = "(e) More passes over the pairs"


@dataclass(frozen=True)
class Cell:
    """Hold one cell: what is read first, and what is set small below it."""

    main: str
    small: str = ""

    @property
    def text(self) -> str:
        """Both in one line."""
        return f"{self.main} ({self.small})" if self.small else self.main


@dataclass(frozen=True)
class Sheet:
    """Hold one table.

    Attributes:
        section: Heading it stands under.
        title: What it shows, model included.
        head: Column headings.
        body: Rows of cells; the first cell is the row's heading.
    """

    section: str
    title: str
    head: tuple[str, ...]
    body: tuple[tuple[Cell, ...], ...]


def sheets(plan: Plan, tables: Mapping[str, Sequence[Row]]) -> Iterator[Sheet]:
    """Yield every table that has rows, the main ones first."""
    makers: tuple[Callable[[Plan, str, Mapping[str, Sequence[Row]]], Sheet], ...] = (
        _means,
        _paired,
        _attacks,
        _transfer,
        _costs,
        _ablations,
        _passes,
        _passes_paired,
        _tuning,
    )
    for make in makers:
        for model in plan.models:
            sheet = make(plan, model, tables)
            if sheet.body:
                yield sheet


def rate_cell(row: Row | None) -> Cell:
    """Show a rate with its interval; a dash where nothing was measured."""
    if row is None or row.get("rate") is None or math.isnan(row["rate"]):
        return Cell(DASH)
    return Cell(percent(row["rate"]), interval_short(row["ci_low"], row["ci_high"]))


def _means(plan: Plan, model: str, tables: Mapping[str, Sequence[Row]]) -> Sheet:
    rows = {(row["method"], row["measure"]): row for row in tables["means"] if row["model"] == model}
    names = [name for name in MEASURES if any(measure == name for _, measure in rows)]
    failed = {method: row["failed"] for (method, _), row in rows.items()}
    body = [
        (
            _label(method, failed.get(method, 0)),
            *(rate_cell(rows.get((method, name))) for name in names),
        )
        for method in _methods(plan)
    ]
    head = ("Method", *(MEASURES[name][0] for name in names))
    return Sheet(MAIN, f"{model}: means over families and seeds", head, tuple(body))


def _paired(plan: Plan, model: str, tables: Mapping[str, Sequence[Row]]) -> Sheet:
    return _differences("RASA against each method", model, tables["paired"])


def _passes_paired(plan: Plan, model: str, tables: Mapping[str, Sequence[Row]]) -> Sheet:
    return _differences(PASSES_SECTION, model, tables["e_passes_paired"], when=f", after {PASSES} passes")


def _differences(section: str, model: str, lines: Sequence[Row], *, when: str = "") -> Sheet:
    rows = [row for row in lines if row["model"] == model]
    cells = {(row["second"], row["measure"]): row for row in rows}
    names = [name for name in MEASURES if any(row["measure"] == name for row in rows)]
    body = [
        (Cell(LABELS[other]), *(_difference(cells.get((other, name))) for name in names))
        for other in dict.fromkeys(row["second"] for row in rows)
    ]
    return Sheet(
        section,
        f"{model}{when}: RASA minus the other in points, interval, adjusted p; better or worse where it is "
        "clear",
        ("Against", *(MEASURES[name][0] for name in names)),
        tuple(body),
    )


def _difference(row: Row | None) -> Cell:
    if row is None:
        return Cell(DASH)
    verdict = "" if row["verdict"] == UNCLEAR else f" {row['verdict'].removeprefix('RASA ')}"
    interval = f"{points(row['ci_low'])} to {points(row['ci_high'])}"
    return Cell(f"{points(row['difference'])}{verdict}", f"{interval}; {p_value(row['p_value_adjusted'])}")


def _attacks(plan: Plan, model: str, tables: Mapping[str, Sequence[Row]]) -> Sheet:
    rows = [row for row in tables["a_attacks"] if row["model"] == model]
    title = f"{model}: attack success rate of each family, trained (t) and held out"
    return _by_suite("(a) Attack success by family", title, plan, rows, marks={"attack_trained": "t"})


def _costs(plan: Plan, model: str, tables: Mapping[str, Sequence[Row]]) -> Sheet:
    rows = [row for row in tables["c_costs"] if row["model"] == model]
    title = f"{model}: refused share of harmless requests, right answers of abilities"
    marks = {
        "wrapped_benign": "refused, wrapped",
        "over_refusal": "refused",
        "ability": "right",
    }
    return _by_suite("(c) What it costs", title, plan, rows, marks=marks)


def _by_suite(
    section: str,
    title: str,
    plan: Plan,
    rows: Sequence[Row],
    *,
    marks: Mapping[str, str],
) -> Sheet:
    cells = {(row["kind"], row["suite"], row["method"]): row for row in rows}
    suites = list({(row["kind"], row["suite"]): None for row in rows})
    methods = _methods(plan)
    body = [
        (
            Cell(suite, marks.get(kind, "")),
            *(rate_cell(cells.get((kind, suite, method))) for method in methods),
        )
        for kind, suite in suites
    ]
    return Sheet(section, title, ("Suite", *(LABELS[method] for method in methods)), tuple(body))


def _transfer(plan: Plan, model: str, tables: Mapping[str, Sequence[Row]]) -> Sheet:
    rows = [row for row in tables["b_transfer"] if row["model"] == model]
    cells = {(row["trained"], row["tested"]): row for row in rows}
    tested = list({row["tested"]: None for row in rows})
    trained = list({row["trained"]: None for row in rows})
    body = [
        (
            Cell(one),
            *(
                Cell(DASH)
                if (one, other) not in cells
                else Cell(
                    percent(cells[one, other]["rate"]),
                    "t" if cells[one, other]["is_trained"] else "",
                )
                for other in tested
            ),
        )
        for one in trained
    ]
    title = f"{model}: attack success after RASA on one family (row), asked in each (column); t: trained"
    return Sheet(
        "(b) Transfer from family to family",
        title,
        ("Trained on", *tested),
        tuple(body),
    )


def _ablations(plan: Plan, model: str, tables: Mapping[str, Sequence[Row]]) -> Sheet:
    rows = [row for row in tables["d_ablations"] if row["model"] == model]
    values = list({(row["axis"], row["value"], row["num_experts"]): None for row in rows})
    cells = {(row["axis"], row["value"], row["measure"]): row for row in rows}
    names = [name for name in MEASURES if any(row["measure"] == name for row in rows)]
    body = [
        (
            Cell(f"{axis}: {value}", "" if count is None else f"{count} experts"),
            *(
                Cell("failed")
                if (axis, value, "failed") in cells
                else rate_cell(cells.get((axis, value, name)))
                for name in names
            ),
        )
        for axis, value, count in values
    ]
    head = ("Setting", *(MEASURES[name][0] for name in names))
    return Sheet(
        "(d) Ablations of RASA",
        f"{model}: one setting varied at a time",
        head,
        tuple(body),
    )


def _passes(plan: Plan, model: str, tables: Mapping[str, Sequence[Row]]) -> Sheet:
    rows = [row for row in tables["e_passes"] if row["model"] == model]
    cells = {(row["method"], row["passes"], row["measure"]): row for row in rows}
    names = [name for name in MEASURES if any(row["measure"] == name for row in rows)]
    failed = {(row["method"], row["passes"]): row["failed"] for row in rows}
    body = [
        (
            Cell(f"{LABELS[method]}, {number_of(passes)}", _failures(count)),
            *(rate_cell(cells.get((method, passes, name))) for name in names),
        )
        for (method, passes), count in failed.items()
    ]
    seeds = max((row["seeds"] for row in rows), default=0)
    head = ("Method", *(MEASURES[name][0] for name in names))
    title = f"{model}: the same settings and pairs, seen once or more often; {seeds} seeds"
    return Sheet(PASSES_SECTION, title, head, tuple(body))


def number_of(passes: int) -> str:
    """Return how often pairs were seen, in words."""
    return "1 pass" if passes == 1 else f"{passes} passes"


def _tuning(plan: Plan, model: str, tables: Mapping[str, Sequence[Row]]) -> Sheet:
    rows = [row for row in tables["tuning"] if row["model"] == model]

    def shown(row: Row, key: str) -> Cell:
        return Cell(DASH if row.get(key) is None else percent(row[key]))

    body = [
        (
            Cell(LABELS[row["method"]]),
            Cell(f"{row['setting']} = {row['value']:g}"),
            Cell(DASH if row.get("trainings") is None else str(row["trainings"])),
            shown(row, "attack_left_out"),
            shown(row, "wrapped_benign"),
            shown(row, "ability"),
            Cell("chosen" if row["is_chosen"] else ""),
        )
        for row in rows
    ]
    head = (
        "Method",
        "Setting",
        "Trainings",
        "ASR, families left out",
        "Wrapped harmless refused",
        "Ability",
        "",
    )
    return Sheet("Settings", f"{model}: every trial, on validation goals", head, tuple(body))


def _methods(plan: Plan) -> list[str]:
    return [BASE, *(method.name for method in plan.method_list())]


def _label(method: str, failed: int) -> Cell:
    return Cell(LABELS[method], _failures(failed))


def _failures(failed: int) -> str:
    return f"{failed} trainings failed" if failed else ""
