from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hwnas.core.errors import ConfigError
from hwnas_profilers.timing import TimingSettings, time_in_rounds, time_interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

SETTINGS = TimingSettings(
    relative_width=0.02,
    min_samples=8,
    max_samples=40,
    samples_per_round=4,
    warmup_calls=2,
    min_sample_us=100,
)


class FakeClock:
    """A clock that stands still until a call lets time pass."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.log: list[int] = []

    def __call__(self) -> int:
        return self.now_ns

    def call(self, index: int, cost_ns: Callable[[], int]) -> Callable[[], object]:
        def run() -> None:
            self.log.append(index)
            self.now_ns += cost_ns()

        return run


class RecordingProgress:
    def __init__(self) -> None:
        self.steps = 0.0
        self.said: list[str] = []

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[RecordingProgress]:
        self.total = total
        yield self

    def advance(self, steps: float = 1, note: str = "") -> None:
        self.steps += steps

    def say(self, message: str) -> None:
        self.said.append(message)


def test_steady_calls_are_measured_exactly_and_stop_at_the_least() -> None:
    clock, progress = FakeClock(), RecordingProgress()
    calls = [clock.call(0, lambda: 50_000), clock.call(1, lambda: 7_000)]
    first, second = time_interleaved(calls, SETTINGS, clock=clock, progress=progress)
    assert first.tolist() == [50.0] * 8
    assert second.tolist() == [7.0] * 8
    assert progress.total == 2
    assert progress.steps == pytest.approx(2)


def test_a_noisy_call_goes_on_to_the_cap_while_a_steady_one_stops() -> None:
    clock = FakeClock()
    noise = np.random.default_rng(0)
    calls = [
        clock.call(0, lambda: int(noise.integers(100_000, 1_000_000))),
        clock.call(1, lambda: 200_000),
    ]
    finished: list[int] = []

    def note(index: int, samples_us: NDArray[np.float64]) -> None:
        finished.append(index)
        assert samples_us.size == (40 if index == 0 else 8)

    time_interleaved(calls, SETTINGS, clock=clock, on_finished=note)
    assert finished == [1, 0]


def test_rounds_visit_every_unfinished_call_in_an_order_that_the_seed_shuffles() -> None:
    def order(seed: int) -> list[int]:
        clock = FakeClock()
        calls = [clock.call(index, lambda: 200_000) for index in range(6)]
        settings = TimingSettings(
            min_samples=8, max_samples=8, samples_per_round=4, warmup_calls=0, seed=seed
        )
        time_interleaved(calls, settings, clock=clock)
        timed = clock.log[6:]  # one call each was spent on finding how long they last
        return timed[::5]  # each visit makes one unrecorded and four recorded calls

    visits = order(0)
    assert len(visits) == 12
    assert sorted(visits[:6]) == sorted(visits[6:]) == list(range(6))
    assert visits[:6] != visits[6:]
    assert order(0) == visits
    assert order(1) != visits


def test_drift_meets_all_calls_alike() -> None:
    clock = FakeClock()
    # Both cost the same, and twice as much from some moment on.
    calls = [clock.call(i, lambda: 100_000 + 30 * (clock.now_ns // 100_000)) for i in range(2)]
    settings = TimingSettings(min_samples=40, max_samples=40, samples_per_round=4)
    first, second = time_interleaved(calls, settings, clock=clock)
    assert np.median(first) == pytest.approx(np.median(second), rel=0.01)
    assert first.max() > 1.02 * first.min()


def test_a_short_call_is_repeated_until_a_sample_lasts_long_enough() -> None:
    clock = FakeClock()
    (samples_us,) = time_interleaved([clock.call(0, lambda: 300)], SETTINGS, clock=clock)
    assert samples_us.tolist() == pytest.approx([0.3] * 8)
    per_sample = len(clock.log) / 10  # eight recorded, one unrecorded in each of two rounds, tries
    assert per_sample > 100_000 / 300


def test_a_clock_that_stands_still_ends_with_zeros_rather_than_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hwnas_profilers.timing._MAX_CALLS_PER_SAMPLE", 50)
    (samples_us,) = time_interleaved([lambda: None], SETTINGS, clock=lambda: 0)
    assert not samples_us.any()


def test_rounds_are_kept_apart() -> None:
    clock = FakeClock()
    (rounds,) = time_in_rounds([clock.call(0, lambda: 500_000)], SETTINGS, clock=clock)
    assert [samples.size for samples in rounds] == [4, 4]


def test_the_cap_cuts_the_last_round_short() -> None:
    settings = TimingSettings(min_samples=7, max_samples=10, samples_per_round=4)
    clock, noise = FakeClock(), np.random.default_rng(1)
    call = clock.call(0, lambda: int(noise.integers(1_000_000, 9_000_000)))
    (rounds,) = time_in_rounds([call], settings, clock=clock)
    assert [samples.size for samples in rounds] == [4, 4, 2]


def test_garbage_collection_is_off_during_samples_and_restored_after_an_interrupt() -> None:
    seen: list[bool] = []

    def call() -> None:
        seen.append(gc.isenabled())
        if len(seen) > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_interleaved(
            [call], TimingSettings(min_samples=60, samples_per_round=50, min_sample_us=0)
        )
    assert gc.isenabled()
    assert False in seen


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        time_interleaved([lambda: None], SETTINGS)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_finished_before_an_interrupt_was_handed_over() -> None:
    clock = FakeClock()
    finished: list[int] = []

    def note(index: int, _: NDArray[np.float64]) -> None:
        finished.append(index)
        if len(finished) == 2:
            raise KeyboardInterrupt

    calls = [clock.call(index, lambda: 200_000) for index in range(4)]
    with pytest.raises(KeyboardInterrupt):
        time_interleaved(calls, SETTINGS, clock=clock, on_finished=note)
    assert len(set(finished)) == 2


def test_nothing_to_time_takes_no_time() -> None:
    assert time_interleaved([], SETTINGS) == []


@pytest.mark.serial
def test_the_loop_itself_costs_little() -> None:
    (samples_us,) = time_interleaved([int], TimingSettings())
    assert float(np.median(samples_us)) < 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"relative_width": 0.0}, "relative_width is 0.0"),
        ({"relative_width": float("nan")}, "relative_width is nan"),
        ({"samples_per_round": 0}, "samples_per_round is 0"),
        ({"min_samples": 5, "samples_per_round": 2}, "at least 6"),
        ({"min_samples": 10, "samples_per_round": 10}, "at least 11"),
        ({"max_samples": 7}, "less than min_samples"),
        ({"warmup_calls": -1}, "warmup_calls is -1"),
        ({"min_sample_us": float("inf")}, "min_sample_us is inf"),
        ({"min_sample_us": -1.0}, "min_sample_us is -1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TimingSettings(**bad)  # type: ignore[arg-type]
