"""20,000 operators: profile, load, calibrate and answer, with a made-up device.

A synthetic profiler stands in for the device: its samples follow a law and some noise, at once. So
what is measured is hwnas itself: rounds, statistics, the table's file, the fit and the look-ups.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self, final

import msgspec
import numpy as np

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import Device, provenance, this_device
from hwnas.core.progress import SILENT, Progress
from hwnas.latency.fit import fit_latency
from hwnas.latency.in_network import OperatorCosts
from hwnas.latency.model import LatencyModel
from hwnas.space.channel.spec import ChannelSpec, StageSpec
from hwnas.space.operators import macs_of_operator
from hwnas.space.registry import space_from_spec
from hwnas.stages.calibrate import drawn_genotypes, operator_counts, weights_bytes
from hwnas_profilers.operators import profile_operators
from hwnas_profilers.profiler import Compiled, Profiler
from hwnas_profilers.records import EnergyStatistics, TableHeader
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.targets import Target
from hwnas_profilers.timing import TimingSettings, Visit
from hwnas_profilers.workload import Chain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from hwnas_profilers.conditions import MachineState
    from hwnas_profilers.workload import Operator, Workload

RESULTS = Path(__file__).parents[1] / "results" / "latency"
WIDTHS = 32
NETWORKS = 48


def law_us(operators: Sequence[Operator]) -> float:
    """Return a made-up latency of operators that run as one, in microseconds."""
    return 4.0 + sum(2.0 + macs_of_operator(operator.key) / 40_000 for operator in operators)


class SyntheticBench:
    """Samples from the law, with 1 % of noise."""

    def __init__(self, times_us: Sequence[float], seed: int) -> None:
        self._times_us = times_us
        self._generator = np.random.default_rng(seed)

    def prepare(self, index: int, settings: TimingSettings) -> None:
        """Do nothing: there is no device to warm up."""

    def visit(self, indices: Sequence[int], samples: Sequence[int]) -> Iterator[Visit]:
        """Draw samples."""
        for index, count in zip(indices, samples, strict=True):
            samples_us = self._times_us[index] * self._generator.lognormal(0, 0.01, count)
            yield Visit(samples_us=samples_us)

    def state(self) -> MachineState | None:
        """Return nothing: a made-up machine is never disturbed."""
        return None


@final
class SyntheticProfiler(Profiler):
    """A profiler of a device that is a formula."""

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
        """See `Profiler`."""
        return this_device()

    @property
    def packages(self) -> dict[str, str]:
        """See `Profiler`."""
        return {}

    def facts(self) -> dict[str, str]:
        """See `Profiler`."""
        return {}

    @contextmanager
    def compiled(
        self, workloads: Sequence[Workload], *, seed: int = 0, progress: Progress = SILENT
    ) -> Iterator[Compiled]:
        """See `Profiler`."""
        parts = [each.parts if isinstance(each, Chain) else (each,) for each in workloads]
        times_us = [law_us(each) for each in parts]  # type: ignore[arg-type]
        bench = SyntheticBench(times_us, seed)
        yield Compiled(bench=bench, accepted=tuple(range(len(workloads))), rejected={})

    def energies(
        self, workloads: Sequence[Workload], *, seed: int = 0, progress: Progress = SILENT
    ) -> list[EnergyStatistics | None]:
        """See `Profiler`."""
        return [None] * len(workloads)


def main() -> None:
    """Measure, print, and write what was measured."""
    # Twenty blocks whose widths are in no other block, so that every link has its own operators.
    stages = tuple(
        StageSpec(blocks=1, widths=tuple(range(40 * stage + 39, 40 * stage + 39 - WIDTHS, -1)))
        for stage in range(20)
    )
    spec = ChannelSpec(
        name="twenty-thousand",
        image_shape=(3, 16, 16),
        classes=10,
        stem=16,
        stem_stride=2,
        stages=stages,
    )
    space = space_from_spec(spec)
    operators = space.operators()
    seconds: dict[str, float] = {}

    @contextmanager
    def clocked(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - began
        sys.stdout.write(f"{name:<44} {seconds[name]:8.3f} s\n")
        sys.stdout.flush()

    target = Target(name="torch-cpu")  # compiles no ONNX model
    header = TableHeader(
        target=target.name,
        space=spec.name,
        space_spec=msgspec.to_builtins(spec),
        space_fingerprint=spec.fingerprint,
        threads=1,
        batch=1,
        dtype="fp32",
        settings={},
        provenance=provenance(),
    )
    with tempfile.TemporaryDirectory() as folder, SyntheticProfiler(target) as profiler:
        path = Path(folder) / "table.jsonl"
        settings = TimingSettings()
        with clocked("profile (rounds, statistics, file)"):
            profile_operators(
                operators, profiler=profiler, path=path, header=header, settings=settings
            )
        size_bytes = path.stat().st_size
        with clocked("load"):
            table = LatencyTable.read(path)
        genotypes = drawn_genotypes(space, NETWORKS, np.random.default_rng(0))
        with clocked("time 48 networks"):
            timings = profiler.time_networks([space.workload(each) for each in genotypes], settings)
    keys = list(table.measurements)
    measured_us = np.array([each.statistics.median_us for each in timings])
    with clocked("calibrate (fit to 48 networks)"):
        costs = OperatorCosts(table)
        prior_us = np.array([costs.prior_us(key) for key in keys])
        counts = operator_counts(space, genotypes, keys)
        fit = fit_latency(keys, prior_us, weights_bytes(space, keys), counts, measured_us)
    error_percent = float(100 * np.mean(np.abs(fit.predict(counts) / measured_us - 1)))
    with clocked("latency model of the space"):
        model = LatencyModel(space, table)
    more = drawn_genotypes(space, 1_000, np.random.default_rng(1))
    with clocked("answer 1,000 networks"):
        for each in more:
            model.predict_ms(each)
    with clocked("fastest and slowest of all networks"):
        model.range_ms()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    facts = {
        "operators": len(keys),
        "pairs": len(table.pairs),
        "table_bytes": size_bytes,
        "peak_memory_mib": peak_mib,
        "fit_error_percent": error_percent,
    }
    sys.stdout.write(f"{facts}\n")
    document = {
        "benchmark": "latency/scale",
        "seconds": seconds,
        "facts": facts,
        "provenance": provenance(),
    }
    write_atomically(RESULTS / "scale.json", encode_json(document, indent=1))


if __name__ == "__main__":
    main()
