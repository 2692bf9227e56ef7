"""Small operators, headers, settings and a made-up device that the profilers' tests share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.core.environment import provenance, this_device
from hwnas.core.errors import TargetError
from hwnas.core.progress import SILENT
from hwnas_profilers import profiler
from hwnas_profilers.models import OnnxModels
from hwnas_profilers.profiler import Compiled, Profiler
from hwnas_profilers.records import EnergyStatistics, TableHeader
from hwnas_profilers.targets import parse_target
from hwnas_profilers.timing import TimingSettings, Visit
from hwnas_profilers.workload import Operator, OperatorKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from hwnas.core.environment import Device
    from hwnas.core.progress import Progress
    from hwnas_profilers.conditions import MachineState
    from hwnas_profilers.workload import Workload


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def exported() -> OnnxModels:
    return OnnxModels()


@pytest.fixture
def shared_models(exported: OnnxModels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all profilers export into one place: the same few operators, again and again."""
    monkeypatch.setattr(profiler, "OnnxModels", lambda: exported)


@pytest.fixture
def header() -> TableHeader:
    return TableHeader(
        target="onnxruntime-cpu",
        space="tiny",
        space_spec={"width": 8},
        space_fingerprint="abc",
        threads=1,
        batch=1,
        dtype="fp32",
        settings={},
        provenance=provenance(),
    )


@pytest.fixture
def quick() -> TimingSettings:
    return TimingSettings(
        relative_width=0.5,
        min_samples=8,
        max_samples=12,
        samples_per_round=4,
        warmup_calls=1,
        min_sample_us=20,
    )


@pytest.fixture
def make_operator() -> Callable[[int], Operator]:
    def make(width: int) -> Operator:
        return Operator(
            name=f"conv to {width}",
            build=lambda: nn.Sequential(
                nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
            ).eval(),
            input_shape=(1, 3, 8, 8),
            key=OperatorKey(kind="conv", in_shape=(3, 8, 8), out_shape=(width, 8, 8), kernel=3),
        )

    return make


class MadeUpDevice(Profiler):
    """A profiler of a device that does as it is told; nothing is built and no time passes.

    Attributes:
        refused: Names of workloads that it refuses, and why.
        latencies_us: Latency by name; by default 10 microseconds per character of the name.
        rounds_us: Latencies of a name in each round, where they differ.
        loadings_us: Latencies of a name each time that it is loaded, where they differ.
        states: Readings of the machine, one after the other; None once they are used up.
        microjoules: Energy of a call; None where it cannot tell.
        visits_left: Visits of a workload until Ctrl-C; negative for never.
        measured: Names of the workloads that were compiled, in order.
    """

    def __init__(self, target: str = "torch-cpu", threads: int = 1) -> None:
        super().__init__(parse_target(target), threads)
        self.refused: dict[str, str] = {}
        self.latencies_us: dict[str, float] = {}
        self.rounds_us: dict[str, list[float]] = {}
        self.loadings_us: dict[str, list[float]] = {}
        self.states: list[MachineState] = []
        self.microjoules: float | None = None
        self.visits_left = -1
        self.measured: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    @property
    def device(self) -> Device:
        return this_device()

    @property
    def packages(self) -> dict[str, str]:
        return {"made-up": "1.0"}

    def facts(self) -> dict[str, str]:
        return {"power mode": "15 W"}

    @contextmanager
    def compiled(
        self, workloads: Sequence[Workload], *, seed: int = 0, progress: Progress = SILENT
    ) -> Iterator[Compiled]:
        names = [workload.name for workload in workloads]
        self.measured += names
        accepted = tuple(index for index, name in enumerate(names) if name not in self.refused)
        yield Compiled(
            bench=_MadeUpBench(self, [names[index] for index in accepted]),
            accepted=accepted,
            rejected={
                index: self.refused[name]
                for index, name in enumerate(names)
                if name in self.refused
            },
        )

    def energies(
        self, workloads: Sequence[Workload], *, seed: int = 0, progress: Progress = SILENT
    ) -> list[EnergyStatistics | None]:
        if self.microjoules is None:
            raise TargetError("no meter here")
        uj = self.microjoules
        return [
            None
            if workload.name in self.refused
            else EnergyStatistics(n=6, median_uj=uj, low_uj=uj, high_uj=uj)
            for workload in workloads
        ]


class _MadeUpBench:
    def __init__(self, device: MadeUpDevice, names: list[str]) -> None:
        self._device, self._names = device, names
        self._rounds = [0] * len(names)
        self._loading = [names[:index].count(name) for index, name in enumerate(names)]

    def prepare(self, index: int, settings: TimingSettings) -> None:
        pass

    def visit(self, indices: Sequence[int], samples: Sequence[int]) -> Iterator[Visit]:
        for index, count in zip(indices, samples, strict=True):
            if self._device.visits_left == 0:
                raise KeyboardInterrupt
            self._device.visits_left -= 1
            name = self._names[index]
            by_round = self._device.rounds_us.get(name)
            usual_us = self._device.latencies_us.get(name, 10.0 * len(name))
            if name in self._device.loadings_us:
                usual_us = self._device.loadings_us[name][self._loading[index]]
            number, self._rounds[index] = self._rounds[index], self._rounds[index] + 1
            yield Visit(samples_us=np.full(count, by_round[number] if by_round else usual_us))

    def state(self) -> MachineState | None:
        return self._device.states.pop(0) if self._device.states else None


@pytest.fixture
def device() -> MadeUpDevice:
    return MadeUpDevice()


@pytest.fixture
def make_device() -> type[MadeUpDevice]:
    return MadeUpDevice
