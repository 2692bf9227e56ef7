from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json, read_json
from hwnas.core.errors import BudgetError, UnfinishedError
from hwnas.core.time_limit import TimeLimit, limited_to
from hwnas.study.claims import Claims
from hwnas.study.schedule import Schedule
from hwnas.study.work import Work, WorkFailure, in_order, key_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hwnas.core.progress import Progress


class Bench:
    """Makes works that write a file, and keeps the order in which they did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[str] = []

    def work(
        self,
        name: str,
        *needs: Work,
        body: Callable[[Progress], None] = lambda progress: None,
        attacks: bool = False,
    ) -> Work:
        path = self.folder / name

        def make(progress: Progress) -> None:
            assert all(need.done() for need in needs)
            self.made.append(name)
            body(progress)
            path.write_text("made")

        return Work(
            stage=name, key=name, path=path, done=path.is_file, make=make, needs=needs,
            attacks=attacks,
        )  # fmt: skip

    def schedule(self, *works: Work, sleep: Callable[[float], None] | None = None) -> Schedule:
        def fail(seconds: float) -> None:
            raise AssertionError("one process alone waits for nobody")

        return Schedule(works, Claims(self.folder / "locks"), sleep=sleep or fail)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def failing(message: str) -> Callable[[Progress], None]:
    def body(progress: Progress) -> None:
        raise BudgetError(message, hint="raise it")

    return body


def test_shared_work_is_done_once_and_before_what_needs_it(bench: Bench) -> None:
    teacher = bench.work("teacher")
    first, second = bench.work("first", teacher), bench.work("second", teacher)
    schedule = bench.schedule(first, second)
    schedule.run()
    assert bench.made == ["teacher", "first", "second"]
    assert not schedule.failed
    bench.schedule(first, second).run()
    assert bench.made == ["teacher", "first", "second"]


def test_work_is_told_apart_by_its_key(bench: Bench) -> None:
    assert in_order([bench.work("a"), bench.work("a")])[0].key == "a"
    assert len(in_order([bench.work("a"), bench.work("a")])) == 1
    keys = {
        key_of("train", settings, needs)
        for settings, needs in itertools.product(({"x": 1}, {"x": 2}), ((), ("a",), ("b",)))
    }
    assert len(keys) == 6


def test_what_fails_lets_the_others_go_on_and_is_recorded(bench: Bench) -> None:
    search = bench.work("search", body=failing("too small"))
    train = bench.work("train", search)
    other = bench.work("other")
    schedule = bench.schedule(train, other)
    schedule.run()
    assert bench.made == ["search", "other"]
    assert schedule.failed["train"].message == "too small"
    assert schedule.failed["train"].stage == "search"
    assert schedule.failed["train"].hint == "raise it"
    assert read_json(search.failure_path, WorkFailure).message == "too small"


def test_a_bug_is_a_failure_of_its_arm_alone(bench: Bench) -> None:
    def body(progress: Progress) -> None:
        raise ZeroDivisionError("by zero")

    schedule = bench.schedule(bench.work("a", body=body), bench.work("b"))
    schedule.run()
    assert schedule.failed["a"].message == "unexpected ZeroDivisionError: by zero"
    assert bench.made == ["a", "b"]


def test_what_failed_is_tried_again_by_the_next_run(bench: Bench) -> None:
    bench.schedule(bench.work("a", body=failing("once"))).run()
    again = bench.work("a")
    schedule = bench.schedule(again)
    schedule.run()
    assert not schedule.failed
    assert again.done()
    assert not again.failure_path.exists()


def test_what_another_process_fails_in_is_not_tried_here(bench: Bench) -> None:
    """The other one holds the claim, and writes its failure while this one waits."""
    work = bench.work("a")
    claims = Claims(bench.folder / "locks", rank=1, count=2)
    waits = []
    with claims.claim("a") as mine:
        assert mine

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            failure = WorkFailure(stage="a", message="there", attempt="1")
            write_atomically(work.failure_path, encode_json(failure))

        schedule = bench.schedule(work, bench.work("b", work), sleep=sleep)
        schedule.run()
    assert len(waits) == 1
    assert bench.made == []
    assert {key: failure.message for key, failure in schedule.failed.items()} == {
        "a": "there",
        "b": "there",
    }


def test_what_another_process_does_is_waited_for_and_used(bench: Bench) -> None:
    shared = bench.work("shared")
    with Claims(bench.folder / "locks", rank=1, count=2).claim("shared"):

        def sleep(seconds: float) -> None:
            shared.path.write_text("made elsewhere")

        bench.schedule(bench.work("mine", shared), bench.work("first"), sleep=sleep).run()
    assert bench.made == ["first", "mine"]


def test_work_of_a_killed_process_is_taken_over(bench: Bench) -> None:
    claim = Claims(bench.folder / "locks", rank=1, count=2).claim("a")
    claim.__enter__()

    def sleep(seconds: float) -> None:
        claim.__exit__(None, None, None)  # as the kernel lets go of what a dead process held

    bench.schedule(bench.work("a"), sleep=sleep).run()
    assert bench.made == ["a"]


def test_once_the_time_is_over_every_run_does_one_piece_and_no_more(bench: Bench) -> None:
    works = [bench.work("a"), bench.work("b")]
    for made in (["a"], ["a", "b"]):
        schedule = bench.schedule(*works)
        assert not schedule.began
        with limited_to(TimeLimit(0.0)):
            if len(made) < len(works):
                with pytest.raises(UnfinishedError, match="the study stopped"):
                    schedule.run()
            else:
                schedule.run()
        assert bench.made == made
        assert schedule.began


def test_work_that_stops_at_its_checkpoint_stops_the_study_and_has_not_failed(
    bench: Bench,
) -> None:
    def body(progress: Progress) -> None:
        raise UnfinishedError("stopped")

    work = bench.work("a", body=body)
    schedule = bench.schedule(work, bench.work("b"))
    with pytest.raises(UnfinishedError):
        schedule.run()
    assert not schedule.failed
    assert bench.made == ["a"]
    assert (bench.folder / "a.time.json").is_file()
    with Claims(bench.folder / "locks", rank=1, count=2).claim("a") as free:
        assert free


def test_attacks_stop_after_a_batch_that_is_kept_and_never_before(bench: Bench) -> None:
    state = bench.folder / "attacks.state"
    state.mkdir()
    batches: list[int] = []

    def body(progress: Progress) -> None:
        with progress.task("attack", 6) as task:
            for step in range(6):
                if step % 3 == 2:
                    (state / f"batch-{len(batches)}").write_text("kept")
                    batches.append(step)
                task.advance()

    work = bench.work("attacks", body=body, attacks=True)
    # The time is over when the first step is done.
    clock = iter([0.0, 1.0])
    limit = TimeLimit(1.0, clock=lambda: next(clock, 1e9))
    with limited_to(limit), pytest.raises(UnfinishedError):
        bench.schedule(work).run()
    assert batches == [2]


def test_after_every_piece_of_work_the_caller_is_told(bench: Bench) -> None:
    seen: list[int] = []
    teacher = bench.work("teacher")
    schedule = bench.schedule(bench.work("a", teacher))
    schedule.run(after=lambda: seen.append(len(bench.made)))
    assert seen == [1, 2]
    assert schedule.is_done(teacher)
