"""Turn the files of a run directory into one HTML page that can be sent on.

This room reads files only. It never imports torch and never loads a model, so a page can be made again on any
machine, long after the run.
"""

from __future__ import annotations

from pathlib import Path

from rasa_moe.files import write_text
from rasa_moe.report.load import load_run
from rasa_moe.report.page import render_page

__all__ = ["write_report"]


def write_report(run_dir: Path) -> Path:
    """Write report.html into a run directory.

    The file appears whole or not at all.

    Args:
        run_dir: A run directory; the parts of the audit, of rivals and of answers may be absent.

    Returns:
        Path of the page.

    Raises:
        RunError: A file is missing or broken, or the page cannot be written.
    """
    target = run_dir / "report.html"
    write_text(target, render_page(load_run(run_dir)))
    return target
