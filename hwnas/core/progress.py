"""How long work tells that it goes on. The library reports; the caller chooses what is drawn."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, steps: float = 1, note: str = "") -> None:
        """Report that steps were done; `note` replaces the last note where it is not empty."""
        ...


class Progress(Protocol):
    """Where tasks report to."""

    def task(self, name: str, total: float, *, done: float = 0) -> AbstractContextManager[Task]:
        """Begin a task of `total` steps, of which `done` were done by an earlier run."""
        ...

    def say(self, message: str) -> None:
        """Tell one line that is worth keeping."""
        ...


class _SilentTask:
    def advance(self, steps: float = 1, note: str = "") -> None:
        pass


class _Silent:
    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[Task]:
        yield _SilentTask()

    def say(self, message: str) -> None:
        pass


SILENT: Progress = _Silent()
