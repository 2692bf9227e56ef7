from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hwnas.core.errors import ConfigError, DataError
from hwnas_export.runner import Sampler, host_sampler
from hwnas_profilers import agent
from hwnas_profilers.agent import LEAD_IN_SAMPLES
from hwnas_profilers.conditions import MachineState
from hwnas_profilers.timing import (
    LocalBench,
    RoundLog,
    Timed,
    TimingSettings,
    Visit,
    time_in_rounds,
    time_interleaved,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


SETTINGS = TimingSettings(
    relative_width=0.02,
    min_samples=8,
    max_samples=40,
    samples_per_round=4,
    warmup_calls=2,
    min_sample_us=100,
)
SECOND_NS = 1_000_000_000


class FakeClock:
    """A clock that stands still until a call lets time pass."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.log: list[int] = []

    def __call__(self) -> int:
        return self.now_ns

    def sampler(self, index: int, cost_ns: Callable[[], int]) -> Sampler:
        def run() -> None:
            self.log.append(index)
            self.now_ns += cost_ns()

        return host_sampler(run, self)


def timed_on(
    samplers: Sequence[Sampler],
    settings: TimingSettings = SETTINGS,
    on_finished: Callable[[int, Timed], None] | None = None,
) -> list[Timed]:
    """Time samplers of a made-up clock: what this machine does meanwhile must not matter."""
    bench = LocalBench(samplers, watched=False)
    return time_in_rounds(bench, len(samplers), settings, on_finished=on_finished)


class RecordingProgress:
    def __init__(self) -> None:
        self.steps = 0.0

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[RecordingProgress]:
        self.total = total
        yield self

    def advance(self, steps: float = 1, note: str = "") -> None:
        self.steps += steps

    def say(self, message: str) -> None:
        raise AssertionError(message)


# Samples and rounds, by a made-up clock


def test_steady_calls_are_measured_exactly_and_stop_at_the_least() -> None:
    clock, progress = FakeClock(), RecordingProgress()
    bench = LocalBench(
        [clock.sampler(0, lambda: 50_000), clock.sampler(1, lambda: 7_000)], watched=False
    )
    first, second = time_in_rounds(bench, 2, SETTINGS, progress=progress)
    assert first.samples_us.tolist() == [50.0] * 8
    assert second.samples_us.tolist() == [7.0] * 8
    assert progress.total == 2
    assert progress.steps == pytest.approx(2)


def test_a_noisy_call_goes_on_to_the_cap_while_a_steady_one_stops() -> None:
    clock = FakeClock()
    noise = np.random.default_rng(0)
    samplers = [
        clock.sampler(0, lambda: int(noise.integers(100_000, 1_000_000))),
        clock.sampler(1, lambda: 200_000),
    ]
    finished: list[tuple[int, int]] = []
    timed_on(samplers, on_finished=lambda index, timed: finished.append((index, timed.count)))
    assert finished == [(1, 8), (0, 40)]


def test_rounds_visit_every_unfinished_call_in_an_order_that_the_seed_shuffles() -> None:
    def order(seed: int) -> list[int]:
        clock = FakeClock()
        samplers = [clock.sampler(index, lambda: 200_000) for index in range(6)]
        settings = TimingSettings(
            min_samples=8, max_samples=8, samples_per_round=4, warmup_calls=0, seed=seed
        )
        timed_on(samplers, settings)
        timed = clock.log[2 * 6 :]  # two calls each were spent on finding how long they last
        return timed[:: LEAD_IN_SAMPLES + 4]  # each visit makes the lead-in's calls and four more

    visits = order(0)
    assert len(visits) == 12
    assert sorted(visits[:6]) == sorted(visits[6:]) == list(range(6))
    assert visits[:6] != visits[6:]
    assert order(0) == visits
    assert order(1) != visits


def test_drift_meets_all_calls_alike() -> None:
    clock = FakeClock()

    def drifting() -> int:
        return 100_000 + 30 * (clock.now_ns // 100_000)

    settings = TimingSettings(min_samples=40, max_samples=40, samples_per_round=4)
    first, second = timed_on([clock.sampler(index, drifting) for index in range(2)], settings)
    assert np.median(first.samples_us) == pytest.approx(np.median(second.samples_us), rel=0.01)
    assert first.samples_us.max() > 1.02 * first.samples_us.min()


def test_a_short_call_is_repeated_until_a_sample_lasts_long_enough() -> None:
    clock = FakeClock()
    (timed,) = timed_on([clock.sampler(0, lambda: 300)])
    assert timed.samples_us.tolist() == pytest.approx([0.3] * 8)
    per_sample = len(clock.log) / 10  # eight recorded, one unrecorded in each of two rounds, tries
    assert per_sample > 100_000 / 300


def test_one_interrupt_does_not_make_a_call_look_long() -> None:
    clock = FakeClock()
    costs = iter([300] * 2 + [5_000_000])  # the first try after the warm-up is interrupted

    (timed,) = timed_on([clock.sampler(0, lambda: next(costs, 300))])
    assert timed.samples_us.tolist() == pytest.approx([0.3] * 8)
    assert len(clock.log) > 8 * 100_000 / 300


def test_rounds_are_kept_apart() -> None:
    clock = FakeClock()
    (timed,) = timed_on([clock.sampler(0, lambda: 500_000)])
    assert [samples.size for samples in timed.rounds] == [4, 4]
    assert timed.disturbed == 0


def test_the_cap_cuts_the_last_round_short() -> None:
    settings = TimingSettings(min_samples=7, max_samples=10, samples_per_round=4)
    clock, noise = FakeClock(), np.random.default_rng(1)
    (timed,) = timed_on(
        [clock.sampler(0, lambda: int(noise.integers(1_000_000, 9_000_000)))], settings
    )
    assert [samples.size for samples in timed.rounds] == [4, 4, 2]


def test_a_clock_that_stands_still_ends_the_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "MAX_CALLS_PER_SAMPLE", 50)
    with pytest.raises(DataError, match="the clock of this machine does not work"):
        timed_on([host_sampler(int, lambda: 0)])


def test_garbage_collection_is_off_during_samples_and_restored_after_an_interrupt() -> None:
    seen: list[bool] = []

    def call() -> None:
        seen.append(gc.isenabled())
        if len(seen) > 30:
            raise KeyboardInterrupt

    settings = TimingSettings(min_samples=60, samples_per_round=50, min_sample_us=0)
    with pytest.raises(KeyboardInterrupt):
        timed_on([host_sampler(call)], settings)
    assert gc.isenabled()
    assert not any(seen[-20:])


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        time_interleaved([host_sampler(int)], SETTINGS)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_finished_before_an_interrupt_was_handed_over() -> None:
    clock = FakeClock()
    finished: list[int] = []

    def note(index: int, timed: Timed) -> None:
        finished.append(index)
        if len(finished) == 2:
            raise KeyboardInterrupt

    samplers = [clock.sampler(index, lambda: 200_000) for index in range(4)]
    with pytest.raises(KeyboardInterrupt):
        timed_on(samplers, on_finished=note)
    assert len(set(finished)) == 2


def test_nothing_to_time_takes_no_time() -> None:
    assert time_interleaved([], SETTINGS) == []


@pytest.mark.serial
def test_the_loop_itself_costs_little() -> None:
    (timed,) = time_interleaved([host_sampler(int)], TimingSettings())
    assert float(np.median(timed.samples_us)) < 5


# Disturbed rounds, on a made-up machine


START = MachineState(
    at_ns=0,
    cores=2,
    own_ns=0,
    busy_ns=0,
    tick_ns=0,
    pilot_ns=1_000,
    temperature_c=50.0,
    clock_mhz=2_000.0,
    throttled="",
)


@dataclass
class MadeUpBench:
    """Workloads whose samples say which round they are of, on a machine that does as it is told.

    Attributes:
        weather: What happens in each round: `quiet`, `load`, `clock`, `throttling` or `stepped`;
            quiet once it is used up.
        sample_us: A sample of a workload in a round.
        core_ns: Time of the computation beside it.
        watched: Whether its state can be read.
        visits: Which workloads each round visited.
        prepared: Which workloads were prepared.
    """

    weather: Sequence[str]
    sample_us: Callable[[int, int], float] = lambda index, number: 100.0 + number / 100
    core_ns: Callable[[int, int], float | None] = lambda index, number: None
    watched: bool = True
    visits: list[list[int]] = field(default_factory=list)
    prepared: list[int] = field(default_factory=list)
    _now: MachineState = START

    def prepare(self, index: int, settings: TimingSettings) -> None:
        self.prepared.append(index)

    def visit(self, indices: Sequence[int], samples: Sequence[int]) -> Iterator[Visit]:
        number = len(self.visits)
        self.visits.append(list(indices))
        what = self.weather[number] if number < len(self.weather) else "quiet"
        self.pass_second(
            others=1.0 if what == "load" else 0.1,
            throttled=self._now.throttled + "!" if what == "throttling" else None,
            pilot_ns=1_100 if what == "clock" else 1_000,
        )
        for index, count in zip(indices, samples, strict=True):
            taken = np.full(count, self.sample_us(index, number))
            if what == "stepped":
                taken[-1] = -3.0
            yield Visit(samples_us=taken, core_ns=self.core_ns(index, number))

    def state(self) -> MachineState | None:
        return self._now if self.watched else None

    def pass_second(
        self, *, others: float = 0.1, throttled: str | None = None, pilot_ns: float = 1_000
    ) -> None:
        assert self._now.busy_ns is not None
        self._now = replace(
            self._now,
            at_ns=self._now.at_ns + SECOND_NS,
            own_ns=self._now.own_ns + SECOND_NS,
            busy_ns=self._now.busy_ns + (1 + others) * SECOND_NS,
            pilot_ns=pilot_ns,
            throttled=self._now.throttled if throttled is None else throttled,
            temperature_c=(self._now.temperature_c or 0) + 1,
        )


def kept_rounds(timed: Timed) -> list[int]:
    """Return which rounds a workload's samples are of."""
    return [round(100 * (samples[0] - 100)) for samples in timed.rounds]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("load", "load of other programs"),
        ("throttling", "throttling"),
        ("stepped", "clock that stood still or ran backward"),
    ],
)
def test_a_disturbed_round_is_thrown_away_repeated_and_counted(what: str, reason: str) -> None:
    bench, log = MadeUpBench(["quiet", what, "quiet"]), RoundLog()
    timed = time_in_rounds(bench, 3, SETTINGS, log=log)
    assert bench.prepared == [0, 1, 2]
    assert [sorted(visit) for visit in bench.visits] == [[0, 1, 2]] * 3
    for each in timed:
        assert kept_rounds(each) == [0, 2]
        assert each.disturbed == 1
        assert each.count == SETTINGS.min_samples
    assert (log.kept, log.disturbed, log.noisy) == (2, 1, 0)
    assert log.reasons == {reason: 1}


def test_a_visit_on_a_shared_core_is_thrown_away_alone() -> None:
    bench, log = MadeUpBench([]), RoundLog()
    bench.core_ns = lambda index, number: 160.0 if (index, number) == (1, 1) else 100.0
    timed = time_in_rounds(bench, 3, SETTINGS, log=log)
    assert [kept_rounds(each) for each in timed] == [[0, 1], [0, 2], [0, 1]]
    assert [each.disturbed for each in timed] == [0, 1, 0]
    assert bench.visits[2] == [1]
    assert log.reasons == {"shared core": 1}


def test_what_was_kept_before_it_was_quiet_is_thrown_away_later() -> None:
    bench = MadeUpBench([])
    bench.core_ns = lambda index, number: 160.0 if number == 0 else 100.0
    timed = time_in_rounds(bench, 2, SETTINGS)
    assert [kept_rounds(each) for each in timed] == [[1, 2], [1, 2]]
    assert [each.disturbed for each in timed] == [1, 1]


def test_a_core_that_is_mostly_shared_is_not_waited_for_for_ever() -> None:
    bench = MadeUpBench([])
    # Seldom quiet, so that the rest is told apart, and far too seldom to be measured then alone.
    bench.core_ns = lambda index, number: 100.0 if number % 8 == 0 else 160.0
    (timed,) = time_in_rounds(bench, 1, SETTINGS)
    assert timed.count >= SETTINGS.min_samples
    most = 3 * -(-SETTINGS.max_samples // SETTINGS.samples_per_round)
    assert 0 < timed.disturbed <= most
    untouched = replace(SETTINGS, max_disturbed=0.0)
    (timed,) = time_in_rounds(bench, 1, untouched)
    assert timed.disturbed == 0


@pytest.mark.parametrize(("changed", "kept"), [(0, [2, 3]), (1, [0, 3])])
def test_a_changed_clock_disturbs_the_rounds_at_whose_ends_it_is_seen(
    changed: int, kept: list[int]
) -> None:
    bench, log = MadeUpBench(["quiet"] * changed + ["clock"]), RoundLog()
    (timed,) = time_in_rounds(bench, 1, SETTINGS, log=log)
    # It is read at the end of its round, which is the begin of the next one.
    assert kept_rounds(timed) == kept
    assert log.reasons == {"change of clock": 2}


def test_only_workloads_that_were_visited_count_a_disturbed_round() -> None:
    # The second one is noisy and goes on; the first is done after round 1.
    def sample_us(index: int, number: int) -> float:
        return 100.0 + number * (1 + 40 * index)

    bench = MadeUpBench(["quiet", "quiet", "load", "load", "quiet"], sample_us)
    steady, noisy = time_in_rounds(bench, 2, SETTINGS)
    assert [len(visit) for visit in bench.visits[:3]] == [2, 2, 1]
    assert (steady.disturbed, noisy.disturbed) == (0, 2)
    assert steady.count < noisy.count


@pytest.mark.parametrize("max_disturbed", [0.0, 0.2, 0.5])
def test_on_a_machine_that_is_never_quiet_rounds_are_kept_once_enough_were_repeated(
    max_disturbed: float,
) -> None:
    settings = replace(SETTINGS, min_samples=200, max_samples=200, max_disturbed=max_disturbed)
    bench, log = MadeUpBench(["load"] * 1_000), RoundLog()
    (timed,) = time_in_rounds(bench, 1, settings, log=log)
    assert timed.count == 200
    assert log.kept == log.noisy == 50  # of four samples each
    assert timed.disturbed == log.disturbed == len(bench.visits) - log.kept
    assert log.reasons == {"load of other programs": len(bench.visits)}
    if max_disturbed == 0:
        assert log.disturbed == 0
    else:
        rounds = log.kept + log.disturbed
        assert log.disturbed <= max(5, max_disturbed * rounds + 1)
        assert log.disturbed >= max(5, max_disturbed * rounds - 1)


def test_a_quiet_machine_may_have_a_few_bad_rounds_at_the_begin() -> None:
    bench, log = MadeUpBench(["load"] * 5), RoundLog()
    (timed,) = time_in_rounds(bench, 1, replace(SETTINGS, max_disturbed=0.1), log=log)
    assert kept_rounds(timed) == [5, 6]
    assert (log.disturbed, log.noisy) == (5, 0)


def test_a_log_goes_on_over_several_timings() -> None:
    log = RoundLog()
    for weather in (["load"], ["quiet", "load"], []):
        time_in_rounds(MadeUpBench(weather), 2, SETTINGS, log=log)
    assert (log.kept, log.disturbed) == (6, 2)
    assert len(log.loads) == len(log.pilots_ns) == 8
    assert sorted(log.loads) == pytest.approx([0.05] * 6 + [0.5] * 2)


def test_a_log_holds_the_first_and_the_last_reading() -> None:
    log = RoundLog()
    bench = MadeUpBench([])
    time_in_rounds(bench, 1, SETTINGS, log=log)
    assert [state.temperature_c for state in log.states] == [50.0, 52.0]
    time_in_rounds(bench, 1, SETTINGS, log=log)
    assert [state.temperature_c for state in log.states] == [50.0, 54.0]


def test_a_machine_that_cannot_be_read_is_taken_as_quiet() -> None:
    log = RoundLog()
    (timed,) = time_in_rounds(MadeUpBench(["load"] * 9, watched=False), 1, SETTINGS, log=log)
    assert kept_rounds(timed) == [0, 1]
    assert (log.kept, log.disturbed, log.states, log.loads) == (2, 0, [], [])


@pytest.mark.parametrize("wrong_us", [0.0, -5.0])
def test_a_clock_that_does_not_work_ends_the_timing_after_some_rounds(wrong_us: float) -> None:
    bench, log = MadeUpBench([], lambda index, number: wrong_us), RoundLog()
    with pytest.raises(DataError, match="the clock of this machine does not work"):
        time_in_rounds(bench, 2, SETTINGS, log=log)
    assert 2 <= len(bench.visits) <= 20
    assert log.kept == 0


def test_a_step_of_the_clock_is_repeated_even_where_disturbed_rounds_are_kept() -> None:
    bench, log = MadeUpBench(["stepped"]), RoundLog()
    (timed,) = time_in_rounds(bench, 1, replace(SETTINGS, max_disturbed=0.0), log=log)
    assert kept_rounds(timed) == [1, 2]
    assert timed.samples_us.min() > 0
    assert (log.disturbed, log.noisy) == (1, 0)


def test_what_is_done_with_a_finished_workload_is_no_part_of_the_next_round() -> None:
    # The first workload is written away while another program runs; the second goes on.
    bench, log = (
        MadeUpBench([], lambda index, number: 100.0 + number * (1 + 40 * index)),
        RoundLog(),
    )

    def write(index: int, timed: Timed) -> None:
        if index == 0:
            bench.pass_second(others=1.9, pilot_ns=1_000)

    time_in_rounds(bench, 2, SETTINGS, log=log, on_finished=write)
    assert log.disturbed == 0
    assert max(log.loads) == pytest.approx(0.05)


# Settings


def test_presets_trade_time_for_width() -> None:
    quick, usual, precise = TimingSettings.quick(), TimingSettings(), TimingSettings.precise()
    for faster, slower in ((quick, usual), (usual, precise)):
        assert faster.relative_width > slower.relative_width
        assert faster.min_samples < slower.min_samples
        assert faster.max_samples < slower.max_samples
        assert faster.min_sample_us <= slower.min_sample_us
    assert (quick.relative_width, precise.relative_width) == (0.05, 0.005)
    least_us = [each.min_samples * each.min_sample_us for each in (quick, usual)]
    assert least_us[0] <= least_us[1] / 3  # "a third of the time"


def test_even_one_network_is_watched_for_a_tenth_of_a_second() -> None:
    settings = TimingSettings.for_networks(relative_width=0.01, seed=4)
    assert settings.min_samples * settings.min_sample_us >= 1e5
    assert (settings.relative_width, settings.seed) == (0.01, 4)


def test_presets_take_the_seed() -> None:
    assert TimingSettings.quick(seed=3).seed == TimingSettings.precise(seed=3).seed == 3


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
        ({"max_disturbed": 1.0}, "max_disturbed is 1.0"),
        ({"max_disturbed": -0.1}, "max_disturbed is -0.1"),
        ({"max_disturbed": float("nan")}, "max_disturbed is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TimingSettings(**bad)  # type: ignore[arg-type]
