"""The verb `reattack`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer

from rasa_moe.cli.console import out, plain, quiet_loading, resumable, say
from rasa_moe.cli.work import require_finished, work
from rasa_moe.errors import ConfigError

_NEEDED = ("pairs.jsonl", "expert_scores.csv", "patch/", "evaluation.json", "generations/")
NAMES = ("silencing", "steering", "routes", "prefill", "suffix", "retuning", "combined", "sampling")


def command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a finished run.")],
    attacks: Annotated[
        list[str] | None,
        typer.Option("--attack", metavar="NAME", help=f"{', '.join(NAMES)}; may be repeated. [default: all]"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small budgets: minutes on two cores.")] = False,
) -> None:
    """Attack the repaired model again, knowing of the repair."""
    from rasa_moe import __version__
    from rasa_moe.beside import write_beside
    from rasa_moe.cli.bars import Bars
    from rasa_moe.files import write_text
    from rasa_moe.inputs import fingerprints
    from rasa_moe.kept import Kept
    from rasa_moe.reattack.stage import attack_run
    from rasa_moe.rundir import RunDirectory
    from rasa_moe.session import Session

    _check(attacks or ())
    directory = RunDirectory.open(run_dir)
    quiet_loading()
    flags = [
        *(part for name in attacks or () for part in ("--attack", name)),
        *(["--quick"] if quick else []),
    ]
    with resumable("reattack", run_dir, *flags), Bars() as bars, directory.locked():
        session = Session(directory, progress=bars)
        require_finished(directory, _NEEDED)
        session.prepare()
        inputs = fingerprints(session, (*_NEEDED, "rivals/"), sources=("model", "rows"))
        inputs["numbers"] = f"{session.model.dtype} on {session.model.device.type}, rasa-moe {__version__}"
        kept = Kept(directory.checkpoints("reattack", inputs=inputs) / "attacks.jsonl")
        result = attack_run(session, names=attacks or (), quick=quick, kept=kept, progress=bars)
        write_beside(run_dir, "reattack.json", result.to_json())
        write_text(run_dir / "reattack.csv", result.to_csv())
        directory.drop_checkpoints("reattack")
    work(directory, only="report")
    out.print(_table(result.to_json()), soft_wrap=False)
    for line in result.thresholds:
        needed = f"{line['examples']}" if line["examples"] is not None else f"more than {line['most_tried']}"
        say(f"{line['model']}: harmful examples until half of the jailbreaks work again: {needed}")
    say(f"Report: {run_dir / 'report.html'}")


def _check(names: Any) -> None:
    for name in names:
        if name not in NAMES:
            nearest = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"choose among {', '.join(NAMES)}."
            raise ConfigError(f"There is no attack '{name}'; {hint}")


def _table(result: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    table.add_column("attack (worst setting)")
    for model in result["models"]:
        table.add_column(plain(model), justify="right")
    for name in dict.fromkeys(row["attack"] for row in result["worst"]):
        found = {row["model"]: row for row in result["worst"] if row["attack"] == name}
        cells = [_cell(found.get(model)) for model in result["models"]]
        table.add_row(plain(name), *map(plain, cells))
    return table


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    unscored = f", {row['unscored']} unscored" if row["unscored"] else ""
    interval = f"{100 * row['ci_low']:.0f} - {row['ci_high']:.0%}"
    return f"{row['k']}/{row['n']} {row['rate']:.0%} ({interval}{unscored})"
