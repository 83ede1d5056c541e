"""Run stages of a run directory with bars; shared by the verbs."""

from __future__ import annotations

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
