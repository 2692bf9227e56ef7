"""What our timing loop adds to a bare one: to what is recorded, and to how long it takes.

64 samplers are timed by `time_interleaved`, as a table's operators are, and a bare loop (read the
clock, call, read the clock) takes turns with it in one run.

    inflation    what our samplers record of one empty call, less what the bare loop records of it:
                 means of the middle 80 % of a turn's samples
    wall         how long our loop takes per sample beside the samples: shuffling, reading the
                 machine's state, deciding when to stop; by samplers that take no time
    bare wall    how long the bare loop takes per sample beside the samples

Not in it, as it is no cost of the loop but a choice: each visit begins with a sample that is not
recorded, one more for every six.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance
from hwnas_export.runner import host_sampler
from hwnas_profilers.timing import TimingSettings, time_interleaved

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hwnas_export.runner import Sampler

    Floats = NDArray[np.float64]

RESULTS = Path(__file__).parents[1] / "results" / "latency"
WORKLOADS = 64
SAMPLES = 60
TURNS = 60
SETTINGS = TimingSettings(
    relative_width=1e-6,  # never reached: all get the same number of samples
    min_samples=SAMPLES,
    max_samples=SAMPLES,
    min_sample_us=0.0,  # a sample is one call
    max_disturbed=0.0,  # nothing is repeated
)


def empty() -> None:
    """Do nothing."""


def in_no_time(calls: int) -> float:
    """Make no call, and say that it took as long as a sample of a table does."""
    return 100_000.0


def bare_loop() -> tuple[Floats, float]:
    """Return what it records of each call, and its wall time per sample beside; microseconds."""
    clock, call, samples = time.perf_counter_ns, empty, WORKLOADS * SAMPLES
    elapsed_ns = [0] * samples
    begin = clock()
    for index in range(samples):
        before = clock()
        call()
        after = clock()
        elapsed_ns[index] = after - before
    wall_ns = clock() - begin
    return np.array(elapsed_ns) / 1e3, (wall_ns - sum(elapsed_ns)) / 1e3 / samples


def our_loop(sampler: Sampler, settings: TimingSettings) -> tuple[Floats, float]:
    """Return what it records, and its whole wall time per sample; microseconds."""
    begin = time.perf_counter_ns()
    timed = time_interleaved([sampler] * WORKLOADS, settings)
    wall_ns = time.perf_counter_ns() - begin
    recorded_us = np.concatenate([each.samples_us for each in timed])
    return recorded_us, wall_ns / 1e3 / recorded_us.size


def middle_mean(samples_us: Floats) -> float:
    """Return the mean of the middle 80 %: a median would be of the clock's resolution."""
    low, high = np.percentile(samples_us, [10, 90])
    return float(samples_us[(samples_us >= low) & (samples_us <= high)].mean())


def main() -> None:
    """Measure, print and write."""
    long_samples = replace(SETTINGS, min_sample_us=100.0)
    rivals: dict[str, Callable[[], tuple[Floats, float]]] = {
        "bare": bare_loop,
        "ours": lambda: our_loop(host_sampler(empty), SETTINGS),
        "ours in no time": lambda: our_loop(in_no_time, long_samples),
    }
    generator = np.random.default_rng(0)
    turns: dict[str, list[tuple[Floats, float]]] = {name: [] for name in rivals}
    for turn in range(TURNS + 1):
        for name in map(str, generator.permutation(list(rivals))):
            result = rivals[name]()
            if turn:  # the first one warms up
                turns[name].append(result)
    recorded_us = {
        name: np.array([middle_mean(recorded_us) for recorded_us, _ in results])
        for name, results in turns.items()
    }
    figures = {
        "bare_recorded_us": recorded_us["bare"],
        "ours_recorded_us": recorded_us["ours"],
        "inflation_us": recorded_us["ours"] - recorded_us["bare"],
        "bare_wall_us": np.array([wall_us for _, wall_us in turns["bare"]]),
        "ours_wall_us": np.array([wall_us for _, wall_us in turns["ours in no time"]]),
    }
    for name, values in figures.items():
        p10, median, p90 = np.percentile(values, [10, 50, 90])
        sys.stdout.write(
            f"{name:<18} median {median:7.4f}  p10 {p10:7.4f}  p90 {p90:7.4f}  per sample, "
            f"n={len(values)} turns of {WORKLOADS} x {SAMPLES} samples\n"
        )
    document = {
        "benchmark": "latency/loop_overhead",
        "facts": {"workloads": WORKLOADS, "samples": SAMPLES, "turns": TURNS},
        "turns": {name: values.tolist() for name, values in figures.items()},
        "last_turn_us": {name: turns[name][-1][0].tolist() for name in ("bare", "ours")},
        "provenance": provenance(),
    }
    write_atomically(RESULTS / "loop_overhead.json", encode_json(document, indent=1))


if __name__ == "__main__":
    main()
