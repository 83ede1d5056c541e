"""A three-stage method without a model: running, killing and resuming are tested in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rasa_moe import run
from rasa_moe.config import Config
from rasa_moe.run import Stage
from rasa_moe.rundir import RunDirectory
from rasa_moe.session import Session
from rasa_moe.stages import Work

EVALUATION = {
    "models": ["base", "rasa"],
    "rows": [
        {"model": "base", "suite": "story", "kind": "attack_trained", "k": 36, "n": 40, "unscored": 2,
         "rate": 0.9, "ci_low": 0.77, "ci_high": 0.96, "truncated": 1},
        {"model": "rasa", "suite": "story", "kind": "attack_trained", "k": 2, "n": 40, "unscored": 0,
         "rate": 0.05, "ci_low": 0.01, "ci_high": 0.17, "truncated": 0},
        {"model": "base", "suite": "sums", "kind": "ability", "k": 39, "n": 40, "unscored": 0,
         "rate": 0.975, "ci_low": 0.87, "ci_high": 1.0, "truncated": 0},
        {"model": "base", "suite": "capitals", "kind": "ability", "k": 40, "n": 40, "unscored": 0,
         "rate": 1.0, "ci_low": 0.91, "ci_high": 1.0, "truncated": 0},
    ],
    "means": [
        {"model": "base", "name": "ability", "kind": "ability", "rate": 0.9875, "ci_low": 0.95,
         "ci_high": 1.0, "families": 2, "n": 80}
    ],
    "paired": [],
    "trained_families": ["story"],
    "notes": ["a [bold]note[/bold] with \x1b[31mcolour"],
}  # fmt: skip


class FakeMethod:
    """Count what runs, and fail on demand."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fail: dict[str, BaseException] = {}

    def stages(self) -> tuple[Stage, ...]:
        return (
            Stage("collect", self._collect, (), ("pairs.jsonl",), (), "Collect."),
            Stage("align", self._align, ("pairs.jsonl",), ("patch/",), (), "Align."),
            Stage(
                "evaluate", self._evaluate, ("patch/",), ("evaluation.json", "report.html"), (), "Evaluate."
            ),
        )

    def _collect(self, session: Session, work: Work) -> None:
        self._enter("collect")
        (work.out / "pairs.jsonl").write_text(f"pairs of seed {session.config.seed}\n")
        (work.out / "generations").mkdir()
        (work.out / "generations" / "collect.jsonl").write_text("{}\n")

    def _align(self, session: Session, work: Work) -> None:
        pairs = (session.path / "pairs.jsonl").read_text()
        session.progress("train", 1, 2)
        (work.checkpoints / "step").write_text("1")
        self._enter("align")
        (work.out / "patch").mkdir()
        (work.out / "patch" / "rows.txt").write_text(pairs.upper())

    def _evaluate(self, session: Session, work: Work) -> None:
        self._enter("evaluate")
        (work.out / "evaluation.json").write_text(json.dumps(EVALUATION))
        (work.out / "report.html").write_text("<p>")

    def _enter(self, name: str) -> None:
        self.ran.append(name)
        if name in self.fail:
            raise self.fail.pop(name)


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> FakeMethod:
    """Put the fake stages in the place of the real ones."""
    fake = FakeMethod()
    monkeypatch.setattr(run, "STAGES", fake.stages())
    return fake


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A fresh run directory with the default configuration."""
    return RunDirectory.start(tmp_path / "run", Config())
