"""How long work takes, over all of its pieces, and when attacks are to stop.

Work reports its steps to `Progress`; what it spends is counted there, so that no stage knows of it.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, final

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from hwnas.core.progress import Progress, Task

_KEPT_EVERY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a piece of work has taken, in all of its runs.

    Attributes:
        wall_s: Wall time, in seconds.
        epochs_s: Wall time within its epochs.
        epochs: Epochs within that time, with those that were cut short and run again.
    """

    wall_s: float = 0.0
    epochs_s: float = 0.0
    epochs: float = 0.0


def spent_of(path: Path) -> Spent:
    """Read what work has taken so far; nothing where it has not begun."""
    return read_json(path, Spent) if path.is_file() else Spent()


@final
class Watch:
    """Progress that counts time beside passing everything on.

    Args:
        progress: Where all is passed on to.
        path: File that the time is kept in, and was kept in by earlier runs. Written every few
            seconds, so that a killed run loses no more than these.
        training: Name of the task whose steps are epochs; empty for work without any.
        check: Called after every step; raises to stop the work.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        progress: Progress,
        path: Path,
        *,
        training: str = "",
        check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress, self._path = progress, path
        self._training, self._check, self._clock = training, check, clock
        self._before = spent_of(path)
        self._began = self._kept = clock()
        self._epochs_began: float | None = None
        self._epochs_s = self._epochs = 0.0

    @property
    def spent(self) -> Spent:
        """What the work has taken by now."""
        now = self._clock()
        running = now - self._epochs_began if self._epochs_began is not None else 0.0
        return Spent(
            wall_s=self._before.wall_s + now - self._began,
            epochs_s=self._before.epochs_s + self._epochs_s + running,
            epochs=self._before.epochs + self._epochs,
        )

    def keep(self) -> None:
        """Write what the work has taken by now."""
        self._kept = self._clock()
        write_atomically(self._path, encode_json(asdict(self.spent)))

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[_WatchedTask]:
        """Pass a task on, and count its time where its steps are epochs."""
        trains = name == self._training and self._epochs_began is None
        if trains:
            self._epochs_began = self._clock()
        try:
            with self._progress.task(name, total, done=done) as task:
                yield _WatchedTask(self, task, trains=trains)
        finally:
            if trains and self._epochs_began is not None:
                self._epochs_s += self._clock() - self._epochs_began
                self._epochs_began = None

    def say(self, message: str) -> None:
        """Pass a line on."""
        self._progress.say(message)

    def advanced(self, steps: float, *, trains: bool) -> None:
        """Count steps of a task."""
        if trains:
            self._epochs += steps
        if self._clock() - self._kept >= _KEPT_EVERY_S:
            self.keep()
        self._check()


@final
class _WatchedTask:
    def __init__(self, watch: Watch, task: Task, *, trains: bool) -> None:
        self._watch, self._task, self._trains = watch, task, trains

    def advance(self, steps: float = 1, note: str = "") -> None:
        self._task.advance(steps, note)
        self._watch.advanced(steps, trains=self._trains)
