"""The contract of a profiler: it compiles workloads for one target, and times them in rounds.

There are two: `local` compiles and measures on this machine, `remote` sends the models to a board.
What is built on it (tables, calibration, single engines) does not know which one it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, final

import numpy as np

from hwnas.core.errors import ExportError
from hwnas.core.progress import SILENT
from hwnas_profilers.models import OnnxModels
from hwnas_profilers.statistics import summarize
from hwnas_profilers.targets import require_target
from hwnas_profilers.timing import (
    RoundLog,
    Timed,
    time_in_rounds,
    time_interleaved,
    without_odd_loadings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    import onnx

    from hwnas.core.environment import Device
    from hwnas.core.progress import Progress
    from hwnas_export.memory import ModelMemory
    from hwnas_export.runner import Runner
    from hwnas_profilers.records import EnergyStatistics, Statistics
    from hwnas_profilers.targets import Target
    from hwnas_profilers.timing import Bench, TimingSettings
    from hwnas_profilers.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """Workloads that are ready to be timed.

    Attributes:
        bench: Holds those that the runtime takes, in the order of `accepted`.
        accepted: Their indices.
        rejected: Why the runtime refuses the others, by index, in its own words.
    """

    bench: Bench
    accepted: tuple[int, ...]
    rejected: dict[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTiming:
    """The latency of one whole network, measured twice in separate rounds.

    Attributes:
        statistics: Over all samples.
        first_us: Median over the first, third, ... round.
        second_us: Median over the rounds between: of another loading, where there are several.
    """

    statistics: Statistics
    first_us: float
    second_us: float


class Profiler(ABC):
    """Measures workloads with one runtime on one device; a context manager that holds both.

    Args:
        target: What to measure on.
        threads: Threads within an operator, where the target is a processor.
    """

    def __init__(self, target: Target, threads: int = 1) -> None:
        self.target = target
        self.threads = threads
        self.models = OnnxModels()
        self.loadings = 1
        """How often a whole network is loaded where it is timed."""
        self.log = RoundLog()
        """What the rounds were like, over all that was timed."""

    @abstractmethod
    def __enter__(self) -> Self:
        """Take the device."""

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give it back."""

    @property
    @abstractmethod
    def device(self) -> Device:
        """The device that is measured."""

    @property
    @abstractmethod
    def packages(self) -> dict[str, str]:
        """Versions of the libraries on the device, by package."""

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """What else the device says of itself now, e.g. its power mode."""

    @abstractmethod
    def compiled(
        self, workloads: Sequence[Workload], *, seed: int = 0, progress: Progress = SILENT
    ) -> AbstractContextManager[Compiled]:
        """Compile workloads, bind each to an input drawn with the seed, and hold them.

        A workload that cannot be exported, or that the runtime refuses, is left out with the words
        of who refused it.
        """

    @abstractmethod
    def energies(
        self, workloads: Sequence[Workload], *, seed: int = 0, progress: Progress = SILENT
    ) -> list[EnergyStatistics | None]:
        """Measure the energy of a call of each workload; None of those that are refused.

        Raises:
            TargetError: The target cannot tell.
        """

    @final
    def time(
        self,
        workloads: Sequence[Workload],
        settings: TimingSettings,
        *,
        on_finished: Callable[[int, Timed], None] | None = None,
        on_rejected: Callable[[int, str], None] | None = None,
        progress: Progress = SILENT,
    ) -> list[Timed | None]:
        """Compile workloads and time them in shuffled rounds.

        Args:
            workloads: All are held compiled at once, so that drift hits all alike.
            settings: When to stop.
            on_finished: Told the index and samples of each as it finishes.
            on_rejected: Told the index and reason of each that is refused, before the timing.
            progress: Where to report.

        Returns:
            The samples of each workload; None of those that are refused.
        """
        timed: list[Timed | None] = [None] * len(workloads)
        with self.compiled(workloads, seed=settings.seed, progress=progress) as compiled:
            if on_rejected is not None:
                for index, reason in compiled.rejected.items():
                    on_rejected(index, reason)

            def finished(place: int, samples: Timed) -> None:
                if on_finished is not None:
                    on_finished(compiled.accepted[place], samples)

            found = time_in_rounds(
                compiled.bench,
                len(compiled.accepted),
                settings,
                log=self.log,
                on_finished=finished,
                progress=progress,
            )
        for index, samples in zip(compiled.accepted, found, strict=True):
            timed[index] = samples
        return timed

    @final
    def time_networks(
        self,
        workloads: Sequence[Workload],
        settings: TimingSettings,
        *,
        progress: Progress = SILENT,
    ) -> list[NetworkTiming]:
        """Time whole networks in shuffled rounds, each of which the runtime must take.

        Each is loaded `loadings` times, which share its samples: see `without_odd_loadings`.

        Raises:
            ExportError: It refuses one.
        """

        def refuse(index: int, reason: str) -> None:
            raise ExportError(f"{self.target} refuses {loaded[index].name}: {reason}")

        times = self.loadings
        loaded = [workload for workload in workloads for _ in range(times)]
        shared = settings.shared_by(times)
        timed = self.time(loaded, shared, on_rejected=refuse, progress=progress)
        found = [samples for samples in timed if samples is not None]
        return [_network_timing(samples) for samples in without_odd_loadings(found, times)]

    @final
    def memory_of(self, workload: Workload) -> ModelMemory | None:
        """Compute what a workload keeps in memory, from the model that the runtime is given.

        Returns:
            None where the target compiles no ONNX model, or the model's sizes are not known.
        """
        if self.target.runtime.takes != "onnx":
            return None
        from hwnas_export.memory import memory_of_onnx

        try:
            return memory_of_onnx(self.onnx_of(workload))
        except ExportError:  # the runtime takes it all the same: its latency is worth keeping
            return None

    @final
    def onnx_of(self, workload: Workload) -> onnx.ModelProto:
        """Return the ONNX model that the runtime is given.

        Raises:
            ExportError: The workload cannot be exported, or not in this precision.
        """
        runtime = self.target.runtime
        return self.models.model_of(workload, runtime.precision, symmetric=runtime.symmetric)


def profiler_for(target: str, *, threads: int = 1) -> Profiler:
    """Make the profiler of a target string; no device is touched before it is entered.

    Raises:
        TargetError: The target is unknown, or cannot be used here.
    """
    parsed = require_target(target)
    if parsed.destination:
        from hwnas_profilers.remote import RemoteProfiler

        return RemoteProfiler(parsed, threads)
    from hwnas_profilers.local import LocalProfiler

    return LocalProfiler(parsed, threads)


def time_runner(
    runner: Runner,
    *,
    settings: TimingSettings,
    batch: int = 1,
    progress: Progress = SILENT,
) -> Statistics:
    """Time one active runner, e.g. an engine that is to be verified.

    Args:
        runner: An active runner.
        settings: How exactly.
        batch: Images per call, where the runner leaves that free.
        progress: Where to report.
    """
    sampler = runner.sampler_on(normal_input(runner, np.random.default_rng(settings.seed), batch))
    (timed,) = time_interleaved([sampler], settings, progress=progress)
    return summarize(timed.samples_us)


def normal_input(
    runner: Runner, generator: np.random.Generator, batch: int = 1
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Draw an input as normal as activations are: zeros or denormals may run at another speed."""
    own_batch, *rest = runner.input_shape
    return generator.standard_normal((own_batch or batch, *rest), dtype=np.float32)


def _network_timing(timed: Timed) -> NetworkTiming:
    return NetworkTiming(
        statistics=summarize(timed.samples_us),
        first_us=float(np.median(np.concatenate(timed.rounds[0::2]))),
        second_us=float(np.median(np.concatenate(timed.rounds[1::2]))),
    )
