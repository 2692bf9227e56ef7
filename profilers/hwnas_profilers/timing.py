"""Timing many workloads fairly: rounds that visit all of them in shuffled order.

A machine drifts: it warms up, clocks change, other programs come and go. Timed one after the other,
workloads would be compared across that drift; in shuffled rounds it meets all of them alike. Each
workload stops on its own, once its median is known well enough. A round in which the machine was
disturbed is thrown away and repeated, as long as not too many are.

What is timed lies behind a `Bench`: on this machine, or on a board at the other end of a wire.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from math import isfinite
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from hwnas.core.errors import ConfigError, DataError
from hwnas.core.progress import SILENT
from hwnas_profilers.agent import calls_per_sample, machine_state, take_visit
from hwnas_profilers.conditions import (
    CORE_LIMIT,
    QUIET_SHARE,
    DisturbanceWatch,
    MachineState,
    load_of_others,
)
from hwnas_profilers.statistics import MIN_SAMPLES, relative_width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from hwnas.core.progress import Progress
    from hwnas_export.runner import Sampler

    Floats = NDArray[np.float64]

_STEPPED = "clock that stood still or ran backward"
_MAX_STEPPED_ROUNDS = 10
_SHARED = "shared core"
_MOST_DROPPED = 3
_REMEMBERED_VISITS = 5_000
LOADINGS = 3
"""Of a workload whose latency is to be compared: see `without_odd_loadings`."""


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
        max_disturbed: Disturbed rounds are repeated as long as they are at most this share of the
            rounds so far (and at most five before that means anything); then they are kept. Zero
            repeats nothing, visits on a shared core neither.
        seed: Shuffles the rounds.
    """

    relative_width: float = 0.02
    min_samples: int = 60
    max_samples: int = 300
    samples_per_round: int = 6
    warmup_calls: int = 5
    min_sample_us: float = 100.0
    max_disturbed: float = 0.5
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
        if not 0 <= self.max_disturbed < 1:
            raise ConfigError(f"max_disturbed is {self.max_disturbed}, not a share below 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, not at least 0")

    def shared_by(self, loadings: int) -> TimingSettings:
        """Return what each of several loadings of a workload takes, of what it takes in all."""
        if loadings == 1:
            return self
        least = max(MIN_SAMPLES, self.samples_per_round + 1)
        min_samples = max(least, -(-self.min_samples // loadings))
        max_samples = max(min_samples, -(-self.max_samples // loadings))
        return replace(self, min_samples=min_samples, max_samples=max_samples)

    @classmethod
    def quick(cls, *, seed: int = 0) -> Self:
        """Return settings for a first look: 5 % intervals, a third of the time."""
        return cls(
            relative_width=0.05, min_samples=20, max_samples=100, samples_per_round=5, seed=seed
        )

    @classmethod
    def precise(cls, *, seed: int = 0) -> Self:
        """Return settings for a table that is to be kept: 0.5 % intervals."""
        return cls(
            relative_width=0.005, min_samples=120, max_samples=1_200, min_sample_us=200.0, seed=seed
        )

    @classmethod
    def for_networks(cls, *, relative_width: float = 0.005, seed: int = 0) -> Self:
        """Return settings for whole networks, of which there are few and from which more follows.

        A sample lasts half a millisecond and there are at least 200, of all its loadings, so that
        even a single network is watched for a tenth of a second: a shorter look catches one mood of
        a shared machine.
        """
        return cls(
            relative_width=relative_width,
            min_samples=200,
            max_samples=300,
            samples_per_round=10,
            min_sample_us=500.0,
            seed=seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """What one visit of a workload gave.

    Attributes:
        samples_us: Samples in microseconds per call, (n,).
        core_ns: Time of a fixed computation that uses all of a core, right beside the samples; None
            where nothing like it can be read.
    """

    samples_us: Floats
    core_ns: float | None = None


class Bench(Protocol):
    """Compiled workloads that can be visited, wherever they are."""

    def prepare(self, index: int, settings: TimingSettings) -> None:
        """Warm a workload up, and find how many of its calls a sample takes."""
        ...

    def visit(self, indices: Sequence[int], samples: Sequence[int]) -> Iterator[Visit]:
        """Visit workloads in this order, and take so many samples of each."""
        ...

    def state(self) -> MachineState | None:
        """Read the machine's state; None where nothing can be read."""
        ...


class LocalBench:
    """Samplers on this machine, as a bench.

    Args:
        samplers: One per workload; each returns only when its work is done.
        watched: Read the machine's state around each round.
    """

    def __init__(self, samplers: Sequence[Sampler], *, watched: bool = True) -> None:
        self._samplers = samplers
        self._spans = [1] * len(samplers)
        self._watched = watched

    def prepare(self, index: int, settings: TimingSettings) -> None:
        """See `Bench`."""
        self._spans[index] = calls_per_sample(
            self._samplers[index], settings.warmup_calls, settings.min_sample_us
        )

    def visit(self, indices: Sequence[int], samples: Sequence[int]) -> Iterator[Visit]:
        """See `Bench`."""
        for index, count in zip(indices, samples, strict=True):
            taken, core_ns = take_visit(self._samplers[index], count, self._spans[index])
            yield Visit(
                samples_us=np.array(taken, dtype=np.float64),
                core_ns=core_ns if self._watched else None,
            )

    def state(self) -> MachineState | None:
        """See `Bench`."""
        return MachineState(**machine_state()) if self._watched else None


@dataclass(slots=True)
class Timed:
    """The samples of one workload.

    Attributes:
        rounds: Samples of each round that was kept, in microseconds per call.
        disturbed: Visits that were thrown away.
        cores_ns: Beside each round: see `Visit`.
    """

    rounds: list[Floats] = field(default_factory=list)
    disturbed: int = 0
    cores_ns: list[float] = field(default_factory=list)

    def add(self, visit: Visit) -> None:
        """Keep a visit."""
        self.rounds.append(visit.samples_us)
        self.cores_ns.append(visit.core_ns or 0.0)

    def drop_slow(self, limit_ns: float, settings: TimingSettings) -> int:
        """Throw visits away during which the core was shared; return how many.

        Those of former rounds too: what is quiet may show itself late. No more than
        `_MOST_DROPPED` for each that is needed, or a core that is always shared would be measured
        for ever.
        """
        if settings.max_disturbed == 0:
            return 0
        most = _MOST_DROPPED * -(-settings.max_samples // settings.samples_per_round)
        slow = [place for place, core_ns in enumerate(self.cores_ns) if core_ns > limit_ns]
        slow = slow[: max(0, most - self.disturbed)]
        for place in reversed(slow):
            del self.rounds[place], self.cores_ns[place]
        self.disturbed += len(slow)
        return len(slow)

    @property
    def samples_us(self) -> Floats:
        """All samples, in order of time; (n,)."""
        return np.concatenate(self.rounds)

    @property
    def count(self) -> int:
        """Number of samples."""
        return sum(map(len, self.rounds))


def without_odd_loadings(timed: Sequence[Timed], loadings: int) -> list[Timed]:
    """Put the samples of each workload's loadings together, but for the odd ones.

    Now and then a workload is several percent slower for as long as it is loaded, and at its usual
    speed when it is loaded again (benchmarks/latency/loadings.py). So those count whose medians are
    next to the middle one: two of three, the only one of one.

    Args:
        timed: All loadings of the first workload, then of the next; timed in the same rounds.
        loadings: Of each workload, at least one.

    Returns:
        For each workload the rounds in turn: of two loadings, every other one is of the same.
    """
    return [
        _without_the_odd_one(timed[begin : begin + loadings])
        for begin in range(0, len(timed), loadings)
    ]


def _without_the_odd_one(loadings: Sequence[Timed]) -> Timed:
    medians = [float(np.median(each.samples_us)) for each in loadings]
    middle = sorted(medians)[len(medians) // 2]
    order = sorted(range(len(medians)), key=lambda place: abs(medians[place] - middle))
    kept = [loadings[place] for place in sorted(order[: len(loadings) // 2 + 1])]
    turns = zip_longest(*(zip(each.rounds, each.cores_ns, strict=True) for each in kept))
    rounds = [each for turn in turns for each in turn if each is not None]
    return Timed(
        rounds=[samples for samples, _ in rounds],
        disturbed=sum(each.disturbed for each in loadings),
        cores_ns=[core_ns for _, core_ns in rounds],
    )


@dataclass(slots=True)
class RoundLog:
    """What rounds were like; goes on over several calls of `time_in_rounds`.

    Attributes:
        kept: Rounds that were kept.
        disturbed: Rounds that were thrown away and repeated.
        noisy: Rounds that were disturbed, but kept, as too many were.
        reasons: How often a round was disturbed, by reason.
        states: First and last reading; empty before any.
        loads: Share of all cores' time that other programs took, of each round.
        pilots_ns: Time of the fixed computation, of each round.
        memories_ns: Time of reading some MiB, of each round.
        cores_ns: Time of the computation that uses all of a core, of the latest visits.
    """

    kept: int = 0
    disturbed: int = 0
    noisy: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    states: list[MachineState] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    pilots_ns: list[float] = field(default_factory=list)
    memories_ns: list[float] = field(default_factory=list)
    cores_ns: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_VISITS))
    watch: DisturbanceWatch = field(default_factory=DisturbanceWatch)

    def core_limit_ns(self, visits: Sequence[Visit]) -> float:
        """Take note of a round's visits, and return when a core counts as shared."""
        self.cores_ns.extend(visit.core_ns for visit in visits if visit.core_ns is not None)
        if not self.cores_ns:
            return math.inf
        return (1 + CORE_LIMIT) * float(np.quantile(np.array(self.cores_ns), QUIET_SHARE))

    def judge(self, before: MachineState | None, after: MachineState | None) -> str:
        """Take note of a round's readings, and return why it was disturbed, if it was."""
        if before is None or after is None:
            return ""
        self.states[1:] = [after]
        if len(self.states) == 1:
            self.states.insert(0, before)
        self.pilots_ns.append(after.pilot_ns)
        if after.memory_ns is not None:
            self.memories_ns.append(after.memory_ns)
        load = load_of_others(before, after)
        if load is not None:
            self.loads.append(load)
        return self.watch.judge(before, after)


def time_in_rounds(
    bench: Bench,
    count: int,
    settings: TimingSettings,
    *,
    log: RoundLog | None = None,
    on_finished: Callable[[int, Timed], None] | None = None,
    progress: Progress = SILENT,
) -> list[Timed]:
    """Time workloads in shuffled rounds.

    Args:
        bench: What holds them.
        count: How many it holds.
        settings: When to stop.
        log: Takes note of what the rounds were like.
        on_finished: Told the index and samples of each workload as it finishes, so that they can be
            written at once. What it raises ends the timing.
        progress: Where to report.

    Returns:
        For each workload its rounds, at least two.

    Raises:
        DataError: The clock does not work: again and again, times are zero or negative.
    """
    log = RoundLog() if log is None else log
    generator = np.random.default_rng(settings.seed)
    timed = [Timed() for _ in range(count)]
    unfinished = np.arange(count)
    stepped = 0
    with progress.task("timing", count) as task:
        for index in range(count):
            bench.prepare(index, settings)
        before = bench.state()
        while unfinished.size:
            order = [int(index) for index in generator.permutation(unfinished)]
            wanted = [_wanted(timed[index], settings) for index in order]
            visits = list(bench.visit(order, wanted))
            after = bench.state()
            reason = log.judge(before, after)
            before = after
            if any(visit.samples_us.min() <= 0 for visit in visits):
                reason, stepped = _STEPPED, stepped + 1
                if stepped > _MAX_STEPPED_ROUNDS:
                    raise DataError(
                        "a measured time is zero or negative, again and again: "
                        "the clock of this machine does not work"
                    )
            if reason:
                log.reasons[reason] = log.reasons.get(reason, 0) + 1
                if reason == _STEPPED or _may_repeat(log, settings):
                    log.disturbed += 1
                    for index in order:
                        timed[index].disturbed += 1
                    continue
                log.noisy += 1
            log.kept += 1
            limit_ns = log.core_limit_ns(visits)
            still: list[int] = []
            for index, visit in zip(order, visits, strict=True):
                own = timed[index]
                count_before = own.count
                own.add(visit)
                if dropped := own.drop_slow(limit_ns, settings):
                    log.reasons[_SHARED] = log.reasons.get(_SHARED, 0) + dropped
                done = own.count - count_before
                if _is_finished(own, settings):
                    if on_finished is not None:
                        on_finished(index, own)
                    # The rounds that it did not need are done too.
                    done += settings.max_samples - own.count
                else:
                    still.append(index)
                task.advance(done / settings.max_samples)
            if on_finished is not None and len(still) < len(order):
                before = bench.state()  # what was done with the finished ones is no part of a round
            unfinished = np.array(still, dtype=np.intp)
    return timed


def time_interleaved(
    samplers: Sequence[Sampler],
    settings: TimingSettings,
    *,
    log: RoundLog | None = None,
    progress: Progress = SILENT,
) -> list[Timed]:
    """Time samplers of this machine in shuffled rounds: `time_in_rounds` on a `LocalBench`."""
    return time_in_rounds(LocalBench(samplers), len(samplers), settings, log=log, progress=progress)


def _wanted(timed: Timed, settings: TimingSettings) -> int:
    return min(settings.samples_per_round, settings.max_samples - timed.count)


def _may_repeat(log: RoundLog, settings: TimingSettings) -> bool:
    allowed = max(5.0, settings.max_disturbed * (log.kept + log.disturbed))
    return settings.max_disturbed > 0 and log.disturbed < allowed


def _is_finished(timed: Timed, settings: TimingSettings) -> bool:
    if timed.count >= settings.max_samples:
        return True
    if timed.count < settings.min_samples:
        return False
    return relative_width(timed.samples_us) < settings.relative_width
