"""Write files so that a kill or a full disk leaves the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rasa_moe.errors import RunError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_HASH_BLOCK = 1 << 20


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one piece: a temporary file beside it, flushed to the disk, then renamed.

    Raises:
        RunError: The disk is full or the place cannot be written; an older file of that name is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with reported(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
        sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text in one piece; see `write_bytes`. Halves of characters become question marks."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON in one piece; see `write_bytes`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def move_into_place(source: Path, target: Path) -> None:
    """Move a finished file to where readers look for it, flushed to the disk first.

    Raises:
        RunError: The disk is full or the place cannot be written.
    """
    with reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Opened for writing because some systems refuse to flush a file opened for reading.
        with open(source, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(source, target)
        sync_directory(target.parent)


def sync_directory(directory: Path) -> None:
    """Flush the names in a directory to the disk, where the system offers that."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error means that there is no room left on the disk."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    # Libraries written in Rust or C++ (safetensors among them) say it in words only.
    return "No space left on device" in str(error)


def disk_full(path: Path) -> RunError:
    """Return the error for a full disk, said the same way wherever it is met."""
    return RunError(
        f"The disk that holds {path} is full; free some space and give the same command again: "
        "what was finished is kept."
    )


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write `path` into one sentence.

    Raises:
        RunError: Instead of the OSError.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(path) from error
        raise RunError(
            f"{path} cannot be written ({error.strerror or error}); choose another place."
        ) from error
