"""Progress is an injected callback: library functions never print."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (label, done, total) after every unit of a long step."""


def no_progress(label: str, done: int, total: int) -> None:
    """Ignore progress; the default of every library function."""
