"""The directory of a run: its configuration, its files, and a mark for every finished stage.

A stage writes into a private folder; once complete, its files are moved into place and their SHA-256 go
into `state.json`. A stage that was killed has no mark and is done again; what a mark vouches for can be
checked at any time.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rasa_moe.config import Config, config_text, differences, load_config
from rasa_moe.environment import changed_facts
from rasa_moe.errors import RunError
from rasa_moe.files import move_into_place, reported, sha256_file, sha256_json, write_json, write_text

_FORMAT = 1
_CONFIG, _STATE, _ENVIRONMENT = "config.yaml", "state.json", "environment.json"
_LOCK, _STAGING, _CHECKPOINTS, _SET_ASIDE = ".lock", ".staging", ".checkpoints", "set_aside"
# What stands in a directory before any stage has written or begun; it is nobody's work.
_NOBODYS = frozenset({_CONFIG, _ENVIRONMENT, _LOCK, ".hashes.json"})


@dataclass(frozen=True)
class StageMark:
    """Vouch for a finished stage: what it read and what it wrote.

    Attributes:
        inputs: Name of each input to the SHA-256 of its content at the time.
        outputs: Path relative to the run directory to the SHA-256 of the file.
        elapsed_seconds: How long the stage took, in the process that finished it.
        finished: When, in UTC.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    elapsed_seconds: float
    finished: str


class RunDirectory:
    """One run on disk. Make one with `start` (create or go on) or `open` (must exist)."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config

    @classmethod
    def start(cls, path: Path, config: Config) -> RunDirectory:
        """Create a run directory, go on with one of the same configuration, or take over one without work.

        Raises:
            RunError: The directory holds something else, another configuration, or cannot be written.
        """
        with reported(path):
            path.mkdir(parents=True, exist_ok=True)
            there = {entry.name for entry in path.iterdir()}
        if _CONFIG in there:
            directory = cls.open(path)
            # A configuration that a person wrote may hold comments.
            is_ours = (path / _CONFIG).read_text(encoding="utf-8") == _replayable(directory.config)
            if there - _NOBODYS or not is_ours:
                directory._require_same(config)
                return directory
        elif strangers := sorted(name for name in there if not name.startswith(".")):
            raise RunError(
                f"{path} is no run directory (it holds {strangers[0]}); choose a new or empty one."
            )
        directory = cls(path, config)
        with directory.locked():
            write_text(path / _CONFIG, _replayable(config))
        return directory

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run directory.

        Raises:
            RunError: There is no run in `path`.
            ConfigError: Its configuration is broken.
        """
        if not (path / _CONFIG).is_file():
            raise RunError(
                f"{path} is no run directory (it has no {_CONFIG}); make one with: rasa-moe run --out {path}"
            )
        return cls(path, load_config(path / _CONFIG))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working in this directory; a kill releases it as well.

        Raises:
            RunError: Another process is at work here.
        """
        lock = FileLock(self.path / _LOCK, timeout=0)
        with reported(self.path / _LOCK):
            try:
                lock.acquire()
            except Timeout as error:
                raise RunError(
                    f"Another process is working in {self.path}; wait for it, or give another --out."
                ) from error
        try:
            yield
        finally:
            lock.release()

    def record_environment(self, environment: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Write `environment.json`; when going on elsewhere, append what changed.

        Returns:
            The facts that differ from those the run was last worked on with, each as [before, now].
        """
        file = self.path / _ENVIRONMENT
        if not file.exists():
            write_json(file, dict(environment))
            return {}
        recorded = _read_json(file)
        latest, steps = dict(recorded), recorded.get("resumed", [])
        for step in steps:
            latest |= {key: now for key, (_, now) in step["changed"].items()}
        changed = changed_facts(latest, dict(environment))
        if changed:
            steps = [*steps, {"started": environment["started"], "changed": changed}]
            write_json(file, {**recorded, "resumed": steps})
        return changed

    def marks(self) -> dict[str, StageMark]:
        """Return the marks of the finished stages, in the order they finished.

        Raises:
            RunError: The state file cannot be understood.
        """
        file = self.path / _STATE
        if not file.exists():
            return {}
        state = _read_json(file)
        if state.get("format") != _FORMAT:
            raise RunError(
                f"{file} was written by another version of rasa-moe; use that version or a new directory."
            )
        return {name: StageMark(**mark) for name, mark in state["stages"].items()}

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every file that a finished stage vouches for, by relative path."""
        return {
            path: digest for mark in self.marks().values() for path, digest in sorted(mark.outputs.items())
        }

    def missing(self, names: Iterable[str]) -> str:
        """Return the first input that is not there, or an empty string."""
        return next((name for name in names if not self._files_of(name)), "")

    def input_hashes(self, names: Iterable[str]) -> dict[str, str]:
        """Return the SHA-256 of the inputs that are there; a name ending in "/" is all files below it."""
        files = [file for name in names for file in self._files_of(name)]
        return {file.relative_to(self.path).as_posix(): sha256_file(file) for file in files}

    def reason_to_run(self, stage: str, *, inputs: Mapping[str, str]) -> str:
        """Return why a stage has to run, or an empty string if its mark still holds for these inputs."""
        mark = self.marks().get(stage)
        if mark is None:
            return "not done yet"
        changed = [name for name in {**mark.inputs, **inputs} if mark.inputs.get(name) != inputs.get(name)]
        if changed:
            return f"{changed[0]} has changed"
        for name, digest in mark.outputs.items():
            file = self.path / name
            if not file.is_file():
                return f"{name} is missing"
            if sha256_file(file) != digest:
                return f"{name} was altered"
        return ""

    @contextmanager
    def staging(self, stage: str) -> Iterator[Path]:
        """Give a stage an empty folder to write into; it is gone afterwards, whatever happens."""
        folder = self.path / _STAGING / stage
        with reported(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(self.path / _STAGING, ignore_errors=True)

    def checkpoints(self, stage: str, *, inputs: Mapping[str, str]) -> Path:
        """Return the folder where a stage keeps unfinished work; work on other inputs is dropped."""
        folder = self.path / _CHECKPOINTS / f"{stage}-{sha256_json(dict(inputs))[:16]}"
        for other in folder.parent.glob(f"{stage}-*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        with reported(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, stage: str, *, inputs: Mapping[str, str], elapsed_seconds: float) -> StageMark:
        """Move what a stage wrote into place and set its mark.

        Raises:
            RunError: The disk is full or the directory cannot be written; the stage then counts as not done.
        """
        folder, marks = self.path / _STAGING / stage, self.marks()
        names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        outputs = {name: sha256_file(folder / name) for name in names}
        earlier = marks.pop(stage, None)
        if earlier is not None:
            # The mark goes first: a kill in between then leaves a stage that is not done, never a false mark.
            self._write_marks(marks)
            self._clear(earlier, keep=outputs)
        for name in names:
            move_into_place(folder / name, self.path / name)
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        marks[stage] = StageMark(dict(inputs), outputs, round(elapsed_seconds, 3), finished)
        self._write_marks(marks)
        self.drop_checkpoints(stage)
        return marks[stage]

    def drop_checkpoints(self, stage: str) -> None:
        """Delete the unfinished work of a stage whose results are written."""
        for folder in (self.path / _CHECKPOINTS).glob(f"{stage}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _clear(self, earlier: StageMark, *, keep: Mapping[str, str]) -> None:
        """Remove what an earlier pass wrote and this one did not; set aside what someone edited since."""
        for name, digest in earlier.outputs.items():
            file = self.path / name
            if not file.is_file():
                continue
            if sha256_file(file) != digest:
                move_into_place(file, self.path / _SET_ASIDE / name)
            elif name not in keep:
                file.unlink()
            self._remove_empty(file.parent)

    def _remove_empty(self, folder: Path) -> None:
        """Remove a folder of a stage that holds nothing any more: where it stands, it counts as written."""
        while folder != self.path and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent

    def _write_marks(self, marks: Mapping[str, StageMark]) -> None:
        write_json(
            self.path / _STATE,
            {"format": _FORMAT, "stages": {name: asdict(mark) for name, mark in marks.items()}},
        )

    def _require_same(self, config: Config) -> None:
        different = differences(self.config, config)
        if different:
            listing = "; ".join(
                f"{key} is {was!r} there and {now!r} here" for key, (was, now) in different.items()
            )
            raise RunError(
                f"{self.path} belongs to a run of another configuration ({listing}); give another --out."
            )

    def _files_of(self, name: str) -> list[Path]:
        """Return the file of that name, or all visible files below a name that ends in "/"."""
        if not name.endswith("/"):
            return [self.path / name] if (self.path / name).is_file() else []
        below = sorted((self.path / name).rglob("*"))
        return [file for file in below if file.is_file() and not file.name.startswith(".")]


def evaluated_files(path: Path) -> list[Path]:
    """Return the files of a run with what its models answered in the evaluation, one a model.

    What `collect` asked of the base model lies beside them: it is judged already, and decides nothing more.
    """
    return sorted(file for file in (path / "generations").glob("*.jsonl") if file.stem != "collect")


def new_run_path(model: str, *, root: Path) -> Path:
    """Create and return `root/<model>-<n>` with the first free number."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip("-.") or "run"
    with reported(root):
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = root / f"{name}-{number}"
            try:
                path.mkdir()
                return path
            except FileExistsError:
                number += 1


def _replayable(config: Config) -> str:
    return config_text(config, title=f"Replay this run: rasa-moe run {_CONFIG} --out NEW_DIR")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file} cannot be read ({error}); delete it to have the stages done again."
        ) from error
    if not isinstance(value, dict):
        raise RunError(f"{file} should hold a JSON object; delete it to have the stages done again.")
    return value
