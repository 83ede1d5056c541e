"""The verb `benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rasa_moe.cli.console import note, out, plain, quiet_loading, resumable, say
from rasa_moe.cli.work import require_finished, work

_NEEDED = ("pairs.jsonl", "expert_scores.csv", "patch/", "evaluation.json")


def command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a finished run.")],
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            metavar="NAMES",
            help="Tasks of lm-eval, xstest, strongreject; NAME=FILE for rows of your own, offline.",
        ),
    ] = "mmlu,gsm8k,truthfulqa",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Most questions of each, the first ones.")
    ] = None,
) -> None:
    """Ask public benchmarks before and after the repair, with lm-eval."""
    from rasa_moe.benchmarks.harness import require_harness
    from rasa_moe.benchmarks.stage import benchmark_run, write_outcomes
    from rasa_moe.benchmarks.tasks import parse_tasks
    from rasa_moe.beside import write_beside
    from rasa_moe.cli.bars import Bars
    from rasa_moe.rundir import RunDirectory
    from rasa_moe.session import Session

    chosen = parse_tasks(tasks)
    if any(task.form != "suite" for task in chosen):
        require_harness()
    directory = RunDirectory.open(run_dir)
    require_finished(directory, _NEEDED)
    quiet_loading()
    flags = ["--tasks", tasks, *([] if limit is None else ["--limit", str(limit)])]
    with resumable("benchmark", run_dir, *flags), Bars() as bars, directory.locked():
        session = Session(directory, progress=bars)
        session.prepare()
        result, outcomes = benchmark_run(session, chosen, limit=limit, progress=bars)
        write_beside(run_dir, "benchmarks.json", result.to_json())
        write_outcomes(run_dir / "benchmarks.jsonl", outcomes)
    work(directory, only="report")
    out.print(_table(result.to_json()), soft_wrap=False)
    for row in result.rows:
        if row["unparsed"] or row["unscored"]:
            say(
                f"{row['task']}, {row['model']}: {row['unparsed']} answers could not be read and count as "
                f"wrong; {row['unscored']} could not be judged and are left out."
            )
    for line in result.notes:
        note(line)
    say(f"Report: {run_dir / 'report.html'}")


def _table(result: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    table.add_column("benchmark")
    for model in result["models"]:
        table.add_column(plain(model), justify="right")
    for model in result["models"][1:]:
        table.add_column(plain(f"{model} - {result['models'][0]}, points"), justify="right")
    for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["task"], row["metric"]) == (task, metric)]
        pairs = [row for row in result["paired"] if (row["task"], row["metric"]) == (task, metric)]
        cells = [f"{task}, {metric}", *map(_rate, rows), *map(_change, pairs)]
        table.add_row(*map(plain, cells))
    return table


def _rate(row: dict[str, Any]) -> str:
    return "-" if row["rate"] is None else f"{row['k']}/{row['n']} {row['rate']:.1%}"


def _change(row: dict[str, Any]) -> str:
    if row["difference"] is None:
        return "-"
    low, high = 100 * row["ci_low"], 100 * row["ci_high"]
    return f"{100 * row['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
