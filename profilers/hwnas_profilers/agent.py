"""What runs on the machine that is measured: visits of compiled models, and that machine's state.

This file is two things. `hwnas_profilers` imports it to measure on the machine that it runs on; and
`hwnas_profilers.remote` sends its text over ssh to a board, where it is the whole program. So it is
written for Python 3.8 and needs numpy and a runtime only, and both ways measure with the same code.
Which model is visited when, and when to stop, is decided by `hwnas_profilers.timing`, on the host.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_CALLS_PER_SAMPLE = 1_000_000
_PILOT = b"\0" * 16384
_PILOT_TRIES = 3
# The Raspberry Pi is the one board that tells everybody of throttling, and here.
_THROTTLE_FILE = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")


def calls_per_sample(
    sample: Callable[[int], float], warmup_calls: int, min_sample_us: float
) -> int:
    """Warm a call up and find how many of them last as long as a sample must.

    Args:
        sample: Makes that many calls and returns the nanoseconds that they took.
        warmup_calls: Calls made before anything is timed.
        min_sample_us: How long a sample must last.
    """
    if warmup_calls:
        sample(warmup_calls)
    count = 1
    while count < MAX_CALLS_PER_SAMPLE:
        elapsed_us = sample(count) / 1000
        if elapsed_us >= min_sample_us:
            break
        # At least doubled, so that it ends; at most tenfold, as one short try says little.
        growth = min_sample_us / elapsed_us if elapsed_us > 0 else 10.0
        count = min(math.ceil(count * min(max(growth, 2.0), 10.0)), MAX_CALLS_PER_SAMPLE)
    return count


def take_samples(sample: Callable[[int], float], samples: int, span: int) -> list[float]:
    """Take one visit's samples; returns microseconds per call of each.

    Args:
        sample: Makes that many calls and returns the nanoseconds that they took.
        samples: How many to take.
        span: Calls per sample.
    """
    # Filled beforehand, so that nothing grows between the samples.
    elapsed_ns = [0.0] * samples
    # Another workload ran just before: its data is in the caches. One sample goes unrecorded.
    sample(span)
    collects = gc.isenabled()
    gc.disable()  # Python's cyclic collector stays out of the samples
    try:
        for index in range(samples):
            elapsed_ns[index] = sample(span)
    finally:
        if collects:
            gc.enable()
    return [elapsed / (1000 * span) for elapsed in elapsed_ns]


def machine_state() -> dict[str, Any]:
    """Read the state of this machine's processors; what cannot be read is None.

    Returns:
        at_ns: Time of the reading.
        cores: Cores that the counters below speak of.
        own_ns: Processor time of this process so far.
        busy_ns: Processor time of everything, stolen time of a virtual machine included.
        tick_ns: What `busy_ns` is exact to, over all cores.
        pilot_ns: Fastest of a few runs of one fixed computation: it follows the clock alone.
        temperature_c: Hottest thermal zone.
        clock_mhz: Mean frequency that the system reports.
        throttled: Throttling flags as the board words them; empty where it has none.
    """
    busy_ns, tick_ns, cores = _busy()
    return {
        "at_ns": time.perf_counter_ns(),
        "cores": cores,
        "own_ns": time.process_time_ns(),
        "busy_ns": busy_ns,
        "tick_ns": tick_ns,
        "pilot_ns": _pilot_ns(),
        "temperature_c": _temperature_c(),
        "clock_mhz": _clock_mhz(),
        "throttled": _text(_THROTTLE_FILE),
    }


def _busy() -> tuple[int | None, int | None, int]:
    """Return the processor time used by all, what it is exact to, and the cores; None unread."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None, None, os.cpu_count() or 1
    cores = sum(line.startswith("cpu") for line in lines) - 1
    # user nice system idle iowait irq softirq steal
    fields = [int(field) for field in lines[0].split()[1:9]]
    fields += [0] * (8 - len(fields))
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    busy = sum(fields[:3]) + sum(fields[5:8])
    return busy * tick_ns, cores * tick_ns, cores


def _pilot_ns() -> float:
    fastest = math.inf
    for _ in range(_PILOT_TRIES):
        begin = time.perf_counter_ns()
        hashlib.sha256(_PILOT).digest()
        fastest = min(fastest, time.perf_counter_ns() - begin)
    return fastest


@functools.lru_cache(maxsize=None)  # noqa: UP033 (Python 3.8 has no `cache`)
def _paths(pattern: str) -> list[Path]:
    return list(Path("/sys").glob(pattern))


def _temperature_c() -> float | None:
    readings = []
    for path in _paths("class/thermal/thermal_zone*/temp"):
        try:
            readings.append(int(_text(path)) / 1000)
        except ValueError:  # a zone that is switched off reads as nothing
            continue
    return max(readings) if readings else None


def _clock_mhz() -> float | None:
    readings = []
    for path in _paths("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"):
        try:
            readings.append(int(_text(path)) / 1000)
        except ValueError:
            continue
    return sum(readings) / len(readings) if readings else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip().rstrip("\0")
    except (OSError, UnicodeDecodeError):
        return ""
