"""Look at files of prompts before a run depends on them."""

from __future__ import annotations

from typing import Annotated

import typer

from rasa_moe.cli.console import say

app = typer.Typer(help="Check files of prompts and jailbreak logs.", rich_markup_mode=None)


@app.callback(invoke_without_command=False, no_args_is_help=True)
def _group() -> None:
    """Check files of prompts and jailbreak logs."""


@app.command()
def check(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Tables, hf: names or public sets, together.")
    ],
    columns: Annotated[
        str, typer.Option("--columns", metavar="ROLE=C,...", help="Such as goal=Behavior; else guessed.")
    ] = "",
    kind: Annotated[str, typer.Option("--kind", help="What the prompts are, where no column says so.")] = (
        "harmful"
    ),
) -> None:
    """Say what the files hold, their problems by line, and which goals leak; exit code 2 if a row is bad."""
    from rasa_moe.data.check import check_sources

    checked = check_sources(files, columns=[c for c in columns.split(",") if c.strip()], kind=kind)
    for line in checked.lines:
        say(line)
    if checked.is_bad:
        raise typer.Exit(2)
