"""Do cells side by side, one thread each; a finished cell is on the disk and survives any interruption."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import (
    FIRST_EXCEPTION,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process

from rasa_moe.errors import RunError
from rasa_moe.progress import Progress

Task = Callable[[], None]


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def do_all(tasks: Sequence[Task], *, workers: int, label: str, progress: Progress) -> None:
    """Run every task; each writes its own result.

    Args:
        tasks: Picklable calls without arguments or results.
        workers: Processes; 1 works in this one.
        label: Names the step in progress.
        progress: Called as tasks end.

    Raises:
        RunError: A worker died.
        Exception: Whatever a task raised.
    """
    if not tasks:
        return
    progress(label, 0, len(tasks))
    if workers == 1:
        _one_thread()
        for done, task in enumerate(tasks, start=1):
            task()
            progress(label, done, len(tasks))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            _follow(futures, partial(progress, label))
        except BrokenProcessPool as error:
            raise RunError(
                "A worker process ended before its work was done (out of memory?); give the same command "
                "again, with fewer --workers: finished cells are kept."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _follow(futures: list[Future[None]], progress: Callable[[int, int], None]) -> None:
    for done, future in enumerate(as_completed(futures), start=1):
        future.result()
        progress(done, len(futures))
    wait(futures, return_when=FIRST_EXCEPTION)


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group: workers then end at once, without a traceback each.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _one_thread()
    from transformers.utils import logging

    logging.disable_progress_bar()


def _end_with_parent() -> None:
    """End this worker once the process that started it is gone: killed, it can't tell its workers."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _one_thread() -> None:
    """Compute with one thread: the same bits whatever the number of workers, and no fight over cores."""
    import torch

    torch.set_num_threads(1)
