"""The verbs of the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from rasa_moe import __version__
from rasa_moe.cli import (
    attack,
    audit,
    bench,
    benchmark,
    detect_check,
    judge,
    pairs,
    patch,
    reattack,
    reproduce,
    testbed,
)
from rasa_moe.cli.console import err, note, out, plain, quiet_loading, resumable, say
from rasa_moe.cli.processes import first_says, is_under_torchrun, processes
from rasa_moe.cli.work import work
from rasa_moe.errors import ConfigError, RasaError, RunError, TrainingError
from rasa_moe.files import disk_full, is_disk_full
from rasa_moe.run import STAGES

_RUNS = Path("runs")

app = typer.Typer(
    name="rasa-moe",
    help="Routing-aware safety alignment for mixture-of-experts language models.",
    epilog="Start with: rasa-moe run (the built-in model, nothing to download).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(patch.app, name="patch")
app.add_typer(testbed.app, name="testbed")
app.add_typer(pairs.app, name="pairs")

RunDirArgument = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a run.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting, such as align.rounds=2; may be repeated."
    ),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2, without a traceback."""
    try:
        with processes():
            app(args=arguments, prog_name="rasa-moe")
    except RasaError as error:
        _fail(error)
    except OSError as error:
        if not is_disk_full(error):
            raise
        _fail(disk_full(Path(error.filename or ".")))


def _fail(error: RasaError) -> None:
    if isinstance(error, TrainingError):
        err.quiet = False  # under torchrun it may be this process alone that has no memory left
    err.print(plain(f"Error: {error}"))
    sys.exit(error.exit_code)


def _version(value: bool) -> None:
    if value:
        say(f"rasa-moe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before a verb."""
    shared = ("run", *(stage.name for stage in STAGES))
    if is_under_torchrun() and context.invoked_subcommand not in shared:
        raise ConfigError(
            f"'{context.invoked_subcommand}' works in one process; start it without torchrun. "
            f"Shared between processes are: {', '.join(shared)}."
        )


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML file; without it, the built-in model.")
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Directory of the run, new or to go on with. [default: runs/<model>-<n>]",
        ),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Run the whole method, from collect to report.

    Give the same command again, with the same --out, to go on after an interruption.
    """
    from rasa_moe.config import load_config
    from rasa_moe.rundir import RunDirectory, new_run_path

    recorded = out_dir / "config.yaml" if out_dir else None
    if config is None and recorded is not None and recorded.is_file():
        config = recorded
    settings = load_config(config, overrides or ())
    path = Path(first_says(lambda: str(out_dir or new_run_path(settings.model, root=_RUNS))))
    first_says(lambda: str(RunDirectory.start(path, settings).path))
    directory = RunDirectory.open(path)
    note(f"Run directory: {path}")
    with resumable("run", "--out", path):
        work(directory)
    _show_results(path)


def _stage_command(name: str) -> Callable[..., None]:
    def command(
        run_dir: RunDirArgument,
        again: Annotated[bool, typer.Option("--again", help="Run it even if its files still hold.")] = False,
    ) -> None:
        from rasa_moe.rundir import RunDirectory

        with resumable(name, run_dir):
            work(RunDirectory.open(run_dir), only=name, again=again)
        say(f"{name}: finished, see {run_dir}")

    return command


_OWN_COMMANDS = {"audit": audit.command}
for _stage in STAGES:
    app.command(_stage.name, help=_stage.help)(_OWN_COMMANDS.get(_stage.name) or _stage_command(_stage.name))

app.command("attack")(attack.command)
app.command("judge")(judge.command)
app.command("benchmark")(benchmark.command)
app.command("reattack")(reattack.command)
app.command("reproduce")(reproduce.command)
app.command("detect-check")(detect_check.command)
app.command("bench")(bench.command)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="File to write; - for the terminal.")] = Path(
        "rasa.yaml"
    ),
    overrides: SetOption = None,
) -> None:
    """Write a configuration file that explains every setting."""
    from rasa_moe.config import config_text, load_config
    from rasa_moe.files import write_text

    text = config_text(load_config(None, overrides or ()), title=f"Run with: rasa-moe run {path}")
    if str(path) == "-":
        out.print(plain(text), end="")
        return
    if path.exists():
        raise ConfigError(f"{path} is already there; give another name, or delete it first.")
    write_text(path, text)
    say(f"Wrote {path}; run it with: rasa-moe run {path}")


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="Model name or directory, such as testbed/olmoe.")],
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with it.")
    ] = False,
) -> None:
    """Check a model without loading it: experts, template, memory and time."""
    from rasa_moe.cli.doctor import examine

    quiet_loading()
    found = examine(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code, revision=revision)
    for looked_at, result in found:
        say(f"{looked_at:<11} {result}")
    say(f"{'  verdict':<11} {model} can be repaired")


@app.command()
def export(
    run_dir: RunDirArgument,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="New directory for the checkpoint.")],
) -> None:
    """Write the repaired model as an ordinary checkpoint, with a model card."""
    from rasa_moe.export.card import CARD_FILE, model_card
    from rasa_moe.files import write_text
    from rasa_moe.run import require_current
    from rasa_moe.rundir import RunDirectory

    directory = RunDirectory.open(run_dir)
    config = directory.config
    try:
        require_current(directory, ("evaluation.json", "audit.json"))
        card = model_card(run_dir)
    except RunError as error:
        card = None
        note(f"No model card: {error}")
    patch.write_checkpoint(
        config.model,
        patch.folder_of(run_dir),
        destination,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    if card is not None:
        write_text(destination / CARD_FILE, card)
        say(f"Model card: {destination / CARD_FILE}")


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that export wrote.")],
    repository: Annotated[str, typer.Argument(metavar="NAME", help="Name on the hub, owner/name.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Send it; without this, only say what is sent.")] = False,
) -> None:
    """Send an exported checkpoint to the Hugging Face hub (token in HF_TOKEN)."""
    from rasa_moe.export.push import pack, send

    parcel = pack(directory, repository, is_private=not public)
    for name, size in parcel.files:
        say(f"{size:>15,}  {name}")
    visible = "public" if public else "private"
    say(f"{parcel.num_bytes:>15,}  bytes in {len(parcel.files)} files to {repository} ({visible})")
    say(f"Sent: {send(parcel, directory)}" if yes else "Nothing was sent; add --yes to send it.")


@app.command("inspect-log")
def inspect_log(
    run_dir: RunDirArgument,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="Folder for the logs.")],
) -> None:
    """Write the answers of a run as logs for Inspect (inspect view --log-dir DEST)."""
    from rasa_moe.export.inspect_log import write_inspect_logs

    for path in write_inspect_logs(run_dir, destination):
        say(f"Wrote {path}")


def _show_results(path: Path) -> None:
    from rasa_moe.cli.table import evaluation_table, read_evaluation, remarks

    evaluation = read_evaluation(path)
    out.print(evaluation_table(evaluation), soft_wrap=False)
    for line in remarks(evaluation):
        say(line)
    say(f"Report: {path / 'report.html'}")
