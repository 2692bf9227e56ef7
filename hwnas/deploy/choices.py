"""What is chosen by measurement when an engine is made: session settings, and whether it pays.

Whatever is compared is timed in one interleaved run, so that the machine's moods hit all alike, and
the usual is kept unless another is clearly faster: unless the interval of its median lies below.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.progress import SILENT
from hwnas.deploy.records import LatencyChoice
from hwnas_profilers.profiler import normal_input
from hwnas_profilers.statistics import summarize
from hwnas_profilers.timing import TimingSettings, time_interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hwnas.core.progress import Progress
    from hwnas_export.runner import Runner, Sampler
    from hwnas_profilers.records import Statistics

TIMING = TimingSettings(relative_width=0.01, min_samples=60, max_samples=120, min_sample_us=200.0)
"""A tenth of a second and more for each: differences that matter are of several percent."""

_WORTH_IT = 0.02
"""What a session must gain: less is no reason to run with other settings than the table's."""

_HOPELESS = 1.25
_LOOKS = 3


def fastest(statistics: Sequence[Statistics], *, least_gain: float = 0.0) -> int:
    """Return the index of what is clearly faster than the first, and the fastest such; else 0.

    Args:
        statistics: The usual first, then what might replace it.
        least_gain: Share of the usual latency by which the intervals must be apart.
    """
    bound_us = (1 - least_gain) * statistics[0].low_us
    clearly = [index for index, each in enumerate(statistics) if each.high_us < bound_us]
    return min(clearly, key=lambda index: statistics[index].median_us, default=0)


def chosen_session(
    runner_with: Callable[[Mapping[str, str]], Runner],
    candidates: Sequence[Mapping[str, str]],
    *,
    batch: int = 1,
    timing: TimingSettings = TIMING,
    progress: Progress = SILENT,
) -> dict[str, str]:
    """Choose a runtime's settings for a model on this machine.

    What wins is timed once more against the usual settings and must win again: of several that
    are equal one is the fastest by chance.

    Args:
        runner_with: Makes the model's runner with given settings, not yet active.
        candidates: Settings that might be faster than none.
        batch: Images per call.
        timing: How long to time.
        progress: Where to report.

    Returns:
        The settings; empty where the usual ones are kept.
    """
    sessions: list[Mapping[str, str]] = [{}, *candidates]
    with ExitStack() as stack:
        runners = [stack.enter_context(runner_with(session)) for session in sessions]
        samplers = _samplers(runners, batch)
        kept = _not_hopeless(samplers)
        found = _timed([samplers[index] for index in kept], timing, progress)
        winner = kept[fastest(found, least_gain=_WORTH_IT)]
        if winner:
            again = _timed([samplers[0], samplers[winner]], timing, progress)
            if fastest(again, least_gain=_WORTH_IT):
                return dict(sessions[winner])
    return {}


def latency_choice(
    engine: Runner,
    fp32: Runner,
    *,
    batch: int = 1,
    timing: TimingSettings = TIMING,
    progress: Progress = SILENT,
) -> LatencyChoice:
    """Time an engine beside the one in FP32.

    Args:
        engine: An active runner.
        fp32: Another.
        batch: Images per call.
        timing: How long to time.
        progress: Where to report.
    """
    usual, other = _timed(_samplers([fp32, engine], batch), timing, progress)
    return LatencyChoice(batch=batch, engine=other, fp32=usual, pays=fastest([usual, other]) == 1)


def _samplers(runners: Sequence[Runner], batch: int) -> list[Sampler]:
    # The same input for all: some operators take a different time for other values.
    return [
        runner.sampler_on(normal_input(runner, np.random.default_rng(0), batch))
        for runner in runners
    ]


def _not_hopeless(samplers: Sequence[Sampler]) -> list[int]:
    """Return the indices of what is worth timing: some settings cost ten times the latency."""
    best_ns = []
    for sample in samplers:
        sample(1)  # the first call allocates
        best_ns.append(min(sample(1) for _ in range(_LOOKS)))
    return [index for index, ns in enumerate(best_ns) if index == 0 or ns < _HOPELESS * best_ns[0]]


def _timed(
    samplers: Sequence[Sampler], timing: TimingSettings, progress: Progress
) -> list[Statistics]:
    timed = time_interleaved(samplers, timing, progress=progress)
    return [summarize(each.samples_us) for each in timed]
