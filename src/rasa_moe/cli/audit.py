"""The verb `audit`: on a run directory, or on any two checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rasa_moe.cli.console import note, resumable, say
from rasa_moe.cli.work import work
from rasa_moe.errors import ConfigError, DataError, RunError
from rasa_moe.session import RASA

if TYPE_CHECKING:
    from rasa_moe.data.rows import Pair

FAILED = 3
_OF_A_RUN = ("run_dir", "again", "fail_on")
_TESTBED = "testbed"


class FailOn(StrEnum):
    """Verdicts that can end the command with exit code 3."""

    SHORTCUT = "shortcut"


def command(
    context: typer.Context,
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="RUN_DIR", help="Directory of a run; or give --base and --tuned.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Run it even if its files still hold.")] = False,
    base: Annotated[str | None, typer.Option(help="Model before tuning: name or directory.")] = None,
    tuned: Annotated[str | None, typer.Option(help="Model after tuning.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="JSONL of pairs: jailbreaks that work on the base, and refusals.")
    ] = None,
    out_dir: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="New directory for the result.")
    ] = Path("audit"),
    fail_on: Annotated[
        FailOn | None, typer.Option("--fail-on", help="Exit with code 3 on this verdict.")
    ] = None,
    budget: Annotated[
        float, typer.Option(help="Experts that count as selected: a share below 1, or a count.")
    ] = 0.125,
    goals: Annotated[int, typer.Option(min=1, help="Most goals asked.")] = 100,
    judge: Annotated[str, typer.Option(help="Who tells harmful answers: auto, or a judge.")] = "auto",
    source: Annotated[
        str | None,
        typer.Option(help="Prompts with references for the exact judge: testbed, or a JSONL file."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the models.")
    ] = False,
) -> None:
    """Swap parts back: is the gain repair or rerouting?

    Give a run directory, or --base, --tuned and --pairs for any two checkpoints of one architecture.
    """
    if run_dir is not None:
        if base or tuned or pairs:
            raise ConfigError("Give either a run directory or --base, --tuned and --pairs, not both.")
        _refuse_given(context)
        _end(_audit_run(run_dir, again=again), fail_on, model=RASA)
        return
    if base is None or tuned is None or pairs is None:
        raise ConfigError("Give a run directory, or all of --base, --tuned and --pairs.")
    page = _audit_pair(
        (base, tuned),
        pairs,
        out_dir,
        settings={
            "budget": budget, "goals": goals, "judge": judge, "source": source,
            "max_new_tokens": max_new_tokens,
        },
        loading={"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code},
    )  # fmt: skip
    verdicts = _show(out_dir / "audit.json")
    say(f"Report: {page}")
    _end(verdicts, fail_on, model="tuned")


def _refuse_given(context: typer.Context) -> None:
    """Refuse options that a run directory says itself, rather than pass over them."""
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in _OF_A_RUN:
            raise ConfigError(
                f"{parameter.opts[-1]} is for --base, --tuned and --pairs; a run directory is audited as its "
                "configuration says."
            )


def _audit_run(run_dir: Path, *, again: bool) -> list[dict[str, Any]]:
    """Run the stage of a run directory, print what it found and return the verdicts."""
    from rasa_moe.rundir import RunDirectory

    with resumable("audit", run_dir):
        work(RunDirectory.open(run_dir), only="audit", again=again)
    verdicts = _show(run_dir / "audit.json")
    say(f"audit: finished, see {run_dir}")
    return verdicts


def _audit_pair(
    names: tuple[str, str],
    pairs_file: Path,
    out_dir: Path,
    *,
    settings: dict[str, Any],
    loading: dict[str, Any],
) -> Path:
    """Audit two checkpoints, write the files and return the page among them."""
    from rasa_moe.audit import checkpoints
    from rasa_moe.audit.write import write_audit
    from rasa_moe.cli.bars import Bars
    from rasa_moe.data import read_pairs
    from rasa_moe.judges import get_judge
    from rasa_moe.moe.directories import finished_directory
    from rasa_moe.report.standalone import write_audit_page

    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise RunError(f"{out_dir} is already there and not empty; give another --out.")
    pairs = read_pairs(pairs_file)
    references = _references(settings["source"])
    _tell_before(pairs, references, settings)
    name = settings["judge"]
    if name == "auto":
        name = "exact" if references else "rules"
    judge = get_judge(name, answered=out_dir.with_name(f"{out_dir.name}.answered.jsonl"))
    detection = _detection(settings["budget"])
    model, tokenizer, changed = _load_both(names, loading)
    with Bars() as bars:
        result = checkpoints.audit_checkpoints(
            model,
            tokenizer,
            changed,
            pairs=pairs,
            judge=judge,
            detection=detection,
            references=references,
            limits=checkpoints.Limits(goals=settings["goals"], max_new_tokens=settings["max_new_tokens"]),
            progress=bars,
        )
    facts = {
        "Base": names[0],
        "Tuned": names[1],
        "Prompts": f"{result.num_prompts} jailbreaks of {pairs_file}",
        "Judge": judge.name,
        "Selected experts": f"{len(result.experts)}, by activation discrepancy in the base model",
    }
    with finished_directory(out_dir) as folder:
        write_audit(folder, result.audit, judged=result.judged, experts=result.experts, facts=facts)
        page = write_audit_page(folder, facts=facts)
    if judge.name == "rules":
        note(
            "Judged by rules: an answer that does not refuse counts as harmful. Better: --source or --judge."
        )
    return out_dir / page.name


def _load_both(names: tuple[str, str], loading: dict[str, Any]) -> tuple[Any, Any, list[Any]]:
    """Return the base model, the tokenizer of both, and what the tuned model changes."""
    from rasa_moe.audit import checkpoints
    from rasa_moe.cli.console import quiet_loading
    from rasa_moe.moe import discover, load_model
    from rasa_moe.session import cpu_dtype

    quiet_loading()
    loading = {**loading, "dtype": cpu_dtype(loading["dtype"], loading["device"])}
    model, tokenizer = load_model(names[0], **loading)
    # Only read here; a GPU that holds one model need not hold two.
    other, other_tokenizer = load_model(names[1], **{**loading, "device": "cpu"})
    checkpoints.require_same_tokens(tokenizer, other_tokenizer)
    return model, tokenizer, checkpoints.changed_pieces(discover(model), discover(other))


def _detection(budget: float) -> Any:
    from rasa_moe.config import DetectConfig

    if not (0 < budget <= 1 or (budget.is_integer() and budget >= 1)):
        raise ConfigError(f"--budget is {budget:g}; give a share of all experts (0.125) or a count (128).")
    return DetectConfig(budget=budget if budget < 1 else int(budget), bootstrap=200)


def _references(source: str | None) -> dict[str, tuple[str, ...]]:
    """Return goal -> what a harmful answer to it must hold."""
    if source is None:
        return {}
    from rasa_moe.data.source import load_source

    rows = load_source(source).rows
    found = {row.goal: row.reference for row in rows if row.kind == "harmful" and row.reference}
    if not found:
        raise DataError(f"{source} has no harmful prompt with references; leave --source out.")
    return found


def _tell_before(
    pairs: Sequence[Pair], references: dict[str, tuple[str, ...]], settings: dict[str, Any]
) -> None:
    """Say, before anything is generated, what will keep the audit from a verdict."""
    from rasa_moe.audit.verdict import FEWEST_GOALS

    without = sum(pair.goal not in references for pair in pairs)
    if references and without:
        note(
            f"{without} of {len(pairs)} pairs have a goal without references in {settings['source']}: "
            "the exact judge cannot score answers to them."
        )
    num_goals = min(settings["goals"], len({pair.goal for pair in pairs}))
    if num_goals < FEWEST_GOALS:
        note(f"The audit needs at least {FEWEST_GOALS} goals for a verdict, and {num_goals} will be asked.")


def _show(file: Path) -> list[dict[str, Any]]:
    """Print the findings and return the verdicts."""
    found = json.loads(file.read_text(encoding="utf-8"))
    for sentence in found["sentences"]:
        say(sentence)
    verdicts: list[dict[str, Any]] = found["verdicts"]
    for entry in verdicts:
        say(f"Verdict on {entry['model']}: {entry['verdict']} ({entry['reason']}).")
    return verdicts


def _end(verdicts: list[dict[str, Any]], fail_on: FailOn | None, *, model: str) -> None:
    """Exit with code 3 if the model that is meant to be used got the verdict that must not be."""
    if fail_on and any(entry["model"] == model and entry["verdict"] == fail_on for entry in verdicts):
        raise typer.Exit(FAILED)
