from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.core.environment import this_device
from hwnas.core.errors import ExportError, TargetError
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.torch_runner import TorchRunner
from hwnas_profilers import energy
from hwnas_profilers.local import LocalProfiler
from hwnas_profilers.profiler import Profiler, profiler_for
from hwnas_profilers.records import EnergyStatistics
from hwnas_profilers.targets import parse_target
from hwnas_profilers.workload import Operator, Workload, chain_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hwnas_export.runner import Sampler
    from hwnas_profilers.timing import Timed, TimingSettings

MakeOperator = Callable[[int], Operator]

pytestmark = pytest.mark.usefixtures("shared_models")

HERE = [
    "onnxruntime-cpu",
    "onnxruntime-cpu-int8",
    "onnxruntime-cpu-fp16",
    "torch-cpu",
    "torch-cpu-bf16",
]


class Branching(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.sum() > 0 else -images


BAD = Workload(name="the bad one", build=Branching, input_shape=(1, 3, 8, 8))


@pytest.mark.parametrize("target", HERE)
def test_workloads_are_compiled_and_timed_on_this_machine(
    target: str, make_operator: MakeOperator, quick: TimingSettings
) -> None:
    finished: list[int] = []
    workloads = [make_operator(4), chain_of([make_operator(3), make_operator(4)])]
    with profiler_for(target) as profiler:
        assert profiler.device == this_device()
        assert profiler.packages[target.split("-")[0]]
        timed = profiler.time(workloads, quick, on_finished=lambda index, _: finished.append(index))
    assert sorted(finished) == [0, 1]
    for each in timed:
        assert each is not None
        assert quick.min_samples <= each.count <= quick.max_samples
        assert each.samples_us.min() > 0


def test_what_cannot_be_exported_is_left_out_with_the_reason(
    make_operator: MakeOperator, quick: TimingSettings
) -> None:
    good = make_operator(4)
    with profiler_for("onnxruntime-cpu") as profiler:
        with profiler.compiled([BAD, good, BAD]) as compiled:
            assert compiled.accepted == (1,)
            assert list(compiled.rejected) == [0, 2]
            assert compiled.rejected[0].startswith("the bad one: Branching cannot be exported")
        timed = profiler.time([BAD, good], quick)
        assert [each is None for each in timed] == [True, False]
        assert profiler.time([BAD], quick) == [None]


def test_what_the_runtime_refuses_is_left_out_with_its_words(
    make_operator: MakeOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = OnnxRuntimeRunner._open_session
    names = iter([b"not a model", None])

    def open_session(self: OnnxRuntimeRunner, provider: tuple[str, dict[str, str]]) -> object:
        self._model = next(names) or self._model
        return opened(self, provider)

    monkeypatch.setattr(OnnxRuntimeRunner, "_open_session", open_session)
    with (
        profiler_for("onnxruntime-cpu") as profiler,
        profiler.compiled([make_operator(4), make_operator(5)]) as compiled,
    ):
        assert compiled.accepted == (1,)
        assert compiled.rejected[0].startswith("ONNX Runtime rejects the model: ")
        assert "[ONNXRuntimeError]" in compiled.rejected[0]


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.float32]]:
    """Note the inputs that runners are bound to."""
    inputs: list[NDArray[np.float32]] = []
    original = TorchRunner._sampler_on_impl

    def noting(self: TorchRunner, images: NDArray[np.float32]) -> Sampler:
        inputs.append(images)
        return original(self, images)

    monkeypatch.setattr(TorchRunner, "_sampler_on_impl", noting)
    return inputs


def test_inputs_are_drawn_with_the_seed_and_no_two_alike(
    make_operator: MakeOperator, bound: list[NDArray[np.float32]]
) -> None:
    workloads = [make_operator(4), make_operator(5)]
    with profiler_for("torch-cpu") as profiler:
        for seed in (0, 0, 1):
            with profiler.compiled(workloads, seed=seed):
                pass
    assert len(bound) == 6
    np.testing.assert_array_equal(bound[0], bound[2])
    assert not np.array_equal(bound[0], bound[1])
    assert not np.array_equal(bound[0], bound[4])
    for images in bound:
        # As normal as activations are: zeros or denormals may run at another speed.
        assert images.shape == (1, 3, 8, 8)
        assert 0.7 < images.std() < 1.3


def test_what_was_compiled_is_held_until_the_end_and_no_longer(
    make_operator: MakeOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(TorchRunner, "_close_impl", lambda self: closed.append(self.name))
    workloads = [make_operator(4), make_operator(5)]
    with profiler_for("torch-cpu") as profiler:
        with profiler.compiled(workloads):
            assert closed == []
        assert closed == ["torch-cpu"] * 2
        with pytest.raises(KeyboardInterrupt), profiler.compiled(workloads):
            raise KeyboardInterrupt
        assert len(closed) == 4


@pytest.mark.parametrize(("target", "torch_threads"), [("torch-cpu", 2), ("onnxruntime-cpu", 1)])
def test_threads_of_the_process_are_borrowed_and_given_back(
    target: str, torch_threads: int
) -> None:
    with profiler_for(target, threads=2):
        assert torch.get_num_threads() == torch_threads
    assert torch.get_num_threads() == 1
    with pytest.raises(KeyboardInterrupt), profiler_for(target, threads=2):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 1


def test_a_profiler_may_be_entered_again(make_operator: MakeOperator) -> None:
    profiler = profiler_for("torch-cpu", threads=2)
    for _ in range(2):
        with profiler, profiler.compiled([make_operator(4)]) as compiled:
            assert compiled.accepted == (0,)
        assert torch.get_num_threads() == 1


class MadeUpMeter:
    """Takes a millijoule of a reading."""

    name = "made up"
    resolution_uj = 1

    def __init__(self) -> None:
        self.total_uj = 0

    def read_uj(self) -> int:
        self.total_uj += 1_000
        return self.total_uj


def test_energy_is_metered_of_what_is_accepted(
    make_operator: MakeOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def meter_for(device: str) -> MadeUpMeter:
        asked.append(device)
        return MadeUpMeter()

    def measure(sampler: Sampler, meter: MadeUpMeter) -> EnergyStatistics:
        assert sampler(1) > 0  # it is active
        return EnergyStatistics(n=1, median_uj=meter.read_uj(), low_uj=1, high_uj=1)

    monkeypatch.setattr(energy, "energy_meter_for", meter_for)
    monkeypatch.setattr(energy, "measure_energy_uj", measure)
    with profiler_for("onnxruntime-cpu") as profiler:
        found = profiler.energies([make_operator(4), BAD, make_operator(5)])
    assert asked == ["cpu"]
    assert [each and each.median_uj for each in found] == [1_000, None, 2_000]


def test_a_target_that_cannot_tell_its_energy_says_so_before_anything_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def meter_for(device: str) -> MadeUpMeter:
        raise TargetError("no meter here")

    monkeypatch.setattr(energy, "energy_meter_for", meter_for)
    with profiler_for("onnxruntime-cpu") as profiler, pytest.raises(TargetError, match="no meter"):
        profiler.energies([])


def test_memory_is_known_of_onnx_models_alone(make_operator: MakeOperator) -> None:
    operator = make_operator(4)
    with profiler_for("onnxruntime-cpu") as profiler:
        memory = profiler.memory_of(operator)
    assert memory is not None
    assert memory.weights_bytes == 4 * (4 * 3 * 3 * 3 + 4)  # batch norm is folded into them
    assert memory.peak_activation_bytes >= 4 * (3 + 4) * 8 * 8
    with profiler_for("torch-cpu") as profiler:
        assert profiler.memory_of(operator) is None


def test_networks_must_all_be_taken(quick: TimingSettings) -> None:
    with (
        profiler_for("onnxruntime-cpu") as profiler,
        pytest.raises(
            ExportError, match="onnxruntime-cpu refuses the bad one: the bad one: Branch"
        ),
    ):
        profiler.time_networks([BAD], quick)


def test_a_profiler_is_made_for_its_target_and_takes_no_device_before_it_is_entered() -> None:
    profiler: Profiler = profiler_for("onnxruntime-cpu", threads=3)
    assert isinstance(profiler, LocalProfiler)
    assert profiler.target == parse_target("onnxruntime-cpu")
    assert profiler.threads == 3
    assert profiler.facts() == {}
    with pytest.raises(TargetError, match="there is no target"):
        profiler_for("abacus")


def test_rounds_are_watched(make_operator: MakeOperator, quick: TimingSettings) -> None:
    seen: list[Timed] = []
    with profiler_for("onnxruntime-cpu") as profiler:
        profiler.time([make_operator(4)], quick, on_finished=lambda _, timed: seen.append(timed))
        log = profiler.log
        shared = log.reasons.get("shared core", 0)  # visits that were dropped, not whole rounds
        assert log.kept == len(seen[0].rounds) + shared
        assert log.disturbed + shared == seen[0].disturbed
        assert len(log.pilots_ns) == log.kept + log.disturbed
        assert len(log.states) == 2
