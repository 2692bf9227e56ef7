"""Progress: sparse lines off a terminal, bars that leave one line on one, and honest time left."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest
import rich.console
import rich.progress

from hwnas.cli.progress import BarProgress, PlainProgress, duration, open_progress

if TYPE_CHECKING:
    from hwnas.core.progress import Progress


class Clock:
    """Seconds that pass only when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_lines_come_at_the_start_now_and_then_and_at_the_end(clock: Clock) -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, clock=clock)
    with progress.task("profile", total=100) as task:
        for _ in range(100):
            clock.now += 0.25
            task.advance(note="mbconv")
    assert stream.getvalue().splitlines() == [
        "profile: 100 to do",
        "profile: 40/100, 15 s left, mbconv",
        "profile: 80/100, 5.0 s left, mbconv",
        "profile: done in 25 s",
    ]


def test_time_left_goes_by_the_steps_of_this_run(clock: Clock) -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, clock=clock)
    with progress.task("search", total=100, done=90) as task:
        clock.now += 10
        task.advance()
    assert stream.getvalue().splitlines()[:2] == [
        "search: 100 to do, going on from 90",
        "search: 91/100, 1 min 30 s left",
    ]


def test_no_time_left_is_invented_before_the_first_step(clock: Clock) -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, clock=clock)
    with progress.task("search", total=2) as task:
        clock.now += 10
        task.advance(0, note="warming up")
    assert "search: 0/2, warming up" in stream.getvalue().splitlines()


def test_a_task_that_fails_is_not_said_to_be_done(clock: Clock) -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, clock=clock)
    with pytest.raises(ValueError, match="broken"), progress.task("search", total=2):
        raise ValueError("broken")
    assert "done" not in stream.getvalue()


def test_deep_tasks_are_silent_unless_slow(clock: Clock) -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, clock=clock)
    with (
        progress.task("run", total=1),
        progress.task("search", total=1),
        progress.task("epoch", total=4) as task,
    ):
        task.advance()
        clock.now += 11
        task.advance()
    said = [line for line in stream.getvalue().splitlines() if line.startswith("epoch")]
    assert said == ["epoch: 2/4, 11 s left"]


def test_bars_leave_one_line_per_finished_task(clock: Clock) -> None:
    stream = Terminal()
    bars = rich.progress.Progress(
        rich.progress.TextColumn("{task.description} {task.fields[note]}", markup=False),
        console=rich.console.Console(file=stream, width=80, force_terminal=True),
        auto_refresh=False,
        transient=True,
    )
    with bars:
        progress = BarProgress(bars, clock=clock)
        with progress.task("profile [k3]", total=4, done=1) as task:
            task.advance(2, note="half")
            assert bars.tasks[0].completed == 3
            assert bars.tasks[0].fields["note"] == "half"
            clock.now += 3
            task.advance(0)
        progress.say("a line [worth] keeping")
        assert not bars.tasks
    assert "profile [k3] half" in stream.getvalue()
    assert "profile [k3]: done in 3.0 s" in stream.getvalue()
    assert "a line [worth] keeping" in stream.getvalue()


def test_a_terminal_gets_bars_and_all_else_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def used() -> Progress:
        with open_progress() as progress:
            with progress.task("x", total=1) as task:
                task.advance()
            return progress

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(used(), BarProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(used(), PlainProgress)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(used(), PlainProgress)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59.7, "1 min 00 s"), (3599.6, "1 h 00 min"), (90_000, "25 h 00 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
