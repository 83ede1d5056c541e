"""Run stages of a run directory with bars; shared by the verbs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rasa_moe.cli.console import quiet_loading

if TYPE_CHECKING:
    from rasa_moe.rundir import RunDirectory


def work(directory: RunDirectory, *, only: str | None = None, again: bool = False) -> None:
    """Run all stages, or one, whose mark does not hold any more."""
    from rasa_moe.cli.bars import Bars
    from rasa_moe.run import run_stages
    from rasa_moe.session import Session

    if only != "report":
        quiet_loading()
    with Bars() as bars:
        run_stages(Session(directory, progress=bars), only=only, again=again, on_event=bars.on_event)


def require_finished(directory: RunDirectory, needed: Sequence[str]) -> None:
    """Refuse a run directory that lacks files which a verb reads.

    Raises:
        RunError: One is missing; the sentence says how to finish the run.
    """
    from rasa_moe.errors import RunError
    from rasa_moe.run import require_current

    missing = directory.missing(tuple(needed))
    if missing:
        raise RunError(
            f"{directory.path} has no {missing}; finish it with: rasa-moe run --out {directory.path}"
        )
    require_current(directory, needed)
