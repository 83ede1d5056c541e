"""Verbs on the testbed: the small synthetic world and its models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rasa_moe.cli.console import out, plain, quiet_loading, say

app = typer.Typer(
    help="Build, try out or describe the built-in models.", no_args_is_help=True, rich_markup_mode=None
)

_LEAVE = frozenset({"/quit", "/exit"})


@app.command()
def build(
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="New directory for the models.")],
    models: Annotated[
        list[str] | None, typer.Option("--model", help="olmoe or qwen3; may be repeated.")
    ] = None,
) -> None:
    """Train the built-in models again from scratch."""
    from rasa_moe import testbed
    from rasa_moe.cli.bars import Bars

    with Bars() as bars:
        testbed.build(destination, models=tuple(models or ("olmoe", "qwen3")), progress=bars)
    say(f"Wrote the models to {destination}")


@app.command()
def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model name or directory.")] = "testbed/olmoe",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
) -> None:
    """Talk to a built-in model, in the few words it knows; leave with /quit."""
    from rasa_moe.data import Message
    from rasa_moe.engines import generate
    from rasa_moe.moe import load_model

    quiet_loading()
    loaded, tokenizer = load_model(model, dtype="float32")
    turns: list[Message] = []
    while (line := _next_line()) is not None:
        if line:
            turns.append(Message(role="user", content=line))
            (answer,) = generate(loaded, tokenizer, [turns], max_new_tokens=max_new_tokens)
            turns.append(Message(role="assistant", content=answer.text))
            out.print(plain(answer.text))


@app.command()
def info() -> None:
    """Describe the world and the built-in models."""
    from rasa_moe import testbed

    for model, facts in testbed.info().items():
        say(model)
        for name, value in facts.items():
            say(f"  {name:<14} {value}")


def _next_line() -> str | None:
    """Return what the user typed, or None when the conversation is over."""
    if sys.stdin.isatty():
        out.print("> ", end="")
    line = sys.stdin.readline()
    return None if not line or line.strip() in _LEAVE else line.strip()
