"""Energy of one call, from a counter of energy that the device keeps.

A counter moves in ticks: a processor's every millisecond or so, a GPU's every 20 to 100 ms. Read at
any moment, it would be wrong by up to a tick at both ends of a window. So a window begins right
after a tick and ends right after a later one, and the calls between the two are counted: then the
ends are known to a few calls, however slow the ticks are.

Nothing is subtracted. The figure is what the whole package or board took while the calls ran, other
programs on it and its power at rest included: that is what a battery pays. On a machine that others
use too, it says little; the interval shows it.

An isolated operator runs hot and alone, which it does not do within a network: sums of energies are
uncalibrated, and every output says so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import ceil, isfinite
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hwnas.core.errors import ConfigError, DataError, TargetError
from hwnas_profilers.energy_meters import energy_meter_for as energy_meter_for
from hwnas_profilers.energy_meters import energy_meter_status as energy_meter_status
from hwnas_profilers.records import EnergyStatistics
from hwnas_profilers.statistics import MIN_SAMPLES, median_interval_ranks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hwnas_export.runner import Sampler

    Clock = Callable[[], int]

PATIENCE_S = 5.0
"""A meter that shows no tick for so long, while it is kept busy, stands still."""

_MIN_STEPS = 100
"""A window spans at least this many of the meter's smallest steps: they blur it by 1 % at most."""

_MIN_POLLS = 40
"""... and lasts at least as long as this many polls: its ends, each known to one poll, blur it by
1 % (the difference of two uniform errors has a standard deviation of 0.41 polls)."""

_READS_PER_POLL = 10
"""Between two readings calls run for so many times what a reading takes: while the end of a window
is waited for, the device must not be idle for more than a tenth of the time."""

_CHUNK_NS = 50_000_000
"""Calls that are asked of a sampler at once: a GPU's may not have room for a whole window."""

_CALIBRATION_NS = 10_000_000


class EnergyMeter(Protocol):
    """A counter of the energy that a device has taken."""

    @property
    def name(self) -> str:
        """What is metered, and how, e.g. `RAPL package-0`."""
        ...

    @property
    def resolution_uj(self) -> int:
        """The smallest difference that the meter can show, in microjoules."""
        ...

    def read_uj(self) -> int:
        """Return the energy since some moment in the past, in microjoules; it never decreases.

        Raises:
            TargetError: The counter cannot be read any more.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyWindow:
    """How one workload is metered by one meter.

    Attributes:
        calls_per_poll: Calls between two readings, where a tick is waited for.
        calls_per_chunk: Calls that are asked for at once, where none is.
        window_ns: Least length of a window.
        least_uj: Least energy of a window.
    """

    calls_per_poll: int
    calls_per_chunk: int
    window_ns: float
    least_uj: float


def measure_energy_uj(
    sampler: Sampler,
    meter: EnergyMeter,
    *,
    seconds: float = 0.5,
    repeats: int = MIN_SAMPLES,
    clock: Clock = time.perf_counter_ns,
) -> EnergyStatistics:
    """Measure the energy of one call, power at rest included.

    Args:
        sampler: Makes calls in a row; returns when they are done.
        meter: Meters what the calls run on.
        seconds: Least length of a window. It grows where the meter needs it.
        repeats: Windows. By default as many as the median's 95 % interval needs.
        clock: Nanoseconds, never running backward.

    Returns:
        Per call: the median over the windows and its interval.

    Raises:
        ConfigError: `seconds` or `repeats` is not positive.
        TargetError: The meter stands still, or cannot be read.
    """
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}, not at least 1")
    window = plan_window(sampler, meter, seconds=seconds, clock=clock)
    return energy_statistics(
        np.array([metered_window_uj(sampler, meter, window, clock=clock) for _ in range(repeats)])
    )


def plan_window(
    sampler: Sampler,
    meter: EnergyMeter,
    *,
    seconds: float = 0.5,
    clock: Clock = time.perf_counter_ns,
) -> EnergyWindow:
    """Warm a workload up, and find how it must be metered. Arguments as `measure_energy_uj`."""
    if not (isfinite(seconds) and seconds > 0):
        raise ConfigError(f"seconds is {seconds}, not a positive time")
    sampler(1)  # the first call of all may do what no other does
    call_ns = _time_per_call(sampler, clock)
    begin = clock()
    for _ in range(_READS_PER_POLL):
        meter.read_uj()
    poll_ns = max(call_ns, clock() - begin)
    return EnergyWindow(
        calls_per_poll=ceil(poll_ns / call_ns),
        calls_per_chunk=ceil(_CHUNK_NS / call_ns),
        window_ns=max(seconds * 1e9, _MIN_POLLS * poll_ns),
        least_uj=_MIN_STEPS * meter.resolution_uj,
    )


def metered_window_uj(
    sampler: Sampler,
    meter: EnergyMeter,
    window: EnergyWindow,
    *,
    clock: Clock = time.perf_counter_ns,
) -> float:
    """Return the energy of one call in microjoules, over one window from tick to tick.

    Windows of several workloads may alternate, so that drift hits them alike.

    Raises:
        TargetError: The meter stands still, or cannot be read.
    """
    begin_uj, _ = _run_to_next_tick(sampler, meter, window.calls_per_poll, clock)
    begin_ns = clock()
    calls = 0
    while clock() - begin_ns < window.window_ns:
        sampler(window.calls_per_chunk)
        calls += window.calls_per_chunk
    end_uj = begin_uj
    while end_uj - begin_uj < window.least_uj:
        end_uj, more = _run_to_next_tick(sampler, meter, window.calls_per_poll, clock)
        calls += more
    return (end_uj - begin_uj) / calls


def energy_statistics(windows_uj: NDArray[np.float64]) -> EnergyStatistics:
    """Sum windows up.

    Args:
        windows_uj: Energy of one call in each window, (n,).

    Raises:
        DataError: There is none, or one is no energy.
    """
    if not windows_uj.size:
        raise DataError("there is no window of energy to sum up")
    ordered = np.sort(windows_uj)
    if not (np.isfinite(ordered).all() and ordered[0] > 0):
        raise DataError("a metered energy is zero, negative or not finite: the meter does not work")
    n = int(ordered.size)
    low, high = median_interval_ranks(n) if n >= MIN_SAMPLES else (1, n)
    return EnergyStatistics(
        n=n,
        median_uj=float(np.median(ordered)),
        low_uj=float(ordered[low - 1]),
        high_uj=float(ordered[high - 1]),
    )


def _time_per_call(sampler: Sampler, clock: Clock) -> float:
    """Return the nanoseconds of a call by the clock that windows are held to."""
    calls = 1
    while True:
        begin = clock()
        sampler(calls)
        elapsed_ns = clock() - begin
        if elapsed_ns >= _CALIBRATION_NS:
            return elapsed_ns / calls
        calls *= 2


def _run_to_next_tick(
    sampler: Sampler, meter: EnergyMeter, calls_per_poll: int, clock: Clock
) -> tuple[int, int]:
    """Keep calling until the meter moves; return what it then shows, and how many calls it took.

    Raises:
        TargetError: It does not move.
    """
    begin_ns = clock()
    before_uj = meter.read_uj()
    calls = 0
    while True:
        sampler(calls_per_poll)
        calls += calls_per_poll
        now_uj = meter.read_uj()
        if now_uj != before_uj:
            return now_uj, calls
        if clock() - begin_ns > PATIENCE_S * 1e9:
            raise TargetError(
                f"the energy meter {meter.name} stands still: it has shown {now_uj} uJ for "
                f"{PATIENCE_S:g} s of work",
                hint="virtual machines often hand through a counter that does not count; measure "
                "latency alone, or meter on the device itself",
            )
