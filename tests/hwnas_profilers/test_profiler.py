from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.core.errors import ExportError
from hwnas_export.torch_runner import TorchRunner
from hwnas_profilers.profiler import normal_input, time_runner
from hwnas_profilers.timing import TimingSettings
from hwnas_profilers.workload import Operator

if TYPE_CHECKING:
    from hwnas_profilers.timing import Timed

MakeOperator = Callable[[int], Operator]

# The made-up device is a class of conftest.py, which cannot be imported from here.
Device = Any


def test_samples_and_refusals_come_under_the_workloads_own_indices(
    device: Device, make_operator: MakeOperator, quick: TimingSettings
) -> None:
    workloads = [make_operator(width) for width in (4, 5, 6, 7)]
    device.refused = {workloads[0].name: "no such kernel", workloads[2].name: "too odd"}
    device.latencies_us = {workloads[1].name: 50.0, workloads[3].name: 70.0}
    finished: dict[int, float] = {}
    events: list[str] = []

    def finish(index: int, timed: Timed) -> None:
        events.append("finished")
        finished[index] = float(timed.samples_us[0])

    refused: dict[int, str] = {}

    def refuse(index: int, reason: str) -> None:
        events.append("refused")
        refused[index] = reason

    timed = device.time(workloads, quick, on_finished=finish, on_rejected=refuse)
    assert [each is None for each in timed] == [True, False, True, False]
    assert [timed[index].samples_us[0] for index in (1, 3)] == [50.0, 70.0]
    assert finished == {1: 50.0, 3: 70.0}
    assert refused == {0: "no such kernel", 2: "too odd"}
    assert events == ["refused"] * 2 + ["finished"] * 2  # refusals are told before the timing


def test_no_one_needs_to_be_told(
    device: Device, make_operator: MakeOperator, quick: TimingSettings
) -> None:
    workloads = [make_operator(4), make_operator(5)]
    device.refused = {workloads[0].name: "too odd"}
    timed = device.time(workloads, quick)
    assert [each is None for each in timed] == [True, False]
    assert device.time([], quick) == []


def test_a_log_is_kept_over_all_that_is_timed(
    device: Device, make_operator: MakeOperator, quick: TimingSettings
) -> None:
    for _ in range(2):
        device.time([make_operator(4)], quick)
    assert device.log.kept == 2 * quick.min_samples / quick.samples_per_round


def test_the_halves_of_a_network_are_its_even_and_odd_rounds(
    device: Device, make_operator: MakeOperator
) -> None:
    network = make_operator(4)
    device.rounds_us = {network.name: [1.0, 10.0, 2.0, 20.0, 3.0]}
    settings = TimingSettings(min_samples=20, max_samples=20, samples_per_round=4)
    (timing,) = device.time_networks([network], settings)
    assert (timing.first_us, timing.second_us) == (2.0, 15.0)
    assert timing.statistics.median_us == 3.0
    assert timing.statistics.n == 20


@pytest.mark.parametrize(
    ("loadings_us", "first_us", "second_us"),
    [
        ([20.0, 22.0, 20.2], 20.0, 20.2),  # one that is slow for as long as it is loaded
        ([22.0, 20.0, 20.2], 20.0, 20.2),
        ([20.0, 20.2, 18.0], 20.0, 20.2),  # one that is fast is no better
        ([20.0, 20.0, 20.0], 20.0, 20.0),
    ],
)
def test_a_network_is_loaded_several_times_and_the_odd_loading_does_not_count(
    device: Device,
    make_operator: MakeOperator,
    loadings_us: list[float],
    first_us: float,
    second_us: float,
) -> None:
    device.loadings = 3
    odd, other = make_operator(4), make_operator(5)
    device.loadings_us = {odd.name: loadings_us}
    device.latencies_us = {other.name: 30.0}
    settings = TimingSettings(min_samples=60, max_samples=60, samples_per_round=4)
    timing, plain = device.time_networks([odd, other], settings)
    assert device.measured == [odd.name] * 3 + [other.name] * 3
    assert (timing.first_us, timing.second_us) == (first_us, second_us)
    assert first_us <= timing.statistics.median_us <= second_us
    assert timing.statistics.n == 2 * 60 / 3
    assert plain.statistics.median_us == 30.0


def test_loadings_share_the_samples_of_a_network_and_take_no_fewer_than_are_enough() -> None:
    settings = TimingSettings.for_networks()
    assert settings.shared_by(1) == settings
    shared = settings.shared_by(3)
    assert (shared.min_samples, shared.max_samples) == (67, 100)
    few = TimingSettings(min_samples=10, max_samples=20, samples_per_round=9).shared_by(3)
    assert (few.min_samples, few.max_samples) == (10, 10)


def test_a_network_that_is_refused_is_named(
    device: Device, make_operator: MakeOperator, quick: TimingSettings
) -> None:
    good, bad = make_operator(4), make_operator(5)
    device.refused = {bad.name: "no such kernel"}
    with pytest.raises(ExportError, match="torch-cpu refuses conv to 5: no such kernel"):
        device.time_networks([good, bad], quick)


def test_one_runner_is_timed_at_the_batch_asked_for(quick: TimingSettings) -> None:
    seen: list[tuple[int, ...]] = []

    class Watching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(images.shape))
            return images

    with TorchRunner(Watching(), (None, 3, 4, 4)) as runner:
        statistics = time_runner(runner, settings=quick, batch=5)
    assert statistics.n >= quick.min_samples
    assert statistics.min_us > 0
    assert set(seen) == {(5, 3, 4, 4)}


def test_a_runner_of_a_fixed_batch_is_timed_at_its_own() -> None:
    with TorchRunner(nn.Identity(), (2, 3, 4, 4)) as runner:
        images = normal_input(runner, np.random.default_rng(0), batch=7)
    assert images.shape == (2, 3, 4, 4)
    assert images.dtype == np.float32


def test_a_runner_that_is_not_active_is_our_own_bug(quick: TimingSettings) -> None:
    with pytest.raises(RuntimeError, match="not active"):
        time_runner(TorchRunner(nn.Identity(), (1, 3, 4, 4)), settings=quick)
