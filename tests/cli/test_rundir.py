"""The run directory: nothing is lost, nothing foreign is touched, marks vouch for what is there."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from rasa_moe import files
from rasa_moe.config import Config, load_config
from rasa_moe.errors import RunError
from rasa_moe.rundir import RunDirectory, new_run_path


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_keeps_the_old_file_and_leaves_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "state.json"
    files.write_text(file, "old")
    monkeypatch.setattr(os, "fsync", _no_space)
    with pytest.raises(RunError, match=r"disk that holds .*state\.json is full; free some space"):
        files.write_text(file, "new")
    assert file.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_full_disk_while_committing_leaves_the_stage_undone(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with directory.staging("collect") as out:
        (out / "pairs.jsonl").write_text("x")
        monkeypatch.setattr(os, "fsync", _no_space)
        with pytest.raises(RunError, match="full"):
            directory.commit("collect", inputs={}, elapsed_seconds=1.0)
    assert directory.reason_to_run("collect", inputs={}) == "not done yet"


def test_disk_full_is_recognised_in_words_too() -> None:
    assert files.is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not files.is_disk_full(OSError(errno.EACCES, "Permission denied"))


def test_a_run_of_another_configuration_is_refused_with_the_keys(directory: RunDirectory) -> None:
    other = load_config(None, ["align.rounds=9", "seed=4"])
    with directory.staging("collect") as out:
        (out / "pairs.jsonl").write_text("x")
        directory.commit("collect", inputs={}, elapsed_seconds=1.0)
    with pytest.raises(RunError) as caught:
        RunDirectory.start(directory.path, other)
    assert "seed is 0 there and 4 here; align.rounds is 3 there and 9 here" in str(caught.value)


def test_a_directory_without_work_is_taken_over(directory: RunDirectory) -> None:
    """A mistyped model name is no reason to keep the place that the corrected command names."""
    directory.record_environment({"started": "now"})
    with directory.locked():
        pass
    other = load_config(None, ["seed=4"])
    assert RunDirectory.start(directory.path, other).config == other
    assert RunDirectory.open(directory.path).config == other


def test_a_configuration_that_a_person_wrote_is_not_written_over(tmp_path: Path) -> None:
    own = "# mine\nseed: 4\n"
    (tmp_path / "config.yaml").write_text(own)
    assert RunDirectory.start(tmp_path, load_config(None, ["seed=4"])).config.seed == 4
    with pytest.raises(RunError, match="seed is 4 there and 5 here"):
        RunDirectory.start(tmp_path, load_config(None, ["seed=5"]))
    assert (tmp_path / "config.yaml").read_text() == own


def test_a_directory_that_is_worked_in_is_not_taken_over(directory: RunDirectory) -> None:
    with directory.locked(), pytest.raises(RunError, match="Another process is working"):
        RunDirectory.start(directory.path, load_config(None, ["seed=4"]))
    assert RunDirectory.open(directory.path).config == Config()


def test_the_same_configuration_goes_on(directory: RunDirectory) -> None:
    assert RunDirectory.start(directory.path, Config()).config == Config()


def test_a_directory_with_strangers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        RunDirectory.start(tmp_path, Config())
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(RunError, match="cannot be written"):
        RunDirectory.start(tmp_path / "run", Config())


def test_opening_what_is_no_run_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="rasa-moe run --out"):
        RunDirectory.open(tmp_path)


def test_two_processes_do_not_work_in_one_directory(directory: RunDirectory) -> None:
    with directory.locked(), pytest.raises(RunError, match="Another process"), directory.locked():
        pass
    with directory.locked():
        pass


def test_marks_hold_until_something_changes(directory: RunDirectory) -> None:
    inputs = {"rows": "a"}
    with directory.staging("collect") as out:
        (out / "deep").mkdir()
        (out / "deep" / "pairs.jsonl").write_text("x")
        directory.commit("collect", inputs=inputs, elapsed_seconds=1.0)
    assert directory.reason_to_run("collect", inputs=inputs) == ""
    assert list(directory.hashes()) == ["deep/pairs.jsonl"]
    assert directory.reason_to_run("collect", inputs={"rows": "b"}) == "rows has changed"
    (directory.path / "deep" / "pairs.jsonl").write_text("y")
    assert directory.reason_to_run("collect", inputs=inputs) == "deep/pairs.jsonl was altered"
    (directory.path / "deep" / "pairs.jsonl").unlink()
    assert directory.reason_to_run("collect", inputs=inputs) == "deep/pairs.jsonl is missing"


def test_a_second_pass_removes_what_it_no_longer_writes_and_sets_edits_aside(directory: RunDirectory) -> None:
    with directory.staging("collect") as out:
        for name in ("old.txt", "pairs.jsonl"):
            (out / name).write_text("first")
        directory.commit("collect", inputs={}, elapsed_seconds=1.0)
    (directory.path / "pairs.jsonl").write_text("edited by hand")
    with directory.staging("collect") as out:
        (out / "pairs.jsonl").write_text("second")
        directory.commit("collect", inputs={}, elapsed_seconds=1.0)
    assert not (directory.path / "old.txt").exists()
    assert (directory.path / "pairs.jsonl").read_text() == "second"
    assert (directory.path / "set_aside" / "pairs.jsonl").read_text() == "edited by hand"


def test_a_folder_that_a_second_pass_leaves_empty_is_gone(directory: RunDirectory) -> None:
    """Where it stands, a stage that follows takes it for something that was written."""
    for name in ("routing/deep/patch.safetensors", "routing.jsonl"):
        with directory.staging("collect") as out:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text("x")
            directory.commit("collect", inputs={}, elapsed_seconds=1.0)
    assert not (directory.path / "routing").exists()
    assert (directory.path / "routing.jsonl").read_text() == "x"


def test_a_broken_state_file_is_one_sentence(directory: RunDirectory) -> None:
    (directory.path / "state.json").write_text("{")
    with pytest.raises(RunError, match=r"state\.json cannot be read"):
        directory.marks()


def test_checkpoints_belong_to_their_inputs(directory: RunDirectory) -> None:
    first = directory.checkpoints("align", inputs={"pairs": "a"})
    (first / "step").write_text("1")
    assert directory.checkpoints("align", inputs={"pairs": "a"}) == first
    assert (first / "step").exists()
    second = directory.checkpoints("align", inputs={"pairs": "b"})
    assert second != first and not first.exists()


def test_the_environment_is_kept_and_changes_are_appended(directory: RunDirectory) -> None:
    first = {"torch": "1", "threads": 2, "started": "then"}
    assert directory.record_environment(first) == {}
    assert directory.record_environment({**first, "started": "later"}) == {}
    changed = {"torch": "2", "threads": 2, "started": "now"}
    assert directory.record_environment(changed) == {"torch": ["1", "2"]}
    assert directory.record_environment(changed) == {}
    recorded = json.loads((directory.path / "environment.json").read_text())
    assert recorded["torch"] == "1" and recorded["started"] == "then"
    assert recorded["resumed"] == [{"started": "now", "changed": {"torch": ["1", "2"]}}]


def test_new_runs_are_numbered(tmp_path: Path) -> None:
    names = [
        new_run_path(model, root=tmp_path / "runs").name
        for model in ("testbed/olmoe", "testbed/olmoe", "a b:c/")
    ]
    assert names == ["olmoe-1", "olmoe-2", "a-b-c-1"]
