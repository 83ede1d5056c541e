"""Pages of one section, for results that do not come from a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rasa_moe.files import write_text
from rasa_moe.report.load_training import load_audit
from rasa_moe.report.markup import Html, el
from rasa_moe.report.page import head, theme_choice
from rasa_moe.report.swaps import audit_part


def write_audit_page(directory: Path, *, facts: Mapping[str, str]) -> Path:
    """Write audit.html beside an audit.json.

    Args:
        directory: Holds audit.json.
        facts: What was audited, shown at the top.

    Returns:
        Path of the page.

    Raises:
        RunError: audit.json is missing or broken, or the page cannot be written.
    """
    target = directory / "audit.html"
    write_text(
        target, _page("Audit: repaired or rerouted?", facts, audit_part(load_audit(directory / "audit.json")))
    )
    return target


def _page(title: str, facts: Mapping[str, str], content: Html) -> str:
    shown = [el("div", el("dt", name), el("dd", value)) for name, value in facts.items()]
    body = el(
        "body",
        theme_choice(),
        el("header", el("p", "RASA-MoE", class_="over"), el("h1", title), el("dl", *shown, class_="facts")),
        el("main", el("section", content)),
    )
    return f"<!DOCTYPE html>\n{el('html', head(title), body, lang='en')}\n"
