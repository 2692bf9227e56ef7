"""Timing many calls fairly: rounds that visit all of them in shuffled order.

A machine drifts: it warms up, clocks change, other programs come and go. Timed one after the other,
workloads would be compared across that drift; in shuffled rounds it meets all of them alike. Each
workload stops on its own, once its median is known well enough.
"""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from math import ceil, isfinite
from typing import TYPE_CHECKING, Self

import numpy as np

from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT
from hwnas_profilers.statistics import MIN_SAMPLES, relative_width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from hwnas.core.progress import Progress

    Call = Callable[[], object]
    Clock = Callable[[], int]

_MAX_CALLS_PER_SAMPLE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingSettings:
    """How long to time, and how exactly.

    Attributes:
        relative_width: A workload is finished once the 95 % interval of its median is narrower than
            this share of the median.
        min_samples: Least samples of a workload; more than one round of them.
        max_samples: It is finished at this many, however wide the interval is.
        samples_per_round: Samples taken each time that a round visits it.
        warmup_calls: Calls made before anything is timed.
        min_sample_us: A sample spans as many calls as last this long, so that neither the clock's
            resolution nor its cost is seen.
        seed: Shuffles the rounds.
    """

    relative_width: float = 0.02
    min_samples: int = 60
    max_samples: int = 300
    samples_per_round: int = 6
    warmup_calls: int = 5
    min_sample_us: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: A setting is out of range, or contradicts another.
        """
        if not 0 < self.relative_width < 1:
            raise ConfigError(f"relative_width is {self.relative_width}, not between 0 and 1")
        if self.samples_per_round < 1:
            raise ConfigError(f"samples_per_round is {self.samples_per_round}, not at least 1")
        least = max(MIN_SAMPLES, self.samples_per_round + 1)
        if self.min_samples < least:
            raise ConfigError(
                f"min_samples is {self.min_samples}, not at least {least}: "
                "two rounds, and enough for a 95 % interval",
            )
        if self.max_samples < self.min_samples:
            raise ConfigError(
                f"max_samples is {self.max_samples}, less than min_samples ({self.min_samples})"
            )
        if self.warmup_calls < 0:
            raise ConfigError(f"warmup_calls is {self.warmup_calls}, not at least 0")
        if not (isfinite(self.min_sample_us) and self.min_sample_us >= 0):
            raise ConfigError(f"min_sample_us is {self.min_sample_us}, not a time")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, not at least 0")

    @classmethod
    def for_networks(cls, *, relative_width: float = 0.005, seed: int = 0) -> Self:
        """Return settings for whole networks, of which there are few and from which more follows.

        A sample lasts half a millisecond and there are at least 200, so that even a single network
        is watched for a tenth of a second: a shorter look catches one mood of a shared machine.
        """
        return cls(
            relative_width=relative_width,
            min_samples=200,
            max_samples=300,
            min_sample_us=500.0,
            seed=seed,
        )


def time_interleaved(
    calls: Sequence[Call],
    settings: TimingSettings,
    *,
    clock: Clock = time.perf_counter_ns,
    on_finished: Callable[[int, NDArray[np.float64]], None] | None = None,
    progress: Progress = SILENT,
) -> list[NDArray[np.float64]]:
    """Time calls in shuffled rounds.

    Args:
        calls: What to time; each returns only when its work is done.
        settings: When to stop.
        clock: Nanoseconds, never running backward.
        on_finished: Told the index and samples of each call as it finishes, so that they can be
            written at once. What it raises ends the timing.
        progress: Where to report.

    Returns:
        Samples of each call in microseconds per call, in order of time; (n,) each.
    """

    def finished(index: int, rounds: list[NDArray[np.float64]]) -> None:
        if on_finished is not None:
            on_finished(index, np.concatenate(rounds))

    timed = time_in_rounds(calls, settings, clock=clock, on_finished=finished, progress=progress)
    return [np.concatenate(rounds) for rounds in timed]


def time_in_rounds(
    calls: Sequence[Call],
    settings: TimingSettings,
    *,
    clock: Clock = time.perf_counter_ns,
    on_finished: Callable[[int, list[NDArray[np.float64]]], None] | None = None,
    progress: Progress = SILENT,
) -> list[list[NDArray[np.float64]]]:
    """Time calls as `time_interleaved`, and keep the samples of each round apart.

    Returns:
        For each call its rounds, at least two, each with samples in microseconds per call.
    """
    generator = np.random.default_rng(settings.seed)
    rounds: list[list[NDArray[np.float64]]] = [[] for _ in calls]
    taken = [0] * len(calls)
    unfinished = np.arange(len(calls))
    with progress.task("timing", len(calls)) as task:
        spans = [_calls_per_sample(call, settings, clock) for call in calls]
        while unfinished.size:
            still: list[int] = []
            for index in map(int, generator.permutation(unfinished)):
                wanted = min(settings.samples_per_round, settings.max_samples - taken[index])
                rounds[index].append(_take_samples(calls[index], wanted, spans[index], clock))
                taken[index] += wanted
                if _is_finished(rounds[index], taken[index], settings):
                    if on_finished is not None:
                        on_finished(index, rounds[index])
                    # The rounds that it did not need are done too.
                    wanted += settings.max_samples - taken[index]
                else:
                    still.append(index)
                task.advance(wanted / settings.max_samples)
            unfinished = np.array(still, dtype=np.intp)
    return rounds


def _is_finished(rounds: list[NDArray[np.float64]], taken: int, settings: TimingSettings) -> bool:
    if taken >= settings.max_samples:
        return True
    if taken < settings.min_samples:
        return False
    return relative_width(np.concatenate(rounds)) < settings.relative_width


def _calls_per_sample(call: Call, settings: TimingSettings, clock: Clock) -> int:
    """Warm a call up and find how many of them last as long as a sample must."""
    for _ in repeat(None, settings.warmup_calls):
        call()
    count = 1
    while count < _MAX_CALLS_PER_SAMPLE:
        begin = clock()
        for _ in repeat(None, count):
            call()
        elapsed_us = (clock() - begin) / 1_000
        if elapsed_us >= settings.min_sample_us:
            break
        # At least doubled, so that it ends; at most tenfold, as one short try says little.
        growth = settings.min_sample_us / elapsed_us if elapsed_us > 0 else 10.0
        count = min(ceil(count * min(max(growth, 2.0), 10.0)), _MAX_CALLS_PER_SAMPLE)
    return count


def _take_samples(call: Call, samples: int, span: int, clock: Clock) -> NDArray[np.float64]:
    """Take one visit's samples, in microseconds per call; (samples,)."""
    # A list, as storing into an array costs more; filled beforehand, so that nothing grows.
    elapsed_ns = [0] * samples
    # Another workload ran just before: its data is in the caches. One sample goes unrecorded.
    for _ in repeat(None, span):
        call()
    with _no_garbage_collection():
        for sample in range(samples):
            begin = clock()
            # `repeat` hands out one object again and again: the cheapest loop that Python has.
            for _ in repeat(None, span):
                call()
            elapsed_ns[sample] = clock() - begin
    return np.array(elapsed_ns, dtype=np.float64) / (1_000 * span)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python's cyclic collector out of the samples; leave it as it was found."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
