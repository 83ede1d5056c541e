"""Progress with the time left: bars on a terminal, now and then a line in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from rasa_moe.cli.console import err, plain
from rasa_moe.run import StageEvent

_LOG_SECONDS = 15.0


class Bars:
    """Show progress on a console; call it as a `Progress`, and use it as a context manager."""

    def __init__(self, console: Console = err) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._label = ""
        self._started = self._logged = 0.0

    def __enter__(self) -> Bars:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def __call__(self, label: str, done: int, total: int) -> None:
        """Show that `done` of `total` units of the step `label` are finished."""
        if label != self._label or (done == 0 and self._task is not None):
            self._begin(label, total)
        if self._console.is_terminal:
            assert self._task is not None
            self._bars.update(self._task, completed=done, total=total or None)
        else:
            self._log(done, total)

    def on_event(self, event: StageEvent) -> None:
        """Print a line when a stage starts, is done, or is kept."""
        lines = {
            "start": f"{event.stage}: started ({event.reason})",
            "done": f"{event.stage}: done in {duration(event.elapsed_seconds)}",
            "kept": f"{event.stage}: kept, nothing it depends on has changed",
        }
        self._drop()
        self._console.print(plain(lines[event.state]))

    def _begin(self, label: str, total: int) -> None:
        self._drop()
        self._label, self._started, self._logged = label, time.monotonic(), time.monotonic()
        self._task = self._bars.add_task(plain(label).plain, total=total or None)

    def _drop(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task, self._label = None, ""

    def _log(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._logged < _LOG_SECONDS or not 0 < done < total:
            return
        self._logged = now
        left = (now - self._started) / done * (total - done)
        self._console.print(plain(f"  {self._label} {done}/{total}, {duration(left)} left"))


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 3.2 s, 4 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
