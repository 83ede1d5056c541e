"""Hashes of everything that decides a piece of work, which is done again when one changes."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rasa_moe.errors import RunError
from rasa_moe.files import sha256_file, sha256_json, write_json

if TYPE_CHECKING:
    from rasa_moe.session import Session

_TESTBED = "testbed"
# Hashes of files beyond this size are remembered: reading a large model again would cost minutes.
_REMEMBERED_BYTES = 64 << 20
_REMEMBERED = ".hashes.json"


def fingerprints(session: Session, files: tuple[str, ...], *, sources: tuple[str, ...]) -> dict[str, str]:
    """Return the hashes of settings, of what lies outside the run directory, and of files in it.

    Args:
        session: The run.
        files: Files of its directory; a name ending in "/" is all files below it.
        sources: "model", "rows", or both.
    """
    from rasa_moe.judges.registry import prompt_file

    wording = prompt_file(session.config.data.judge)
    return {
        # Stages that are done stay done when a run goes on with another sharding.
        "configuration": sha256_json(session.config.model_dump(exclude={"distributed"})),
        **({} if wording is None else {"prompt of the judge": sha256_file(wording)}),
        **source_hashes(session, sources),
        **session.directory.input_hashes(files),
    }


def source_hashes(session: Session, names: tuple[str, ...]) -> dict[str, str]:
    """Return the hashes of "model" and "rows", which lie outside the run directory."""
    makers = {"model": _model_hash, "rows": _rows_hash}
    return {name: makers[name](session) for name in names}


def _model_hash(session: Session) -> str:
    name = session.config.model
    if name.startswith(f"{_TESTBED}/"):
        from rasa_moe.testbed import model_path

        return _folder_hash(session, model_path(name.removeprefix(f"{_TESTBED}/")))
    if Path(name).is_dir():
        return _folder_hash(session, Path(name))
    return sha256_json([name, session.config.revision])


def _rows_hash(session: Session) -> str:
    source = session.source
    return sha256_json([[repr(row) for row in source.rows], sorted(source.family_splits.items())])


def _folder_hash(session: Session, folder: Path) -> str:
    """Return one hash for the content of all files of a model folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return sha256_json([[file.relative_to(folder).as_posix(), _file_hash(session, file)] for file in files])


def _file_hash(session: Session, file: Path) -> str:
    """Return a file's SHA-256; a large one is read once, until its size or time of change differs."""
    status = file.stat()
    if status.st_size <= _REMEMBERED_BYTES:
        return sha256_file(file)
    record, name = session.path / _REMEMBERED, str(file.resolve())
    facts = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    try:
        known = dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}  # not there yet, or damaged: the files are there to be read again
    entry = known.get(name)
    if not isinstance(entry, dict) or {**entry, **facts} != entry or "sha256" not in entry:
        session.progress(f"hash {file.name}", 0, 1)
        known[name] = entry = {**facts, "sha256": sha256_file(file)}
        with suppress(RunError):  # a directory that is only read is hashed again each time
            write_json(record, known)
        session.progress(f"hash {file.name}", 1, 1)
    return str(entry["sha256"])
