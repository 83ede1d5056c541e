"""The verb that fills the paper's tables."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from rasa_moe.cli.console import note, quiet_loading, resumable, say


def command(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer seeds and goals, no tuning: minutes, not hours.")
    ] = False,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Directory, new or to go on with. [default: runs/reproduce or runs/reproduce-quick]",
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="Model or directory; may be repeated. [default: both built-in ones]"),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", help="Method; may be repeated. [default: all of them]"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, one thread each. [default: one a core]")
    ] = None,
) -> None:
    """Fill the paper's tables: all methods, models and seeds.

    Give the same command again to go on after an interruption.
    """
    from rasa_moe.cli.bars import Bars
    from rasa_moe.reproduce import FULL, METHODS, QUICK
    from rasa_moe.reproduce import reproduce as fill
    from rasa_moe.reproduce.pool import usable_cores
    from rasa_moe.reproduce.protocol import MODELS

    folder = out_dir or Path("runs") / ("reproduce-quick" if quick else "reproduce")
    chosen = methods or [method.name for method in METHODS]
    if not methods and find_spec("peft") is None:
        chosen.remove("lora")
        note("lora is left out: peft is not installed (pip install 'rasa-moe[peft]').")
    quiet_loading()
    flags: list[str | Path] = [*(["--quick"] if quick else []), "--out", folder]
    flags += [part for name in models or () for part in ("--model", name)]
    flags += [part for name in methods or () for part in ("--method", name)]
    with resumable("reproduce", *flags), Bars() as bars:
        page = fill(
            folder,
            scale=QUICK if quick else FULL,
            models=models or MODELS,
            methods=chosen,
            workers=workers or min(usable_cores(), 8),
            progress=bars,
            on_line=note,
        )
    say(f"Tables: {folder / 'results.md'}, {folder / 'tables'}")
    say(f"Page: {page}")
