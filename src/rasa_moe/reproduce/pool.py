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
from typing import Self

from rasa_moe.errors import RunError
from rasa_moe.progress import Progress, no_progress

Task = Callable[[], None]


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Processes that do tasks side by side, started with the first task and kept until the context ends.

    They keep the models that they have loaded, and what trainings have read of them.

    Args:
        workers: Processes, one thread each; 1 works in this one.
        progress: Called as tasks end.
    """

    def __init__(self, workers: int, *, progress: Progress = no_progress) -> None:
        self.workers = workers
        self._progress = progress
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def do_all(self, tasks: Sequence[Task], *, label: str) -> None:
        """Run every task; each writes its own result.

        Args:
            tasks: Picklable calls without arguments or results.
            label: Names the step in progress.

        Raises:
            RunError: A worker died.
            Exception: Whatever a task raised.
        """
        if not tasks:
            return
        progress = partial(self._progress, label)
        progress(0, len(tasks))
        if self.workers == 1:
            _one_thread()
            for done, task in enumerate(tasks, start=1):
                task()
                progress(done, len(tasks))
            return
        try:
            _follow([self._started().submit(task) for task in tasks], progress)
        except BrokenProcessPool as error:
            raise RunError(
                "A worker process ended before its work was done (out of memory?); give the same command "
                "again, with fewer --workers: finished cells are kept."
            ) from error

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.workers, mp_context=get_context("spawn"), initializer=_start_worker
            )
        return self._executor


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
