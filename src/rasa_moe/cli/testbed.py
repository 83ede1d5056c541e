"""Verbs on the testbed: the small synthetic world and its models."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rasa_moe.cli.console import out, plain, quiet_loading, say

app = typer.Typer(
    help="Build, try out or describe the built-in models.", no_args_is_help=True, rich_markup_mode=None
)


class Openings(StrEnum):
    """The choices of `World.openings`."""

    groups = "groups"
    own = "own"
    one = "one"


class MeasuredSplit(StrEnum):
    """Splits that a table may be made of; the models learned to refuse the goals of the third."""

    validation = "validation"
    test = "test"


_LEAVE = frozenset({"/quit", "/exit"})


@app.command()
def build(
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="New directory for the models.")],
    models: Annotated[
        list[str] | None, typer.Option("--model", help="olmoe or qwen3; may be repeated.")
    ] = None,
    harm_awareness: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of harmful answers with a warning; the shipped one by default."
        ),
    ] = None,
    openings: Annotated[
        Openings | None, typer.Option(help="How attack families share the openings of their answers.")
    ] = None,
) -> None:
    """Train the built-in models again from scratch."""
    from dataclasses import replace

    from rasa_moe import testbed
    from rasa_moe.cli.bars import Bars

    choices = {"harm_awareness": harm_awareness, "openings": None if openings is None else openings.value}
    world = replace(testbed.World(), **{name: value for name, value in choices.items() if value is not None})
    with Bars() as bars:
        testbed.build(destination, models=tuple(models or ("olmoe", "qwen3")), world=world, progress=bars)
    say(f"Wrote the models to {destination}")


@app.command()
def measure(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model name or directory.")] = "testbed/olmoe",
    split: Annotated[MeasuredSplit, typer.Option(help="Split of the goals.")] = MeasuredSplit.validation,
    limit: Annotated[int | None, typer.Option(min=1, help="Most prompts of a line.")] = None,
) -> None:
    """Print what a built-in model answers and refuses, family by family, as a Markdown table."""
    from rasa_moe import testbed
    from rasa_moe.cli.bars import Bars
    from rasa_moe.moe import load_model

    quiet_loading()
    loaded, tokenizer = load_model(model, dtype="float32")
    with Bars() as bars:
        lines = testbed.measure(loaded, tokenizer, split=split.value, limit=limit, progress=bars)
    say("| asked | suite | done, k of n | rate and 95 % interval | refused, k of n |")
    say("|---|---|---|---|---|")
    for line in lines:
        done, refused = line.done, line.refused
        say(
            f"| {line.kind} | {line.suite} | {done.k} of {done.n} | "
            f"{done.rate:.3f} [{done.ci_low:.3f}, {done.ci_high:.3f}] | {refused.k} of {refused.n} |"
        )


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
