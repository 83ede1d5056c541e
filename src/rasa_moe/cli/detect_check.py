"""The verb `detect-check`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rasa_moe.cli.console import quiet_loading, resumable, say
from rasa_moe.cli.work import work
from rasa_moe.errors import RunError


def command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a run.")],
    quick: Annotated[bool, typer.Option("--quick", help="Fewer goals, random sets and resamples.")] = False,
) -> None:
    """Doubt the selected experts: format, chance, cause."""
    from rasa_moe.beside import write_beside
    from rasa_moe.cli.bars import Bars
    from rasa_moe.detect.checking import QUICK, Effort, check_detection
    from rasa_moe.files import write_text
    from rasa_moe.run import require_current
    from rasa_moe.rundir import RunDirectory
    from rasa_moe.session import Session

    directory = RunDirectory.open(run_dir)
    missing = directory.missing(("pairs.jsonl", "experts.json"))
    if missing:
        raise RunError(f"{run_dir} has no {missing}; make it with: rasa-moe detect {run_dir}")
    require_current(directory, ("experts.json",))
    quiet_loading()
    with (
        resumable("detect-check", run_dir, *(["--quick"] if quick else [])),
        Bars() as bars,
        directory.locked(),
    ):
        session = Session(directory, progress=bars)
        session.prepare()
        found = check_detection(session, effort=QUICK if quick else Effort(), progress=bars)
        write_beside(run_dir, "detection_checks.json", found.to_json())
        write_text(run_dir / "detection_checks.csv", _csv(found.experts))
        write_text(run_dir / "detection_causal.csv", _csv(found.causal))
    for sentence in found.sentences:
        say(sentence)
    if not directory.missing(("evaluation.json", "training.jsonl")):
        work(directory, only="report")
        say(f"Report: {run_dir / 'report.html'}")


def _csv(lines: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    # Without lines nothing was silenced; the file then is empty rather than that of an earlier call.
    writer = csv.DictWriter(text, list(lines[0]) if lines else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
