"""Doing a study's work: what can be done is, an arm that fails lets the others go on."""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING, final

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json, read_json
from hwnas.core.errors import HwnasError, UnfinishedError
from hwnas.core.progress import SILENT
from hwnas.core.time_limit import stop_if_time_is_up
from hwnas.study.watch import Watch
from hwnas.study.work import WorkFailure, in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hwnas.core.progress import Progress
    from hwnas.study.claims import Claims
    from hwnas.study.work import Work

_log = logging.getLogger(__name__)

POLL_S = 1.0
"""How long a process waits before it looks again what others have done."""


@final
class Schedule:
    """The work of a study, done by this process and others that share its folder.

    Args:
        works: What is to be done, the first first; what it needs is done before it.
        claims: Who does what.
        progress: Where to report.
        sleep: Waits for so many seconds.

    Attributes:
        failed: Why work could not be done, by its key: its own failure, or that of what it needs.
            Work that failed in an earlier run is tried again.
        began: Whether this process has begun any work in this run. Until then no time limit stops
            it, so that every run gets further, however short.
    """

    def __init__(
        self,
        works: Iterable[Work],
        claims: Claims,
        *,
        progress: Progress = SILENT,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._order = in_order(works)
        self._claims, self._progress, self._sleep = claims, progress, sleep
        self._done: set[str] = set()
        self._told: dict[str, WorkFailure | None] = {
            work.key: _recorded(work) for work in self._order
        }
        self.failed: dict[str, WorkFailure] = {}
        self.began = False

    def run(self, after: Callable[[], None] = lambda: None) -> None:
        """Do all work that can be done, and wait for what others do of it.

        Args:
            after: Called after each piece of work.

        Raises:
            UnfinishedError: The time limit that holds is over; all that was done is kept.
        """
        said = False
        while True:
            pending = self._pending()
            if not pending:
                return
            if self.began or said:
                stop_if_time_is_up("the study")
            if any(self._tried(work) for work in pending):
                after()
                said = False
                continue
            if not said:
                self._progress.say("study: waiting for work that other processes do")
                said = True
            self._sleep(POLL_S)

    def is_done(self, work: Work) -> bool:
        """Say whether work is done, by whomever."""
        if work.key not in self._done and work.done():
            self._done.add(work.key)
        return work.key in self._done

    def _pending(self) -> list[Work]:
        """Return what may be begun, or is under way elsewhere; settle what failed."""
        for work in self._order:
            if work.key in self.failed or self.is_done(work):
                continue
            cause = next((self.failed[n.key] for n in work.needs if n.key in self.failed), None)
            told = _recorded(work)
            if cause is None and told != self._told[work.key]:
                cause = told  # by another process, in this run
            if cause is not None:
                self.failed[work.key] = cause
        left = [w for w in self._order if w.key not in self.failed and w.key not in self._done]
        return [work for work in left if all(need.key in self._done for need in work.needs)]

    def _tried(self, work: Work) -> bool:
        """Do work unless another process has claimed it; say whether there is news of it."""
        with self._claims.claim(work.key) as is_ours:
            if not is_ours:
                return False
            if work.done():  # by another process, since we looked
                return True
            number = sum(self.is_done(each) for each in self._order) + 1
            self._progress.say(f"study: {number} of {len(self._order)}: {work.key}")
            self.began = True
            self._make(work)
        return True

    def _make(self, work: Work) -> None:
        check = _Stopper(work) if work.attacks else _never
        watch = Watch(self._progress, work.spent_path, training=work.training, check=check)
        try:
            work.make(watch)
        except UnfinishedError:
            raise
        except Exception as error:  # one arm's failure is no other's
            _log.debug("%s failed", work.key, exc_info=True)
            failure = _failure_from(work, error)
            self.failed[work.key] = failure
            write_atomically(work.failure_path, encode_json(failure, indent=2))
            self._progress.say(f"study: {work.key} failed: {failure.message}")
        else:
            work.failure_path.unlink(missing_ok=True)
        finally:
            watch.keep()


def _never() -> None:
    pass


@final
class _Stopper:
    """Stops work whose parts are kept one by one, but not before one more part is kept.

    So a time limit shorter than a part does not keep work from ever ending.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._parts = self._count()

    def __call__(self) -> None:
        try:
            stop_if_time_is_up(self._work.stage)
        except UnfinishedError:
            if self._count() != self._parts:
                raise

    def _count(self) -> list[tuple[str, int]]:
        """Return what is kept so far: every file of the state with its size."""
        folder = self._work.path.with_name(f"{self._work.key}.state")
        return sorted(
            (file.name, file.stat().st_size)
            for file in folder.rglob("*")
            if file.is_file() and not file.name.startswith(".")
        )


def _recorded(work: Work) -> WorkFailure | None:
    """Return the failure that is recorded of work; None of none, or of one being replaced."""
    try:
        return read_json(work.failure_path, WorkFailure)
    except HwnasError:
        return None


def _failure_from(work: Work, error: Exception) -> WorkFailure:
    message, hint = f"unexpected {type(error).__name__}: {error}", "--debug logs the trace"
    if isinstance(error, HwnasError):
        message, hint = error.message, error.hint
    return WorkFailure(stage=work.stage, message=message, hint=hint, attempt=secrets.token_hex(6))
