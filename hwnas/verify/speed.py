"""How fast an engine is: its latency, the slowest calls, and images per second by batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom

from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT
from hwnas_profilers.profiler import normal_input
from hwnas_profilers.records import Statistics
from hwnas_profilers.statistics import summarize
from hwnas_profilers.timing import TimingSettings, time_interleaved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas.core.progress import Progress
    from hwnas_export.runner import Runner

BATCHES = (1, 8, 32)
"""Batches that throughput is measured at."""

_CALLS = 1000
_LEAST_CALLS = 100  # of which the 99th percentile is the second slowest
_TAIL_SECONDS = 2.0
_ALPHA = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class TailLatency:
    """Calls timed one by one: what a user waits for, interrupts of the machine included.

    `Statistics` are of samples that may each span several calls, which hides the slow ones.

    Attributes:
        n: Calls.
        median_us: Their median.
        p99_us: 99 % of them took no longer.
        p99_low_us: Lower end of the percentile's 95 % order-statistic interval.
        p99_high_us: Upper end of it; the slowest call where n is too small to bound it.
        max_us: The slowest.
    """

    n: int
    median_us: float
    p99_us: float
    p99_low_us: float
    p99_high_us: float
    max_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Images per second at one batch, one call after the other.

    Attributes:
        batch: Images per call.
        call: Latency of a call.
        images_per_s: Batch over the median of a call.
        low: The same over the upper end of the median's 95 % interval.
        high: Over its lower end.
    """

    batch: int
    call: Statistics
    images_per_s: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was measured on a target.

    Attributes:
        target: The runner's name.
        latency: Of one image, or of a fixed batch.
        tail: The same, call by call.
        throughput: By batch, timed in one interleaved run.
        reference: Latency of the reference, timed in one interleaved run with `latency`; None where
            it was not.
        reference_target: What the reference ran with.
    """

    target: str
    latency: Statistics
    tail: TailLatency
    throughput: tuple[Throughput, ...]
    reference: Statistics | None = None
    reference_target: str = ""


def measure_speed(
    runner: Runner,
    *,
    settings: TimingSettings,
    batch: int = 1,
    batches: Sequence[int] = BATCHES,
    smallest: int = 1,
    largest: int | None = None,
    beside: Runner | None = None,
    progress: Progress = SILENT,
) -> Speed:
    """Time an active runner.

    Args:
        runner: An active runner.
        settings: How exactly the latency is timed; throughput is with 5 % intervals.
        batch: Images per call that the latency is of, where the runner leaves that free.
        batches: Batches to measure throughput at besides; of a runner with a fixed batch that one.
        smallest: Smallest batch that the engine takes.
        largest: Largest batch; None where there is no bound. What lies outside is left out.
        beside: An active runner of the reference, timed at the same batch.
        progress: Where to report.

    Raises:
        ConfigError: A batch is below 1, or that of the latency is out of the engine's bounds.
    """
    fixed = runner.input_shape[0]
    usable = tuple(
        each
        for each in ((fixed,) if fixed else sorted({batch, *batches}))
        if each >= smallest and (largest is None or each <= largest)
    )
    one = fixed or batch
    if min(batch, *batches) < 1 or one not in usable:
        raise ConfigError(
            f"the engine takes batches of {smallest} to {largest or 'any size'}, not of "
            f"{min(batch, *batches)}"
        )
    generator = np.random.default_rng(settings.seed)
    samplers = {each: runner.sampler_on(normal_input(runner, generator, each)) for each in usable}
    both = [samplers[one]]
    if beside is not None:
        both.append(beside.sampler_on(normal_input(beside, generator, one)))
    latency, *others = (
        summarize(timed.samples_us) for timed in time_interleaved(both, settings, progress=progress)
    )
    calls = int(np.clip(_TAIL_SECONDS * 1e6 / latency.median_us, _LEAST_CALLS, _CALLS))
    tail = tail_of(np.array([samplers[one](1) / 1e3 for _ in range(calls)]))
    quick = TimingSettings.quick(seed=settings.seed)
    rounds = time_interleaved([samplers[each] for each in usable], quick, progress=progress)
    return Speed(
        target=runner.name,
        latency=latency,
        tail=tail,
        throughput=tuple(
            _throughput(size, summarize(each.samples_us))
            for size, each in zip(usable, rounds, strict=True)
        ),
        reference=others[0] if others else None,
        reference_target=beside.name if beside is not None else "",
    )


def tail_of(calls_us: np.ndarray[tuple[int], np.dtype[np.float64]]) -> TailLatency:
    """Sum up calls that were timed one by one, (n,), in microseconds.

    The interval lies between two order statistics: the number of calls below the percentile is
    binomial (n, 0.99).
    """
    ordered, n = np.sort(calls_us), len(calls_us)
    low, high = (int(binom.ppf(share, n, 0.99)) for share in (_ALPHA / 2, 1 - _ALPHA / 2))
    return TailLatency(
        n=n,
        median_us=float(np.median(ordered)),
        p99_us=float(np.quantile(ordered, 0.99)),
        p99_low_us=float(ordered[max(low - 1, 0)]),
        p99_high_us=float(ordered[min(high, n - 1)]),
        max_us=float(ordered[-1]),
    )


def _throughput(batch: int, call: Statistics) -> Throughput:
    return Throughput(
        batch=batch,
        call=call,
        images_per_s=1e6 * batch / call.median_us,
        low=1e6 * batch / call.high_us,
        high=1e6 * batch / call.low_us,
    )
