"""Running the table of stages: skip what holds, resume what was killed, end with the same hashes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rasa_moe.config import Config, load_config
from rasa_moe.errors import RunError, TrainingError
from rasa_moe.run import STAGES, StageEvent, require_current, run_stages
from rasa_moe.rundir import RunDirectory
from rasa_moe.session import Session


def _run(directory: RunDirectory, **options: object) -> list[tuple[str, str]]:
    events: list[StageEvent] = []
    run_stages(Session(directory), on_event=events.append, **options)  # type: ignore[arg-type]
    return [(event.stage, event.state) for event in events]


def test_a_second_run_keeps_everything(method, directory: RunDirectory) -> None:
    _run(directory)
    before = directory.hashes()
    assert list(before) == [
        "generations/collect.jsonl",
        "pairs.jsonl",
        "patch/rows.txt",
        "evaluation.json",
        "report.html",
    ]
    assert _run(directory) == [("collect", "kept"), ("align", "kept"), ("evaluate", "kept")]
    assert method.ran == ["collect", "align", "evaluate"]
    assert directory.hashes() == before


def test_the_same_configuration_replays_to_the_same_hashes(
    method, directory: RunDirectory, tmp_path: Path
) -> None:
    _run(directory)
    replay = RunDirectory.start(tmp_path / "replay", load_config(directory.path / "config.yaml"))
    _run(replay)
    assert replay.hashes() == directory.hashes()


def test_a_failed_stage_is_done_again_and_the_rest_kept(
    method, directory: RunDirectory, tmp_path: Path
) -> None:
    method.fail["align"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        _run(directory)
    assert not (directory.path / "patch").exists() and not (directory.path / ".staging").exists()
    assert list((directory.path / ".checkpoints").glob("align-*/step"))
    _run(directory)
    assert method.ran == ["collect", "align", "align", "evaluate"]
    assert not list((directory.path / ".checkpoints").iterdir())
    whole = RunDirectory.start(tmp_path / "whole", Config())
    _run(whole)
    assert directory.hashes() == whole.hashes()


def test_files_that_do_not_belong_together_are_refused_to_what_is_done_alone(
    method, directory: RunDirectory
) -> None:
    _run(directory)
    require_current(directory, ("evaluation.json",))
    (directory.path / "pairs.jsonl").write_text("other pairs")
    _run(directory, only="align")
    with pytest.raises(
        RunError, match=r"evaluation.json .* before patch/rows.txt changed.*rasa-moe evaluate"
    ):
        require_current(directory, ("evaluation.json",))
    _run(directory, only="evaluate")
    require_current(directory, ("evaluation.json",))


def test_a_changed_file_makes_its_readers_run_again(method, directory: RunDirectory) -> None:
    _run(directory)
    (directory.path / "patch" / "rows.txt").write_text("tampered")
    assert _run(directory) == [
        ("collect", "kept"),
        ("align", "start"),
        ("align", "done"),
        ("evaluate", "kept"),
    ]
    (directory.path / "pairs.jsonl").write_text("other pairs")
    assert _run(directory, only="align") == [("align", "start"), ("align", "done")]
    assert (directory.path / "patch" / "rows.txt").read_text() == "OTHER PAIRS"


def test_an_edited_configuration_makes_every_stage_run_again(method, directory: RunDirectory) -> None:
    _run(directory)
    file = directory.path / "config.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 1"))
    events = _run(RunDirectory.open(directory.path))
    assert [state for _, state in events] == ["start", "done"] * 3


def test_again_runs_a_stage_that_holds(method, directory: RunDirectory) -> None:
    _run(directory)
    assert _run(directory, only="align", again=True) == [("align", "start"), ("align", "done")]


def test_a_stage_without_its_inputs_names_the_one_to_run_first(method, directory: RunDirectory) -> None:
    with pytest.raises(RunError, match=r"needs pairs\.jsonl.*run first: rasa-moe collect"):
        _run(directory, only="align")


@pytest.mark.parametrize(
    ("failure", "expected", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), RunError, "disk that holds .* is full"),
        (MemoryError(), TrainingError, "'align' ran out of memory"),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
            ),
            TrainingError,
            "'align' ran out of memory; .* shorter prompts, a lower batch_tokens",
        ),
    ],
)
def test_known_failures_become_sentences(
    method, directory: RunDirectory, failure, expected, sentence
) -> None:
    method.fail["align"] = failure
    with pytest.raises(expected, match=sentence):
        _run(directory)
    assert directory.reason_to_run("align", inputs={}) == "not done yet"
    assert "collect" in directory.marks()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_disk_becomes_a_sentence(method, directory: RunDirectory) -> None:
    class Full(BaseException):
        pass

    def write(*_: object) -> None:
        with open("/dev/full", "w") as file:
            file.write("x")

    method._enter = write  # type: ignore[method-assign]
    with pytest.raises(RunError, match="is full"):
        _run(directory)


@pytest.mark.parametrize("failure", [ZeroDivisionError(), RuntimeError("shapes differ")])
def test_other_errors_keep_their_traceback(method, directory: RunDirectory, failure: Exception) -> None:
    method.fail["align"] = failure
    with pytest.raises(type(failure)):
        _run(directory)


def test_the_table_of_stages_is_in_order() -> None:
    made: set[str] = set()
    for stage in STAGES:
        assert made.issuperset(stage.inputs), stage.name
        assert made.isdisjoint(stage.outputs), stage.name
        made.update(stage.outputs)
    names = ["collect", "route", "detect", "align", "evaluate", "audit", "report"]
    assert [stage.name for stage in STAGES] == names


_KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import FakeMethod
from rasa_moe import run
from rasa_moe.config import Config
from rasa_moe.rundir import RunDirectory
from rasa_moe.session import Session

class Slow(FakeMethod):
    def _enter(self, name):
        super()._enter(name)
        if name == "align":
            Path(sys.argv[2]).write_text("here")
            time.sleep(60)

run.STAGES = Slow().stages()
run.run_stages(Session(RunDirectory.start(Path(sys.argv[1]), Config())))
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_a_killed_run_resumes_to_the_same_hashes(method, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_KILLED.format(tests=str(Path(__file__).parent)))
    sign, path = tmp_path / "sign", tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, str(script), str(path), str(sign)], env=environment)
    deadline = time.monotonic() + 120
    while not sign.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sign.exists(), "the script never reached the stage to be killed in"

    killed, whole = RunDirectory.start(path, Config()), RunDirectory.start(tmp_path / "whole", Config())
    assert list(killed.marks()) == ["collect"]
    assert _run(killed)[0] == ("collect", "kept")
    _run(whole)
    assert killed.hashes() == whole.hashes()
    assert not (path / ".staging").exists()
