"""The command line on several processes: the first speaks, the others keep quiet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rasa_moe.cli.console import err, out


def is_under_torchrun() -> bool:
    """Tell whether torchrun started this process beside others."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started, if it did; without it torch need not be imported."""
    if not is_under_torchrun():
        yield
        return
    from rasa_moe.distributed import joined

    with joined() as world:
        out.quiet = err.quiet = not world.is_first
        yield


def first_says(work: Callable[[], str]) -> str:
    """Let the first process do something and tell the others the result."""
    if not is_under_torchrun():
        return work()
    from rasa_moe.distributed import current

    return current().once(work)
