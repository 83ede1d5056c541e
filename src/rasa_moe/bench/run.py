"""Run benches and write what they found as JSON for programs and as tables for people."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from rasa_moe.bench import generation, growth, repair, replay, routers, routing, startup
from rasa_moe.bench.figures import Figure, Result
from rasa_moe.environment import describe_machine
from rasa_moe.errors import ConfigError
from rasa_moe.files import write_json, write_text

BENCHES: dict[str, Callable[[str], Result]] = {
    repair.NAME: repair.bench,
    routing.RECORD: routing.bench_record,
    routing.DETECT: routing.bench_detect,
    routers.NAME: routers.bench,
    replay.NAME: replay.bench,
    generation.NAME: generation.bench,
    growth.NAME: growth.bench,
    startup.NAME: startup.bench,
}
JSON_FILE, TABLE_FILE = "bench.json", "bench.md"


def run_benches(
    names: Sequence[str], *, size: str, on_result: Callable[[Result], None] = lambda result: None
) -> list[Result]:
    """Run benches one after the other.

    Args:
        names: Of `BENCHES`; none for all.
        size: "real", "quick" or "tiny".
        on_result: Told of each result as it is there.

    Raises:
        ConfigError: A name is unknown.
    """
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise ConfigError(f"There is no bench '{unknown[0]}'; choose from {', '.join(BENCHES)}.")
    results = []
    for name in names or BENCHES:
        results.append(BENCHES[name](size))
        on_result(results[-1])
    return results


def machine() -> dict[str, Any]:
    """Return what figures depend on besides the code."""
    return {
        **describe_machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def write_results(folder: Path, results: Sequence[Result], *, size: str) -> None:
    """Write bench.json and bench.md into a folder."""
    write_json(
        folder / JSON_FILE,
        {"size": size, "machine": machine(), "benches": [result.to_json() for result in results]},
    )
    write_text(folder / TABLE_FILE, as_markdown(results, size=size))


def as_markdown(results: Sequence[Result], *, size: str) -> str:
    """Return the results as a page with one table a bench."""
    conditions = ", ".join(f"{name} {value}" for name, value in machine().items())
    parts = [f"# Benches ({size} size)\n\n{conditions}. Median (lowest..highest).\n"]
    for result in results:
        parts.append(f"\n## {result.name}\n\n{result.conditions}.\n\n")
        parts.append("| what | measured | target | met | floor |\n|---|---|---|---|---|\n")
        parts += [_row(figure) for figure in result.figures]
    return "".join(parts)


def _row(figure: Figure) -> str:
    target = "" if figure.target is None else f"{'>=' if figure.at_least else '<='} {figure.target:g}"
    met = {None: "", True: "yes", False: "no"}[figure.is_met]
    return f"| {figure.name} | {shown(figure)} | {target} | {met} | {figure.floor} |\n"


def shown(figure: Figure) -> str:
    """Return median and range with their unit."""
    value = figure.value
    if figure.unit == "bytes":
        return f"{value.median / 1e9:.2f} GB ({value.lowest / 1e9:.2f}..{value.highest / 1e9:.2f})"
    unit = {"x": "x", "s": " s", "exponent": ""}[figure.unit]
    return f"{value.median:.3g}{unit} ({value.lowest:.3g}..{value.highest:.3g})"
