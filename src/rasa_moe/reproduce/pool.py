"""Do cells side by side, one thread each; a finished cell is on the disk and survives any interruption."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from typing import Self

from rasa_moe.errors import RunError
from rasa_moe.progress import Progress, no_progress

Task = Callable[[], None]
# Numbers of glibc's malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD (at its largest) -> bytes.
_MALLOC_OPTIONS = ((-1, 1 << 30), (-2, 1 << 26), (-3, 1 << 25))


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
        self._started: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._started:
            worker.process.shutdown(cancel_futures=True)
        self._started = []

    def do_all(self, tasks: Sequence[Task], *, label: str, groups: Sequence[Hashable] = ()) -> None:
        """Run every task; each writes its own result.

        Args:
            tasks: Picklable calls without arguments or results.
            label: Names the step in progress.
            groups: Of each task, what it reads before it begins: it goes to a worker that has read that, if
                one is free. Results do not depend on it.

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
            self._share_out(tasks, groups or [None] * len(tasks), progress)
        except BrokenProcessPool as error:
            raise RunError(
                "A worker process ended before its work was done (out of memory?); give the same command "
                "again, with fewer --workers: finished cells are kept."
            ) from error

    def _share_out(
        self, tasks: Sequence[Task], groups: Sequence[Hashable], progress: Callable[[int, int], None]
    ) -> None:
        if not self._started:
            self._started = [_Worker() for _ in range(self.workers)]
        waiting, idle = dict(enumerate(groups)), list(self._started)
        running: dict[Future[None], _Worker] = {}
        done = 0
        while waiting or running:
            while waiting and idle:
                worker = idle.pop(0)
                known = set[Hashable]().union(*(other.groups for other in self._started))
                number = next_task(waiting, own=worker.groups, known=known)
                worker.groups.add(waiting.pop(number))
                running[worker.process.submit(tasks[number])] = worker
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                idle.append(running.pop(future))
                future.result()
                done += 1
                progress(done, len(tasks))


def next_task(waiting: Mapping[int, Hashable], *, own: Set[Hashable], known: Set[Hashable]) -> int:
    """Choose a worker's next task: of a group that it knows, else of one that nobody knows, else the first.

    Args:
        waiting: Number of a task -> its group.
        own: Groups that the worker knows.
        known: Groups that any worker knows.
    """

    def cost(number: int) -> tuple[bool, bool, int]:
        group = waiting[number]
        return group not in own, group in known, number

    return min(waiting, key=cost)


class _Worker:
    """One process, and the groups of what it has done."""

    def __init__(self) -> None:
        self.process = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_start_worker)
        self.groups: set[Hashable] = set()


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group: workers then end at once, without a traceback each.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _one_thread()
    _keep_freed_memory()
    from transformers.utils import logging

    logging.disable_progress_bar()


def _end_with_parent() -> None:
    """End this worker once the process that started it is gone: killed, it can't tell its workers."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _keep_freed_memory() -> None:
    """Let this process keep what tensors give back, where the C library is glibc; elsewhere do nothing.

    Otherwise the kernel clears the same pages anew in every step, for some 4 % of a training's time on the
    built-in models.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, num_bytes in _MALLOC_OPTIONS:
        set_option(option, num_bytes)


def _one_thread() -> None:
    """Compute with one thread: the same bits whatever the number of workers, and no fight over cores."""
    import torch

    torch.set_num_threads(1)
