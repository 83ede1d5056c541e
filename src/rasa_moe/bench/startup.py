"""How long a command takes before it works."""

from __future__ import annotations

import subprocess
import sys
import time

from rasa_moe.bench.figures import Figure, Result, Spread

NAME = "startup"
_COMMANDS = ((("--help",), 0.4), (("doctor", "testbed/olmoe"), 6.0))


def bench(size: str) -> Result:
    """Measure seconds from start to end of two commands, and of an empty Python program."""
    repeats = 1 if size == "tiny" else 7
    figures = [
        Figure(
            bench=NAME,
            name=f"rasa-moe {' '.join(arguments)}",
            value=_seconds(["-m", "rasa_moe", *arguments], repeats=repeats),
            unit="s",
            target=limit,
        )
        for arguments, limit in _COMMANDS
    ]
    figures.append(
        Figure(bench=NAME, name="python -c pass", value=_seconds(["-c", "pass"], repeats=repeats), unit="s")
    )
    return Result(name=NAME, conditions=f"{repeats} starts after one unmeasured", figures=tuple(figures))


def _seconds(arguments: list[str], *, repeats: int) -> Spread:
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return Spread.of(seconds[1:])
