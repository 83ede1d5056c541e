"""Put attacks around goals, and say what it costs before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rasa_moe.cli.console import note, say

if TYPE_CHECKING:
    from rasa_moe.attacks import Attack
    from rasa_moe.data.rows import PromptRow
    from rasa_moe.engines.http import HttpEngine


def command(
    goals: Annotated[
        str | None, typer.Argument(metavar="GOALS", help="Table of plain goals, hf: name or public set.")
    ] = None,
    attacks: Annotated[
        str, typer.Option("--attacks", metavar="NAMES", help="Attacks, or all for every one that is free.")
    ] = "all",
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.jsonl", help="Prompt rows for data.source.")
    ] = None,
    list_them: Annotated[bool, typer.Option("--list", help="List the attacks and exit.")] = False,
    columns: Annotated[
        str, typer.Option("--columns", metavar="ROLE=C,...", help="Such as goal=Behavior; else guessed.")
    ] = "",
    kind: Annotated[str, typer.Option("--kind", help="What the goals are: harmful or harmless.")] = "harmful",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Most goals, the first ones.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Chooses among an attack's variants.")] = 0,
    attacker: Annotated[
        str | None,
        typer.Option("--attacker", metavar="URL", help="Chat server for attacks that a model writes."),
    ] = None,
    attacker_model: Annotated[
        str | None, typer.Option("--attacker-model", metavar="M", help="Name of the model on that server.")
    ] = None,
    attacker_key: Annotated[
        str,
        typer.Option("--attacker-key", metavar="VARIABLE", help="Environment variable that holds its key."),
    ] = "",
    is_agreed: Annotated[bool, typer.Option("--yes", help="Spend the shown cost without asking.")] = False,
) -> None:
    """Make jailbreak prompts of plain goals, for data.source of a run."""
    from rasa_moe.attacks import all_attacks, get_attacks, plan
    from rasa_moe.data.source import load_source
    from rasa_moe.errors import ConfigError

    if list_them:
        for name, attack in all_attacks().items():
            say(f"{name:<24}{'free' if not attack.cost('').calls else 'model':<7}{attack.summary}")
        return
    if goals is None or out_file is None:
        raise ConfigError("give GOALS and --out FILE.jsonl, or --list to see the attacks")
    if out_file.exists():
        raise ConfigError(f"{out_file} is already there; give another name, or delete it first")
    chosen = get_attacks(_names(attacks))
    rows = load_source(goals, columns=_names(columns), kind=kind, limit=limit).rows
    cost = plan(rows, chosen)
    chat = None
    if cost.calls:
        note(f"Cost: {cost.calls} calls and about {cost.tokens} tokens at the endpoints named.")
        chat = _attacker(attacker, attacker_model, key=attacker_key, out_file=out_file)
        if not is_agreed:
            typer.confirm("Spend it?", abort=True, err=True)
    _make(rows, chosen, out_file, seed=seed, chat=chat)


def _make(
    rows: Sequence[PromptRow], chosen: Sequence[Attack], out_file: Path, *, seed: int, chat: HttpEngine | None
) -> None:
    """Make the attacks, write them beside the goals, and say what was made and spent."""
    from rasa_moe.attacks import make_rows
    from rasa_moe.cli.bars import Bars
    from rasa_moe.data import write_rows

    with Bars() as bars:
        concurrency = chat.config.concurrency if chat else 1
        made = make_rows(rows, chosen, seed=seed, chat=chat, concurrency=concurrency, progress=bars)
    write_rows(out_file, [*rows, *made.rows])
    for line in made.failures:
        note(f"Not made: {line}")
    if chat is not None:
        used = chat.usage
        tokens = used.prompt_tokens + used.completion_tokens
        note(f"Spent: {used.calls} calls and {tokens} tokens; {used.kept} replies were known already.")
    say(_summary(out_file, rows, made.rows))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _attacker(url: str | None, model: str | None, *, key: str, out_file: Path) -> HttpEngine:
    from rasa_moe.config.schema import EndpointConfig
    from rasa_moe.engines.http import HttpEngine
    from rasa_moe.errors import ConfigError

    if url is None or model is None:
        raise ConfigError("attacks that a model writes need --attacker URL and --attacker-model M")
    server = EndpointConfig(url=url, model=model, api_key_env=key, temperature=0.7, max_tokens=2048)
    # Kept beside the output, so that an interrupted command pays for nothing twice.
    return HttpEngine(server, answered=out_file.with_name(f"{out_file.name}.answered.jsonl"))


def _summary(path: Path, rows: Sequence[PromptRow], made: Sequence[PromptRow]) -> str:
    families = ", ".join(dict.fromkeys(row.family for row in made)) or "none"
    return f"Wrote {path}: {len(rows)} rows of the source and {len(made)} attacks ({families})"
