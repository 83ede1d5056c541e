"""The table of stages, and the one loop that runs them, skips what is done and resumes what was killed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rasa_moe import stages
from rasa_moe.environment import describe_environment
from rasa_moe.errors import RunError, TrainingError
from rasa_moe.files import disk_full, is_disk_full
from rasa_moe.inputs import fingerprints
from rasa_moe.rundir import RunDirectory
from rasa_moe.session import Session
from rasa_moe.stages import Work


@dataclass(frozen=True)
class Stage:
    """One step of the method.

    Attributes:
        name: Verb of the command line and of the progress lines.
        run: Does the work and writes the outputs into `work.out`.
        inputs: Files of the run directory that it reads; a name ending in "/" is a folder.
        outputs: Files of the run directory that it must leave; it may leave more.
        sources: What it reads from outside the run directory: "model", "rows".
        help: One sentence for the command line.
        optional: Further files of the run directory that it reads if they are there.
    """

    name: str
    run: Callable[[Session, Work], None]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sources: tuple[str, ...]
    help: str
    optional: tuple[str, ...] = ()


STAGES: tuple[Stage, ...] = (
    Stage(
        name="collect",
        run=stages.collect,
        inputs=(),
        outputs=("pairs.jsonl", "retain.jsonl"),
        sources=("model", "rows"),
        help="Gather pairs of a jailbreak that works and a refused request.",
    ),
    Stage(
        name="route",
        run=stages.route,
        inputs=("pairs.jsonl", "retain.jsonl"),
        outputs=("routing.jsonl",),
        sources=("model",),
        help="Send jailbreaks to the experts that their plain requests go to.",
    ),
    Stage(
        name="detect",
        run=stages.detect,
        inputs=("pairs.jsonl", "routing.jsonl"),
        outputs=("expert_scores.csv", "experts.json"),
        sources=("model",),
        help="Find the experts that answer jailbreaks.",
        optional=("routing/",),
    ),
    Stage(
        name="align",
        run=stages.align,
        inputs=("pairs.jsonl", "retain.jsonl", "routing.jsonl", "experts.json"),
        outputs=("patch/", "training.jsonl"),
        sources=("model",),
        help="Repair those experts under fixed routing.",
        optional=("routing/",),
    ),
    Stage(
        name="evaluate",
        run=stages.evaluate,
        inputs=("pairs.jsonl", "patch/"),
        outputs=("evaluation.json",),
        sources=("model", "rows"),
        help="Measure attack success, over-refusal and ability.",
        optional=("rivals/",),
    ),
    Stage(
        name="audit",
        run=stages.audit,
        inputs=("experts.json", "patch/", "evaluation.json"),
        outputs=("audit.json",),
        sources=("model", "rows"),
        help="Swap parts back: is the gain repair or rerouting?",
        optional=("rivals/", "generations/"),
    ),
    Stage(
        name="report",
        run=stages.report,
        inputs=("expert_scores.csv", "experts.json", "training.jsonl", "evaluation.json"),
        outputs=("report.html",),
        sources=(),
        help="Write report.html from the files of the run.",
        optional=(
            "environment.json",
            "pairs.jsonl",
            "retain.jsonl",
            "audit.json",
            "reattack.json",
            "benchmarks.json",
            "judges.json",
            "detection_checks.json",
            "patch/",
            "generations/",
        ),
    ),
)


@dataclass(frozen=True)
class StageEvent:
    """Tell what the loop does with a stage.

    Attributes:
        stage: Its name.
        state: "start", "done", or "kept" when an earlier run's files still hold.
        reason: Why it runs; empty unless it starts.
        elapsed_seconds: How long it took; 0 unless it is done.
    """

    stage: str
    state: str
    reason: str = ""
    elapsed_seconds: float = 0.0


OnEvent = Callable[[StageEvent], None]


def _ignore(event: StageEvent) -> None:
    """Take no notice; the default of `run_stages`."""


def run_stages(
    session: Session, *, only: str | None = None, again: bool = False, on_event: OnEvent = _ignore
) -> None:
    """Run every stage of a session (or one of them) whose mark does not hold any more.

    Args:
        session: The run.
        only: Name of a single stage; None for all of them in order.
        again: Run even if the mark holds.
        on_event: Told when a stage starts, is done, or is kept.

    Raises:
        RunError: An input is missing, the disk is full, or another process works in the directory.
        RasaError: Whatever a stage reports.
    """
    from rasa_moe.distributed import current, working_alike

    chosen = [stage for stage in STAGES if only in (None, stage.name)]
    assert chosen, f"no stage is called {only}"
    directory, world = session.directory, current()
    if only is not None:
        world.once(lambda: require_current(directory, (*chosen[0].inputs, *chosen[0].optional)))
    is_alike = session.config.distributed.sharding == "tp"
    with (
        directory.locked() if world.is_first else nullcontext(),
        working_alike() if is_alike else nullcontext(),
    ):
        if any("rows" in stage.sources for stage in chosen):
            session.check()
        if any(stage.name == "align" for stage in chosen) and "align" not in directory.marks():
            session.check_repair()
        environment = describe_environment(threads=session.prepare(), processes=world.size)
        world.once(lambda: directory.record_environment(environment))
        for stage in chosen:
            _run_stage(session, stage, again=again, on_event=on_event)


def _run_stage(session: Session, stage: Stage, *, again: bool, on_event: OnEvent) -> None:
    from rasa_moe.distributed import current

    directory, world = session.directory, current()
    inputs, reason = world.once(lambda: _standing(session, stage))
    if not reason and not again:
        on_event(StageEvent(stage.name, "kept"))
        return
    on_event(StageEvent(stage.name, "start", reason=reason or "asked for"))
    started = time.monotonic()
    session.prepare()

    def checkpoints() -> Path:
        return Path(world.once(lambda: str(directory.checkpoints(stage.name, inputs=inputs))))

    def keep() -> None:
        _require_outputs(stage, out)
        directory.commit(stage.name, inputs=inputs, elapsed_seconds=time.monotonic() - started)

    # What other processes write is the same, and nobody needs it twice.
    staging = directory.staging(stage.name) if world.is_first else _thrown_away()
    with staging as out, _known_failures(session.path, stage):
        stage.run(session, Work(out, checkpoints))
        world.once(keep)
    on_event(StageEvent(stage.name, "done", elapsed_seconds=time.monotonic() - started))


def _standing(session: Session, stage: Stage) -> tuple[dict[str, str], str]:
    """Return the fingerprints of what a stage reads, and why it has to run; empty where its mark holds."""
    _require_inputs(session, stage)
    inputs = fingerprints(session, stage.inputs + stage.optional, sources=stage.sources)
    return inputs, session.directory.reason_to_run(stage.name, inputs=inputs)


@contextmanager
def _thrown_away() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rasa-moe-") as folder:
        yield Path(folder)


def _require_inputs(session: Session, stage: Stage) -> None:
    """Say which stage has to come first when a file is missing."""
    missing = session.directory.missing(stage.inputs)
    if not missing:
        return
    maker = next((other.name for other in STAGES if missing in other.outputs), None)
    remedy = (
        f"run first: rasa-moe {maker} {session.path}" if maker else f"run: rasa-moe run --out {session.path}"
    )
    raise RunError(f"The stage '{stage.name}' needs {missing}, which is not in {session.path}; {remedy}")


def require_current(directory: RunDirectory, names: Sequence[str]) -> None:
    """Refuse files of a run whose makers have read something that is another now.

    A stage done alone would go on from them as if they belonged together.

    Raises:
        RunError: One does; the sentence says which stage to do again.
    """
    marks = directory.marks()
    for maker in STAGES:
        made = [name for name in maker.outputs if name in names]
        if not made or maker.name not in marks:
            continue
        then, now = marks[maker.name].inputs, directory.input_hashes((*maker.inputs, *maker.optional))
        others = {"configuration", *maker.sources}
        changed = [name for name in {**then, **now} if name not in others and then.get(name) != now.get(name)]
        if changed:
            raise RunError(
                f"{made[0]} in {directory.path} was made before {changed[0]} changed, so they do not belong "
                f"together; run first: rasa-moe {maker.name} {directory.path}"
            )


def _require_outputs(stage: Stage, out: Path) -> None:
    """Hold a stage to what the table says; a miss is our mistake, not the user's."""
    for name in stage.outputs:
        place = out / name
        present = any(place.rglob("*")) if name.endswith("/") else place.is_file()
        assert present, f"the stage '{stage.name}' did not write {name}"


@contextmanager
def _known_failures(path: Path, stage: Stage) -> Iterator[None]:
    """Turn a full disk and a lack of memory inside a stage into one sentence each."""
    from safetensors import SafetensorError

    try:
        yield
    except (MemoryError, OSError, RuntimeError, SafetensorError) as error:
        if _is_out_of_memory(error):
            raise TrainingError(
                f"The stage '{stage.name}' ran out of memory; start a new run with shorter prompts, a lower "
                "batch_tokens (collect, evaluate, align), or align.gradient_checkpointing: true."
            ) from error
        if is_disk_full(error):
            raise disk_full(path) from error
        raise


def _is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that there is no memory left; on a CPU torch says it in words only."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
