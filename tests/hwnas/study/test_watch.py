from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hwnas.core.progress import SILENT
from hwnas.study.watch import Spent, Watch, spent_of

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_within_epochs_is_told_from_the_rest(tmp_path: Path) -> None:
    clock = Clock()
    watch = Watch(SILENT, tmp_path / "t.json", training="train", clock=clock)
    clock.now = 3.0  # loading
    with watch.task("train", 4, done=1) as task:
        for _ in range(8):
            clock.now += 1.0
            task.advance(0.25)
        task.advance(0, "loss 1")
    with watch.task("attack", 10) as task:
        clock.now += 5.0
        task.advance(10)
    assert watch.spent == Spent(wall_s=16.0, epochs_s=8.0, epochs=2.0)


def test_time_adds_up_over_runs(tmp_path: Path) -> None:
    for _ in range(2):
        clock = Clock()
        watch = Watch(SILENT, tmp_path / "t.json", training="train", clock=clock)
        with watch.task("train", 4) as task:
            clock.now = 2.0
            task.advance(1)
        watch.keep()
    assert spent_of(tmp_path / "t.json") == Spent(wall_s=4.0, epochs_s=4.0, epochs=2.0)


def test_a_killed_run_loses_a_few_seconds_at_most(tmp_path: Path) -> None:
    clock = Clock()
    watch = Watch(SILENT, tmp_path / "t.json", training="train", clock=clock)
    with watch.task("train", 9) as task:
        for _ in range(4):
            clock.now += 2.0
            task.advance(1)
        # Nothing is kept at the end: the run is killed here.
        assert spent_of(tmp_path / "t.json") == Spent(wall_s=6.0, epochs_s=6.0, epochs=3.0)


def test_the_check_is_asked_at_every_step_and_may_stop_the_work(tmp_path: Path) -> None:
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt

    watch = Watch(SILENT, tmp_path / "t.json", check=check)
    with watch.task("attack", 9) as task:
        task.advance()
        task.advance()
        with pytest.raises(KeyboardInterrupt):
            task.advance()
    assert len(asked) == 3


def test_what_has_not_begun_has_taken_nothing(tmp_path: Path) -> None:
    assert spent_of(tmp_path / "none.json") == Spent()
