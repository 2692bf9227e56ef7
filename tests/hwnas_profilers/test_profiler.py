from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.core.errors import ConfigError, LatencyTableMismatch, TargetError
from hwnas_export.torch_runner import TorchRunner
from hwnas_profilers import profiler
from hwnas_profilers.profiler import profile_networks, profile_operators, time_runner
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.timing import TimingSettings
from hwnas_profilers.workload import Operator, Workload

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas_profilers.records import TableHeader

MakeOperator = Callable[[int], Operator]


class Interrupting:
    """Progress that is interrupted once some workloads are compiled or timed."""

    def __init__(self, task: str, after: int) -> None:
        self.interrupted, self.left = task, after
        self.said: list[str] = []

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[Interrupting]:
        self.name = name
        yield self

    def advance(self, steps: float = 1, note: str = "") -> None:
        if self.name == self.interrupted:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.mark.parametrize("stage", ["compiling", "timing"])
def test_an_interrupted_profile_goes_on_where_it_was(
    make_operator: MakeOperator,
    header: TableHeader,
    quick: TimingSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    monkeypatch.setattr(profiler, "GROUP_SIZE", 2)
    path = tmp_path / "table.jsonl"
    operators = [make_operator(width) for width in (4, 8, 12, 16)]
    # Two operators a group: the interrupt falls into the second group, or ends its first visits.
    stop = Interrupting(stage, after=2 if stage == "compiling" else 6)
    with pytest.raises(KeyboardInterrupt):
        profile_operators(operators, path=path, header=header, settings=quick, progress=stop)
    kept = dict(LatencyTable.read(path).measurements)
    assert 2 <= len(kept) < 4
    assert "operators: group 2 of 2" in stop.said

    progress = Interrupting("nothing", after=0)
    table = profile_operators(
        operators, path=path, header=header, settings=quick, progress=progress
    )
    assert f"{path}: {len(kept)} of 4 operators are measured already" in progress.said
    assert set(table.measurements) == {operator.key for operator in operators}
    for key, measurement in kept.items():
        assert table.measurements[key] == measurement  # not measured twice
    for measurement in table.measurements.values():
        assert quick.min_samples <= measurement.statistics.n <= quick.max_samples
        assert measurement.statistics.median_us > 0


def test_a_full_table_is_not_measured_again(
    make_operator: MakeOperator, header: TableHeader, quick: TimingSettings, tmp_path: Path
) -> None:
    path = tmp_path / "table.jsonl"
    operators = [make_operator(4), make_operator(4)]  # equal keys are one operator
    first = profile_operators(operators, path=path, header=header, settings=quick)
    assert len(first.measurements) == 1
    before = path.read_bytes()
    assert profile_operators(operators, path=path, header=header, settings=quick) == first
    assert path.read_bytes() == before


@pytest.mark.serial
def test_more_work_takes_longer(
    header: TableHeader, tmp_path: Path, make_operator: MakeOperator
) -> None:
    small, large = make_operator(4), make_operator(2_048)
    table = profile_operators(
        [large, small],
        path=tmp_path / "table.jsonl",
        header=dataclasses.replace(header, target="torch-cpu"),
        settings=TimingSettings(max_samples=60),
    )
    assert table.latency_us(large.key) > 1.5 * table.latency_us(small.key)


def test_bad_requests_leave_no_file(
    make_operator: MakeOperator, header: TableHeader, quick: TimingSettings, tmp_path: Path
) -> None:
    path = tmp_path / "table.jsonl"
    bad_headers = {
        TargetError: dataclasses.replace(header, target="abacus"),
        ConfigError: dataclasses.replace(header, batch=8),
    }
    for error, bad in bad_headers.items():
        with pytest.raises(error):
            profile_operators([make_operator(4)], path=path, header=bad, settings=quick)
    assert not path.exists()


def test_a_table_of_another_space_is_not_gone_on_from(
    make_operator: MakeOperator, header: TableHeader, quick: TimingSettings, tmp_path: Path
) -> None:
    path = tmp_path / "table.jsonl"
    profile_operators([], path=path, header=header, settings=quick)
    with pytest.raises(LatencyTableMismatch):
        profile_operators(
            [make_operator(4)],
            path=path,
            header=dataclasses.replace(header, space_fingerprint="other"),
            settings=quick,
        )


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "torch-cpu"])
def test_networks_are_timed_twice_in_separate_rounds(
    make_operator: MakeOperator, quick: TimingSettings, target: str
) -> None:
    networks: list[Workload] = [make_operator(4), make_operator(8)]
    timings = profile_networks(networks, target=target, threads=1, settings=quick)
    assert len(timings) == 2
    for timing in timings:
        assert timing.statistics.min_us <= timing.first_us
        assert timing.statistics.min_us <= timing.second_us
        assert timing.statistics.n >= quick.min_samples


def test_the_halves_of_a_network_are_its_even_and_odd_rounds(
    make_operator: MakeOperator, quick: TimingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = [np.full(4, value) for value in (1.0, 10.0, 2.0, 20.0, 3.0)]
    monkeypatch.setattr(profiler, "time_in_rounds", lambda *_, **__: [rounds])
    (timing,) = profile_networks([make_operator(4)], target="torch-cpu", threads=1, settings=quick)
    assert (timing.first_us, timing.second_us) == (2.0, 15.0)
    assert timing.statistics.median_us == 3.0


def test_one_runner_is_timed_at_the_batch_asked_for(quick: TimingSettings) -> None:
    seen: list[tuple[int, ...]] = []

    class Watching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append((*images.shape, torch.get_num_threads()))
            return images

    with TorchRunner(Watching(), (None, 3, 4, 4)) as runner:
        statistics = time_runner(runner, settings=quick, threads=2, batch=5)
    assert statistics.n >= quick.min_samples
    assert set(seen) == {(5, 3, 4, 4, 2)}
    assert torch.get_num_threads() == 1


def test_a_runner_that_is_not_active_is_our_own_bug(quick: TimingSettings) -> None:
    with pytest.raises(RuntimeError, match="not active"):
        time_runner(TorchRunner(nn.Identity(), (1, 3, 4, 4)), settings=quick)
