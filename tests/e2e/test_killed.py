"""A real run on the built-in model, interrupted and killed inside align, ends as an undisturbed one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rasa_moe.config import load_config
from rasa_moe.run import run_stages
from rasa_moe.rundir import RunDirectory
from rasa_moe.session import Session

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="sends signals"),
    pytest.mark.slow,
]

SETTINGS = (
    "collect.goals_per_family=4",
    "collect.retain_rows=16",
    "align.rounds=3",
    "align.batch_size=2",
    "full.epochs=1",
    "detect.bootstrap=50",
    "evaluate.goals_per_suite=2",
    "audit.goals_per_suite=2",
    "audit.goals_for_shares=2",
    "audit.attacks_per_goal=1",
    "threads=1",
)
COMMAND = [
    *(sys.executable, "-m", "rasa_moe", "run"),
    *(part for setting in SETTINGS for part in ("--set", setting)),
    "--out",
]


def start(path: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [*COMMAND, str(path)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell lets what it starts in the background ignore Ctrl-C, and the tests may be just that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def stop_in_align(path: Path, number: int) -> tuple[int, str]:
    """Send a signal once align has saved a phase that was not there before."""
    running = start(path)
    files = list(path.glob(".checkpoints/align-*/rasa.safetensors"))
    before = files[0].stat().st_mtime_ns if files else 0
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None:
        files = list(path.glob(".checkpoints/align-*/rasa.safetensors"))
        if files and files[0].stat().st_mtime_ns > before:
            break
        time.sleep(0.01)
    running.send_signal(number)
    errors = running.communicate(timeout=60)[1]
    return running.returncode, errors


def test_a_run_that_is_interrupted_and_killed_ends_with_the_same_hashes(tmp_path: Path) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    code, errors = stop_in_align(stopped, signal.SIGINT)
    assert code == 130, errors
    assert f"run --out {stopped}" in errors.splitlines()[-1] and "Traceback" not in errors
    assert list(RunDirectory.open(stopped).marks()) == ["collect", "route", "detect"]

    code, errors = stop_in_align(stopped, signal.SIGKILL)
    assert code == -signal.SIGKILL, errors
    assert all(f"{stage}: kept" in errors for stage in ("collect", "route", "detect"))
    assert list(RunDirectory.open(stopped).marks()) == ["collect", "route", "detect"]

    for path in (stopped, whole):
        run_stages(Session(RunDirectory.start(path, load_config(None, SETTINGS))))
    ends = [RunDirectory.open(path).hashes() for path in (stopped, whole)]
    assert ends[0] == ends[1]
    assert {
        "patch/patch.safetensors",
        "training.jsonl",
        "evaluation.json",
        "audit.json",
        "report.html",
    } <= set(ends[0])
