"""The verb `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rasa_moe.cli.console import note, quiet_loading, say

if TYPE_CHECKING:
    from rasa_moe.bench.figures import Result


def command(
    quick: Annotated[bool, typer.Option("--quick", help="Small models, in minutes.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="One bench; may be repeated.")
    ] = None,
    out_dir: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where bench.json and bench.md go.")
    ] = Path("bench"),
) -> None:
    """Measure speed and memory beside other ways, with what arithmetic allows."""
    from rasa_moe.bench.run import TABLE_FILE, run_benches, shown, write_results

    quiet_loading()
    size = "quick" if quick else "real"
    done: list[Result] = []

    def keep(result: Result) -> None:
        done.append(result)
        write_results(out_dir, done, size=size)
        for figure in result.figures:
            met = {None: "", True: ", met", False: ", missed"}[figure.is_met]
            say(f"{result.name}: {figure.name}: {shown(figure)}{met}")

    run_benches(only or (), size=size, on_result=keep)
    note(f"Wrote {out_dir / TABLE_FILE}")
