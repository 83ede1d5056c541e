"""Keep what took long or was paid for in the run directory, result by result, so that a kill loses one."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from rasa_moe.errors import RunError
from rasa_moe.files import reported


class Kept:
    """Look up and append results in a JSONL file; safe for several threads, and for a kill in between.

    Every line holds a key (a hash of everything that decides the result) and the result.

    Args:
        file: Made with the first result; None keeps results in memory only.

    Raises:
        RunError: The file cannot be read.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Any]] = {}
        if file is not None and file.is_file():
            self._known = _read(file)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the result of a key, or None."""
        with self._lock:
            return self._known.get(key)

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Keep a result.

        Raises:
            RunError: The disk is full or the file cannot be written.
        """
        with self._lock:
            if self._file is not None:
                with reported(self._file):
                    self._file.parent.mkdir(parents=True, exist_ok=True)
                    with open(self._file, "a", encoding="utf-8") as file:
                        file.write(json.dumps({"key": key, **value}) + "\n")
            self._known[key] = value


def _read(file: Path) -> dict[str, dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {}
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"{file} cannot be read ({error.strerror or error}).") from error
    *whole, rest = lines
    if rest:
        # A kill in the middle of a line: its result is made again, and the next one must not be glued to it.
        with reported(file), open(file, "r+b") as opened:
            opened.truncate(len(b"\n".join(whole)) + bool(whole))
    for number, line in enumerate(whole, start=1):
        try:
            entry = json.loads(line)
            known[entry.pop("key")] = entry
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise RunError(
                f"{file}, line {number} is damaged ({error}); delete the line or the file."
            ) from error
    return known
