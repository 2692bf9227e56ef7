"""Work in pieces: a time after which long work stops at its next checkpoint, to be gone on with.

The limit holds for all that runs within it, however deep, as a deadline does; a stage needs no
parameter for it. Without one, nothing is ever stopped.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, final

from hwnas.core.errors import UnfinishedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS_PER_MINUTE = 60.0


@final
class TimeLimit:
    """How long there is from now on.

    Args:
        minutes: How long.
        clock: Seconds, monotonic.
    """

    def __init__(self, minutes: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.minutes = minutes
        self._clock = clock
        self._end = clock() + minutes * SECONDS_PER_MINUTE

    @property
    def left_s(self) -> float:
        """Seconds that are left; negative once the time is over."""
        return self._end - self._clock()


_limit: ContextVar[TimeLimit | None] = ContextVar("hwnas time limit", default=None)


@contextmanager
def limited_to(limit: TimeLimit | None) -> Iterator[None]:
    """Hold a limit for the work within; None lifts one."""
    token = _limit.set(limit)
    try:
        yield
    finally:
        _limit.reset(token)


def stop_if_time_is_up(name: str, *, next_s: float = 0.0) -> None:
    """Stop where the time is over, or would be before the next step is done.

    To be called where all that was done is kept.

    Args:
        name: What is stopped.
        next_s: How long the next step will take, in seconds.

    Raises:
        UnfinishedError: It is to stop.
    """
    limit = _limit.get()
    if limit is not None and limit.left_s <= next_s:
        raise UnfinishedError(
            f"{name} stopped at a checkpoint, as its {limit.minutes:g} minutes are over",
            hint="run the same command again: it goes on from there",
        )
