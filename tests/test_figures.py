"""The tables that pages show are those of docs/results, figure by figure."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from rasa_moe.reproduce.protocol import BASE, METHODS

DOCS = Path(__file__).parents[1] / "docs"
MEASURES = {
    "ASR trained": "attack_trained",
    "ASR held out": "attack_held_out",
    "answer begun": "attack_begun",
    "wrapped refused": "wrapped_benign",
    "over-refusal": "over_refusal",
    "ability": "ability",
}
SHORTER = {
    "base model": BASE,
    "RASA, the paper's form": "rasa_paper",
    "full, jailbreaks alone": "full_no_retain",
}
NAMES = {method.label.lower(): method.name for method in METHODS} | {k.lower(): v for k, v in SHORTER.items()}
# Asked in one run, and no part of the results since: docs/comparison.md says so.
WITHOUT_RESULTS = {("full", "1"), ("full", "3")}

Key = tuple[str, ...]


def results(file: str, *keys: str) -> dict[Key, str]:
    """Return (model, method, ..., measure) -> "rate [low, high]" in per cent, as pages write it."""
    with (DOCS / "results" / file).open(newline="") as lines:
        return {
            tuple(row[key] for key in ("model", "method", *keys, "measure")): (
                f"{100 * float(row['rate']):.1f} "
                f"[{100 * float(row['ci_low']):.0f}, {100 * float(row['ci_high']):.0f}]"
            )
            for row in csv.DictReader(lines)
        }


def tables(page: Path, heading: str) -> Iterator[list[list[str]]]:
    """Yield the tables of a page whose first row has a heading, as rows of cells; the ruler is left out."""
    for block in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE):
        rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in block.splitlines()]
        if any(heading in cell for cell in rows[0]):
            yield [rows[0], *rows[2:]]


def test_the_main_table_of_the_readme_is_that_of_the_results() -> None:
    expected = results("means.csv")
    (table,) = tables(DOCS.parent / "README.md", "ASR held out")
    model, columns = "", []
    for cell in table[0][1:]:
        name, _, measure = cell.rpartition(": ")
        model = name or model
        columns.append((f"testbed/{model}", MEASURES[measure]))
    assert {NAMES[row[0].lower()] for row in table[1:]} == {BASE, *(method.name for method in METHODS)}
    for row in table[1:]:
        found = [expected[model, NAMES[row[0].lower()], measure] for model, measure in columns]
        assert row[1:] == found, row[0]


def test_the_tables_of_the_comparison_are_those_of_the_results() -> None:
    expected = results("means.csv")
    found = [table for table in tables(DOCS / "comparison.md", "ASR held out") if "passes" not in table[0]]
    assert len(found) == 2
    for model, table in zip(("testbed/olmoe", "testbed/qwen3"), found, strict=True):
        measures = [MEASURES[cell] for cell in table[0][1:]]
        assert {NAMES[row[0].lower()] for row in table[1:]} == {BASE, *(method.name for method in METHODS)}
        for row in table[1:]:
            assert row[1:] == [expected[model, NAMES[row[0].lower()], one] for one in measures], row[0]


def test_the_tables_of_three_passes_are_those_of_the_results() -> None:
    expected = results("e_passes.csv", "passes")
    found = list(tables(DOCS / "comparison.md", "passes"))
    shown = set()
    for table in found:
        model, measures, name = f"testbed/{table[0][0]}", [MEASURES[cell] for cell in table[0][2:]], ""
        for label, passes, *cells in table[1:]:
            name = NAMES[label.lower()] if label else name
            if (name, passes) not in WITHOUT_RESULTS:
                assert cells == [expected[model, name, passes, one] for one in measures], (
                    model,
                    name,
                    passes,
                )
                shown.add((model, name, passes))
    assert shown == {key[:3] for key in expected}
