"""Measuring on this machine, through the runners that deployment uses."""

from __future__ import annotations

import importlib
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np

from hwnas.core.environment import installed_packages, this_device
from hwnas.core.errors import ExportError
from hwnas.core.progress import SILENT
from hwnas.core.threads import torch_threads
from hwnas_profilers.profiler import Compiled, Profiler, normal_input
from hwnas_profilers.timing import LOADINGS, LocalBench

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from hwnas.core.environment import Device
    from hwnas.core.progress import Progress
    from hwnas_export.runner import Runner, Sampler
    from hwnas_profilers.records import EnergyStatistics
    from hwnas_profilers.targets import Target
    from hwnas_profilers.workload import Workload


@final
class LocalProfiler(Profiler):
    """Compiles and times on the machine that it runs on."""

    def __init__(self, target: Target, threads: int = 1) -> None:
        super().__init__(target, threads)
        if target.runtime.device == "cpu":  # not seen on a GPU, where compiling takes minutes
            self.loadings = LOADINGS
        self._latest: tuple[Workload, bytes] | None = None

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        scratch = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="hwnas-"))
        self._timing_cache = Path(scratch) / "timing.cache"
        if self.target.runtime.takes == "torch" and self.target.runtime.device == "cpu":
            # ONNX Runtime's threads belong to the compiled session, torch's to the process.
            self._stack.enter_context(torch_threads(self.threads))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def device(self) -> Device:
        """See `Profiler`."""
        return this_device(self.target.runtime.device)

    @property
    def packages(self) -> dict[str, str]:
        """See `Profiler`."""
        return installed_packages()

    def facts(self) -> dict[str, str]:
        """See `Profiler`."""
        return {}

    @contextmanager
    def compiled(
        self, workloads: Sequence[Workload], *, seed: int = 0, progress: Progress = SILENT
    ) -> Iterator[Compiled]:
        """See `Profiler`."""
        with self._samplers(workloads, seed, progress) as (samplers, accepted, rejected):
            yield Compiled(bench=LocalBench(samplers), accepted=tuple(accepted), rejected=rejected)

    def energies(
        self, workloads: Sequence[Workload], *, seed: int = 0, progress: Progress = SILENT
    ) -> list[EnergyStatistics | None]:
        """See `Profiler`."""
        from hwnas_profilers.energy import energy_meter_for, measure_energy_uj

        meter = energy_meter_for(self.target.runtime.device)
        found: list[EnergyStatistics | None] = [None] * len(workloads)
        with (
            self._samplers(workloads, seed, progress) as (samplers, accepted, _),
            progress.task("metering", len(accepted)) as task,
        ):
            for index, sampler in zip(accepted, samplers, strict=True):
                found[index] = measure_energy_uj(sampler, meter)
                task.advance(note=workloads[index].name)
        return found

    @contextmanager
    def _samplers(
        self, workloads: Sequence[Workload], seed: int, progress: Progress
    ) -> Iterator[tuple[list[Sampler], list[int], dict[int, str]]]:
        """Compile workloads and hold them active: samplers, their indices, and the refusals."""
        generator = np.random.default_rng(seed)
        samplers: list[Sampler] = []
        accepted: list[int] = []
        rejected: dict[int, str] = {}
        if self.target.runtime.takes == "onnx":
            self.models.export(workloads, progress=progress)
        with ExitStack() as stack:
            with progress.task("compiling", len(workloads)) as task:
                for index, workload in enumerate(workloads):
                    try:
                        runner = stack.enter_context(self._runner(workload))
                        input_ = normal_input(runner, generator, workload.input_shape[0])
                        samplers.append(runner.sampler_on(input_))
                        accepted.append(index)
                    except ExportError as error:
                        rejected[index] = error.message
                    task.advance(note=workload.name)
            yield samplers, accepted, rejected

    def _runner(self, workload: Workload) -> Runner:
        runtime = self.target.runtime
        module, _, name = runtime.runner.partition(":")
        make = getattr(importlib.import_module(module), name)
        options: dict[str, Any] = dict(runtime.options)
        if runtime.takes == "torch":
            runner: Runner = make(workload.build(), workload.input_shape, **options)
            return runner
        if self._latest is None or self._latest[0] is not workload:  # its next loading is free
            self._latest = (workload, self.onnx_of(workload).SerializeToString())
        model = self._latest[1]
        if runtime.symmetric:  # TensorRT: what it learned of one operator serves the next
            options["timing_cache"] = self._timing_cache
        runner = make(model, threads=self.threads, **options)
        return runner
