"""Where the command line writes, how it shows text from models, and how it ends when something fails."""

from __future__ import annotations

import gc
import importlib
import os
import shlex
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

# No markup and no highlighting: what a model wrote must not be able to format or hide anything.
out = Console(markup=False, highlight=False, soft_wrap=True)
err = Console(markup=False, highlight=False, soft_wrap=True, stderr=True)

_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co"})
_KEPT = frozenset("\n\t")
INTERRUPTED = 130


def plain(text: str) -> Text:
    """Return text from outside as it may be shown: no markup, no control or direction characters."""
    return Text("".join(letter for letter in text if letter in _KEPT or not _is_hidden(letter)))


def say(text: str) -> None:
    """Print one result line to the standard output."""
    out.print(plain(text))


def note(text: str) -> None:
    """Print one line about the work itself, to the standard error."""
    err.print(plain(text))


def command_line(*arguments: str | Path) -> str:
    """Return a command that the user can paste, started the way this process was."""
    start = ["rasa-moe"]
    if Path(sys.argv[0]).parts[-2:] == ("rasa_moe", "__main__.py"):
        start = [_short(sys.executable), "-m", "rasa_moe"]
    return shlex.join([*start, *(str(argument) for argument in arguments)])


@contextmanager
def resumable(*arguments: str | Path) -> Iterator[None]:
    """End with exit code 130 and the command to go on with when the user presses Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"Interrupted; finished stages are kept. Resume with: {command_line(*arguments)}")
        raise typer.Exit(INTERRUPTED) from None


def quiet_loading() -> None:
    """Import what works with models, and keep transformers' own bars from drawing over ours."""
    if "rasa_moe.moe" not in sys.modules:
        # Importing makes half a million objects that stay; looking for garbage among them, then and at every
        # later collection, took two fifths of the time that `doctor` needs.
        gc.disable()
        try:
            importlib.import_module("rasa_moe.moe")
            gc.freeze()
        finally:
            gc.enable()
    from transformers.utils import logging

    logging.disable_progress_bar()


def _is_hidden(letter: str) -> bool:
    return unicodedata.category(letter) in _HIDDEN_CATEGORIES


def _short(path: str) -> str:
    """Return a path relative to the working directory where that is shorter to read."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
