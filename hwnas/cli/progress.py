"""Progress on stderr: bars with the time left on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from hwnas.core.progress import Progress

INTERVAL_S = 10.0
REFRESH_S = 0.2
OUTER = 2
"""Tasks nested deeper than this open and close without a line of their own."""


@contextmanager
def open_progress() -> Iterator[Progress]:
    """Yield the progress that suits stderr, and clear its bars at the end."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield PlainProgress(sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    with Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.4g}/{task.total:.4g}", markup=False),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False, style="dim"),
        console=Console(stderr=True),
        redirect_stdout=False,  # stdout is sent to stderr already, and comes back for the result
        auto_refresh=False,  # a thread that draws would disturb what is being timed
        transient=True,
    ) as bars:
        yield BarProgress(bars)


class BarProgress:
    """Progress as bars that rich draws; a finished task leaves one line.

    Args:
        bars: A started rich progress with a field `note`.
        clock: Seconds, monotonic.
    """

    def __init__(self, bars: Bars, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._bars = bars
        self._clock = clock
        self._drawn = clock()
        self._depth = 0

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[BarTask]:
        """Show a bar until the task ends."""
        started = self._clock()
        task = self._bars.add_task(name, total=total, completed=done, note="")  # type: ignore[arg-type]
        self._bars.refresh()
        self._depth += 1
        try:
            yield BarTask(self, task)
            if self._depth <= OUTER:
                self.say(f"{name}: done in {duration(self._clock() - started)}")
        finally:
            self._depth -= 1
            self._bars.remove_task(task)
            self._bars.refresh()

    def advance(self, task: TaskID, steps: float, note: str) -> None:
        """Move a bar, and draw unless that was done a moment ago."""
        self._bars.advance(task, steps)
        if note:
            self._bars.update(task, note=note)
        if self._clock() - self._drawn >= REFRESH_S:
            self._bars.refresh()
            self._drawn = self._clock()

    def say(self, message: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(message, markup=False, highlight=False, soft_wrap=True)


class BarTask:
    """One bar."""

    def __init__(self, progress: BarProgress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, steps: float = 1, note: str = "") -> None:
        """Move the bar."""
        self._progress.advance(self._task, steps, note)


class PlainProgress:
    """Progress as plain lines: at the start, every ten seconds or so, and at the end.

    Args:
        stream: Where lines go.
        clock: Seconds, monotonic.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self.clock = clock
        self._said = clock()
        self._depth = 0

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[PlainTask]:
        """Say that a task begins and, later, that it has ended."""
        self._depth += 1
        outer = self._depth <= OUTER
        task = PlainTask(self, name, total, done)
        if outer:
            resumed = f", going on from {done:.6g}" if done else ""
            self.say(f"{name}: {total:.6g} to do{resumed}")
        try:
            yield task
            if outer:
                self.say(f"{name}: done in {duration(self.clock() - task.started)}")
        finally:
            self._depth -= 1

    def say(self, message: str) -> None:
        """Print a line."""
        self._said = self.clock()
        print(message, file=self._stream, flush=True)

    def say_if_due(self, message: Callable[[], str]) -> None:
        """Print a line unless one was printed a moment ago."""
        if self.clock() - self._said >= INTERVAL_S:
            self.say(message())


class PlainTask:
    """One task that reports in lines."""

    def __init__(self, progress: PlainProgress, name: str, total: float, done: float) -> None:
        self.started = progress.clock()
        self._progress = progress
        self._name = name
        self._total = total
        self._first = done
        self._done = done
        self._note = ""

    def advance(self, steps: float = 1, note: str = "") -> None:
        """Count, and tell it now and then."""
        self._done += steps
        self._note = note or self._note
        self._progress.say_if_due(self._line)

    def _line(self) -> str:
        """Return where the task is; the time left goes by this run's steps alone."""
        parts = [f"{self._name}: {self._done:.6g}/{self._total:.6g}"]
        steps = self._done - self._first
        if steps > 0:
            elapsed_s = self._progress.clock() - self.started
            left = elapsed_s / steps * max(self._total - self._done, 0)
            parts.append(f"{duration(left)} left")
        if self._note:
            parts.append(self._note)
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Say a time span.

    >>> duration(4.31), duration(75), duration(7320)
    ('4.3 s', '1 min 15 s', '2 h 02 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
