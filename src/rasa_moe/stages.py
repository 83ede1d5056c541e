"""One adapter a stage: take what it needs from the session, call the room that works, write the result.

Each adapter writes into `work.out` only, with the paths that the files have in the run directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rasa_moe.errors import DataError
from rasa_moe.files import write_json
from rasa_moe.session import BASE, RASA, Session

if TYPE_CHECKING:
    from rasa_moe.evaluate.stage import Judged
    from rasa_moe.evaluate.suites import Suite
    from rasa_moe.moe import Piece

_ATTACKS = ("attack_trained", "attack_held_out")


@dataclass(frozen=True)
class Work:
    """Say where a stage writes.

    Attributes:
        out: An empty folder for finished files; they are moved into the run directory once all are there.
        make_checkpoints: Makes the folder behind `checkpoints`, for the stages that ask for it.
    """

    out: Path
    make_checkpoints: Callable[[], Path]

    @cached_property
    def checkpoints(self) -> Path:
        """A folder that survives a kill, for unfinished work on exactly these inputs."""
        return self.make_checkpoints()


def collect(session: Session, work: Work) -> None:
    """Gather pairs of a working jailbreak and a refused plain request, and the conversations to retain."""
    from rasa_moe.artifacts import write_judged, write_retain
    from rasa_moe.collect import begin_otherwise
    from rasa_moe.collect import collect as gather
    from rasa_moe.data import write_pairs
    from rasa_moe.distributed import current

    server, config = session.engine("generation"), session.config.collect
    shared: dict[str, Any] = {"judge": session.judge, "config": config, "progress": session.progress}
    kept, world = work.checkpoints / "collect.jsonl", current()
    try:
        collected = gather(
            session.model if server is None else server,
            session.tokenizer if server is None else None,
            source=session.source,
            on_transcript=lambda transcript: world.once(lambda: write_judged(kept, transcript)),
            **shared,
        )
    except DataError as error:
        if not kept.exists():
            raise
        raise DataError(f"{str(error).rstrip('.')}; every answer is in {kept}.") from error
    if config.openings:  # a server tells no first tokens, so this asks the model in memory
        collected = begin_otherwise(session.model, session.tokenizer, collected, **shared)
    write_pairs(work.out / "pairs.jsonl", collected.pairs)
    write_retain(work.out / "retain.jsonl", collected.retain)
    write_json(work.out / "collected.json", dict(collected.counts))
    write_judged(work.out / "generations" / "collect.jsonl", collected.transcript)


def route(session: Session, work: Work) -> None:
    """Send jailbreaks where their plain requests go, unless the order of `align` leaves that for later."""
    from rasa_moe.align import make_consistent
    from rasa_moe.artifacts import read_retain
    from rasa_moe.data import read_pairs
    from rasa_moe.data.jsonl import write_records
    from rasa_moe.distributed import current

    config = session.config
    consistent = make_consistent(
        session.model,
        session.tokenizer,
        session.moe,
        pairs=read_pairs(session.path / "pairs.jsonl"),
        retain=read_retain(session.path / "retain.jsonl"),
        config=config.align,
        seed=config.seed,
        base_name=config.model,
        checkpoint_path=work.checkpoints / "routing.safetensors",
        progress=session.progress,
    )
    write_records(work.out / "routing.jsonl", [] if consistent is None else consistent.log)
    if consistent is not None and current().is_first:
        consistent.patch.save(work.out / "routing")


def detect(session: Session, work: Work) -> None:
    """Score every expert by activation discrepancy and select the safety-critical ones."""
    from rasa_moe.artifacts import write_detection
    from rasa_moe.data import read_pairs
    from rasa_moe.detect.stage import detect as score

    detection = score(
        session.model,
        session.tokenizer,
        session.moe,
        pairs=read_pairs(session.path / "pairs.jsonl"),
        config=session.config.detect,
        routing=session.routing,
        both_routings=session.config.align.both_routings,
        seed=session.config.seed,
        progress=session.progress,
    )
    write_detection(
        work.out, detection, session.moe, model=session.config.model, span=session.config.detect.span
    )


def align(session: Session, work: Work) -> None:
    """Repair the selected experts, and train the rivals on the same pairs."""
    from rasa_moe.align import BaseReadings
    from rasa_moe.align import align as repair
    from rasa_moe.align.rivals import RIVALS
    from rasa_moe.artifacts import read_experts, read_log, read_retain, write_tensors
    from rasa_moe.data import read_pairs
    from rasa_moe.data.jsonl import write_records
    from rasa_moe.distributed import current

    config, model, tokenizer, moe = session.config, session.model, session.tokenizer, session.moe
    pairs = read_pairs(session.path / "pairs.jsonl")
    retain = read_retain(session.path / "retain.jsonl")
    routing, readings = session.routing, BaseReadings()
    alignment = repair(
        model,
        tokenizer,
        moe,
        pairs=pairs,
        retain=retain,
        experts=read_experts(session.path / "experts.json"),
        config=config.align,
        routing=routing,
        seed=config.seed,
        base_name=config.model,
        checkpoint_path=work.checkpoints / f"{RASA}.safetensors",
        readings=readings,
        progress=session.progress,
    )
    is_first = current().is_first  # weights are large, so only one process writes them
    if is_first:
        alignment.patch.save(work.out / "patch")
    log = [*read_log(session.path / "routing.jsonl"), *alignment.log]
    for name in config.compare:
        tuned = RIVALS[name](
            model,
            tokenizer,
            moe,
            pairs=pairs,
            retain=retain,
            config=config,
            routing=routing,
            checkpoint_path=work.checkpoints / f"{name}.safetensors",
            readings=readings,
            progress=session.progress,
        )
        if is_first:
            write_tensors(work.out / _weights_of(name), tuned.tensors)
        log += tuned.log
    write_records(work.out / "training.jsonl", log)


def evaluate(session: Session, work: Work) -> None:
    """Measure attacks, over-refusal and ability of the base model, the repaired one and the rivals."""
    from rasa_moe.artifacts import write_judged
    from rasa_moe.data import read_pairs
    from rasa_moe.evaluate.stage import evaluate as tabulate
    from rasa_moe.evaluate.suites import make_suites

    config = session.config.evaluate
    suites = make_suites(session.source, split=config.split, limit=config.goals_per_suite)
    judged = {name: _judged(session, work, name, suites=suites) for name in session.evaluated}
    for name, answers in judged.items():
        write_judged(work.out / "generations" / f"{name}.jsonl", answers.values(), suites=suites)
    trained = sorted({pair.family for pair in read_pairs(session.path / "pairs.jsonl")})
    table = tabulate(judged, suites=suites, trained_families=trained, seed=session.config.seed)
    write_json(work.out / "evaluation.json", table.to_json())


def audit(session: Session, work: Work) -> None:
    """Put the base's routers, then its routed experts, back into every tuned model; measure again."""
    from rasa_moe.artifacts import read_experts, read_judged
    from rasa_moe.audit.combinations import spread
    from rasa_moe.audit.stage import audit as swap
    from rasa_moe.evaluate.suites import make_suites

    config, evaluation = session.config, session.config.evaluate
    limit = min(config.audit.goals_per_suite, evaluation.goals_per_suite)
    suites = make_suites(session.source, split=evaluation.split, limit=limit)
    # A method that acts at inference only has no part that could be swapped.
    tuned = {name: pieces for name in session.evaluated if (pieces := _pieces(session, name))}
    folder = session.path / "generations"
    rows = [row for suite in suites if suite.kind in _ATTACKS for row in suite.rows]
    result = swap(
        session.model,
        session.tokenizer,
        session.moe,
        tuned=tuned,
        judged={
            name: read_judged(folder / f"{name}.jsonl", session.source.rows) for name in session.evaluated
        },
        rows=rows,
        share_rows=spread(
            rows, goals=config.audit.goals_for_shares, attacks_per_goal=config.audit.attacks_per_goal
        ),
        experts=read_experts(session.path / "experts.json"),
        judge=session.judge,
        max_new_tokens=evaluation.max_new_tokens,
        batch_tokens=evaluation.batch_tokens,
        seed=config.seed,
        progress=session.progress,
    )
    write_json(work.out / "audit.json", result.to_json())


def report(session: Session, work: Work) -> None:
    """Write the HTML page from the files of the run."""
    from rasa_moe.distributed import current
    from rasa_moe.report import write_report

    if current().is_first:
        page = write_report(session.path)
        page.rename(work.out / page.name)


def _judged(session: Session, work: Work, name: str, *, suites: list[Suite]) -> dict[str, Judged]:
    """Answer and judge the suites with one model, or take the answers from before a kill."""
    from rasa_moe.artifacts import read_judged, write_judged
    from rasa_moe.distributed import current
    from rasa_moe.evaluate.stage import answer_suites

    saved, world = work.checkpoints / f"{name}.jsonl", current()
    if not world.once(saved.exists):
        with weights_in(session, name):
            answers = answer_suites(
                session.model,
                session.tokenizer,
                suites=suites,
                judge=session.judge,
                max_new_tokens=session.config.evaluate.max_new_tokens,
                batch_tokens=session.config.evaluate.batch_tokens,
                label=f"evaluate {name}",
                progress=session.progress,
            )
        world.once(lambda: write_judged(saved, answers.values(), suites=suites))
    return read_judged(saved, session.source.rows)


@contextmanager
def weights_in(session: Session, name: str) -> Iterator[None]:
    """Put the weights of one of the run's models into the session's for a while."""
    from rasa_moe.align.rivals import in_use
    from rasa_moe.artifacts import read_tensors
    from rasa_moe.moe import ExpertPatch

    if name == BASE:
        yield
    elif name == RASA:
        patch = ExpertPatch.load(session.path / "patch")
        patch.apply(session.model)
        try:
            yield
        finally:
            patch.revert(session.model)
    else:
        with in_use(session.moe, read_tensors(session.path / _weights_of(name))):
            yield


def _pieces(session: Session, name: str) -> list[Piece]:
    """Return what one of the run's models has where it may differ from the base model."""
    from rasa_moe.align.rivals import STEERING
    from rasa_moe.artifacts import read_tensors
    from rasa_moe.moe import ExpertPatch, pieces_of

    if name == BASE:
        return []
    if name == RASA:
        return ExpertPatch.load(session.path / "patch").pieces(session.model)
    tensors = read_tensors(session.path / _weights_of(name))
    return pieces_of({key: tensor for key, tensor in tensors.items() if key != STEERING})


def _weights_of(name: str) -> Path:
    return Path("rivals") / f"{name}.safetensors"
