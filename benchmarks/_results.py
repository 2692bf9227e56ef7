"""What every benchmark here shares: rivals timed interleaved in one run, raw samples written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance
from hwnas_export.runner import host_sampler
from hwnas_profilers.timing import RoundLog, TimingSettings, time_interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RESULTS = Path(__file__).parent / "results"


def compare(
    name: str,
    rivals: Mapping[str, Callable[[], object]],
    *,
    baseline: str,
    samples: int,
    facts: Mapping[str, object],
) -> None:
    """Time rivals in shuffled rounds, print medians and ratios, and write every sample.

    Args:
        name: Name of the result's file.
        rivals: What to time, by name.
        baseline: The rival that the others are related to.
        samples: Samples of each, one call each.
        facts: What else one must know to repeat it.
    """
    settings = TimingSettings(
        relative_width=1e-6,  # never reached: every rival gets the same number of samples
        min_samples=samples,
        max_samples=samples,
        samples_per_round=1,
        warmup_calls=2,
        min_sample_us=0.0,
        max_disturbed=0.0,  # rivals are related to each other, and some take minutes to repeat
    )
    log = RoundLog()
    found = time_interleaved([host_sampler(call) for call in rivals.values()], settings, log=log)
    timed = {rival: each.samples_us for rival, each in zip(rivals, found, strict=True)}
    base = np.median(timed[baseline])
    for rival, samples_us in timed.items():
        low, median, high = np.percentile(samples_us, [10, 50, 90]) / 1e3
        sys.stdout.write(
            f"{name}: {rival:<28} median {median:9.2f} ms  p10 {low:9.2f}  p90 {high:9.2f}  "
            f"{base / np.median(samples_us):5.2f}x  n={len(samples_us)}\n"
        )
    document = {
        "benchmark": name,
        "baseline": baseline,
        "facts": dict(facts),
        "rounds": {"kept": log.kept, "noisy": log.noisy},
        "samples_us": {rival: samples_us.tolist() for rival, samples_us in timed.items()},
        "provenance": provenance(),
    }
    write_atomically(RESULTS / f"{name}.json", encode_json(document, indent=1))
