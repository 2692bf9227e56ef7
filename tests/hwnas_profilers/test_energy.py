from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.core.errors import ConfigError, DataError, TargetError
from hwnas_profilers.energy import (
    PATIENCE_S,
    energy_statistics,
    measure_energy_uj,
    metered_window_uj,
    plan_window,
)

BUSY_W, IDLE_W = 50.0, 10.0


@dataclass
class Device:
    """A device that takes more power while it works, its clock, and a counter that ticks."""

    call_us: float = 20.0
    tick_ms: float = 1.0
    read_us: float = 20.0
    resolution_uj: int = 1
    name: str = "fake"
    broken: bool = False
    now_ns: float = 0.0
    asked: list[int] = field(default_factory=list)
    _joules: float = 0.0
    _shown: tuple[int, int] = (0, 0)

    def sampler(self, calls: int) -> float:
        self.asked.append(calls)
        self._spend(calls * self.call_us * 1e3, BUSY_W)
        return calls * self.call_us * 1e3

    def read_uj(self) -> int:
        self._spend(self.read_us * 1e3, IDLE_W)
        return self._shown[1]

    def clock(self) -> int:
        return int(self.now_ns)

    def _spend(self, ns: float, watts: float) -> None:
        """Let time pass; what the counter shows is what it was at the last tick."""
        tick_ns = self.tick_ms * 1e6
        last = int((self.now_ns + ns) / tick_ns)
        if last > self._shown[0] and not self.broken:
            until_ns = last * tick_ns - self.now_ns
            at_tick_uj = 1e6 * (self._joules + until_ns * 1e-9 * watts)
            self._shown = (last, int(at_tick_uj / self.resolution_uj) * self.resolution_uj)
        self._joules += ns * 1e-9 * watts
        self.now_ns += ns


@pytest.mark.parametrize(
    ("call_us", "tick_ms", "read_us", "resolution_uj"),
    [
        (3, 1, 20, 61),  # a small operator on a processor
        (4_000, 1, 20, 61),
        (15, 20, 500, 1_000),  # a GPU
        (15, 100, 2_000, 1_000),
        (250_000, 100, 2_000, 1_000),  # a large network: one call lasts longer than a tick
        (15, 900, 2_000, 1_000),  # a tick lasts longer than a window
        (15, 1, 20, 5_000_000),  # a coarse meter: windows must be longer
    ],
)
def test_the_energy_of_a_call_is_its_time_times_the_power(
    call_us: float, tick_ms: float, read_us: float, resolution_uj: int
) -> None:
    device = Device(call_us=call_us, tick_ms=tick_ms, read_us=read_us, resolution_uj=resolution_uj)
    found = measure_energy_uj(device.sampler, device, clock=device.clock)
    assert found.median_uj == pytest.approx(BUSY_W * call_us, rel=0.02)
    assert found.low_uj <= found.median_uj <= found.high_uj
    assert found.n == 6


def test_windows_last_as_long_as_asked_and_rest_is_not_subtracted() -> None:
    device = Device()
    window = plan_window(device.sampler, device, seconds=0.5, clock=device.clock)
    begin = device.clock()
    energy_uj = metered_window_uj(device.sampler, device, window, clock=device.clock)
    assert 0.5 <= (device.clock() - begin) * 1e-9 < 0.6
    # All of the power while it works, not what is above its power at rest.
    assert energy_uj > 1.1 * (BUSY_W - IDLE_W) * device.call_us


def test_a_sampler_is_never_asked_for_a_whole_window_at_once() -> None:
    device = Device(call_us=1.0)
    measure_energy_uj(device.sampler, device, seconds=1.0, repeats=1, clock=device.clock)
    assert max(device.asked) * 1e-6 <= 0.051


def test_the_device_is_busy_while_a_tick_is_waited_for() -> None:
    device = Device(tick_ms=100, read_us=2_000)
    window = plan_window(device.sampler, device, clock=device.clock)
    assert window.calls_per_poll * device.call_us >= 10 * device.read_us


def test_a_meter_that_stands_still_is_an_error_and_no_zero() -> None:
    device = Device(broken=True)
    with pytest.raises(TargetError, match="stands still: it has shown 0 uJ"):
        measure_energy_uj(device.sampler, device, clock=device.clock)
    assert device.now_ns * 1e-9 < PATIENCE_S + 1


def test_a_meter_that_stops_within_a_window_is_an_error() -> None:
    device = Device()
    window = plan_window(device.sampler, device, clock=device.clock)
    stops_at = device.now_ns + 0.2e9

    def sampler(calls: int) -> float:
        device.broken = device.broken or device.now_ns > stops_at
        return device.sampler(calls)

    with pytest.raises(TargetError, match="stands still"):
        metered_window_uj(sampler, device, window, clock=device.clock)


@pytest.mark.parametrize(("seconds", "repeats"), [(0.0, 6), (float("nan"), 6), (0.5, 0)])
def test_senseless_settings_are_refused(seconds: float, repeats: int) -> None:
    device = Device()
    with pytest.raises(ConfigError, match=r"seconds is|repeats is"):
        measure_energy_uj(
            device.sampler, device, seconds=seconds, repeats=repeats, clock=device.clock
        )


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=40))
def test_the_interval_holds_the_median(windows: list[float]) -> None:
    found = energy_statistics(np.array(windows))
    ordered = sorted(windows)
    assert found.n == len(windows)
    assert ordered[0] <= found.low_uj <= found.median_uj <= found.high_uj <= ordered[-1]
    if len(windows) < 7:  # six are the fewest with a 95 % interval: all of them
        assert (found.low_uj, found.high_uj) == (ordered[0], ordered[-1])


@pytest.mark.parametrize("windows", [[], [1.0, 0.0], [1.0, float("nan")], [-1.0]])
def test_windows_without_energy_are_refused(windows: list[float]) -> None:
    with pytest.raises(DataError, match=r"no window|not finite"):
        energy_statistics(np.array(windows))
