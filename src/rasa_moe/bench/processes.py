"""Run a contender in a process of its own, because peak memory is a process' peak."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from rasa_moe.errors import RunError


def in_process(module: str, argument: Any, *, name: str) -> dict[str, Any]:
    """Return what `python -m module ARGUMENT` prints last, a JSON object; the argument is given as JSON.

    Raises:
        RunError: The process, of the contender `name`, ended without a result.
    """
    command = [sys.executable, "-m", module, json.dumps(argument)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["killed, probably for memory"])[-1]
        raise RunError(f"The contender '{name}' ended without a result ({last}).")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
