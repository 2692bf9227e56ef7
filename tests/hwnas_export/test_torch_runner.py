"""What `TorchRunner` promises beyond the contract, and what of its GPU side needs no GPU."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.core.errors import ExportError, TargetError
from hwnas_export.cuda_graph import check_cuda, plain_kernels
from hwnas_export.gpu_queue import queued_sampler
from hwnas_export.torch_runner import TorchRunner

SHAPE = (2, 3, 8, 8)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)]
    return nn.Sequential(*layers).train()


@pytest.fixture
def images() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).random(SHAPE, dtype=np.float32)


def test_each_part_gets_its_own_mode_back(module: nn.Module) -> None:
    norm = module.get_submodule("1").eval()  # frozen, as in fine-tuning
    with TorchRunner(module, SHAPE):
        assert not any(part.training for part in module.modules())
    assert module.training
    assert not norm.training


def test_a_cast_leaves_the_module_as_it_was(
    module: nn.Module, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    before = copy.deepcopy(module.state_dict())
    with TorchRunner(module, SHAPE, precision="bf16") as runner:
        runner.infer(images)
        assert module.training
    after = module.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        torch.testing.assert_close(after[name], value, rtol=0, atol=0)


def test_reduced_precision_is_really_reduced(
    module: nn.Module, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    with TorchRunner(module, SHAPE, precision="bf16") as runner:
        reduced = torch.from_numpy(runner.infer(images))
    assert torch.equal(reduced, reduced.bfloat16().float())  # bfloat16 holds it without loss
    with TorchRunner(module, SHAPE) as runner:
        single = torch.from_numpy(runner.infer(images))
    assert not torch.equal(single, single.bfloat16().float())


@pytest.mark.parametrize(
    ("device", "precision"), [("cpu", "fp16"), ("cpu", "int8"), ("cuda", "int8"), ("tpu", "fp32")]
)
def test_a_target_that_there_is_not_is_refused(
    module: nn.Module, device: Any, precision: str
) -> None:
    with pytest.raises(TargetError, match=f"no target torch-{device}.*\n.*torch-cuda-fp16"):
        TorchRunner(module, SHAPE, device=device, precision=precision)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built with CUDA")
def test_a_gpu_is_refused_by_a_torch_without_cuda(module: nn.Module) -> None:
    runner = TorchRunner(module, SHAPE, device="cuda")
    with pytest.raises(TargetError, match=r"torch-cuda needs CUDA.*built without it\n.*pytorch"):
        runner.activate()
    with pytest.raises(RuntimeError, match="not active"):
        _ = runner.input_shape


def test_a_gpu_that_is_not_seen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TargetError, match=r"sees none\n.*nvidia-smi.*CUDA 13\.0"):
        check_cuda("torch-cuda", torch.float32)


def test_bf16_is_refused_by_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    # It says yes where bfloat16 is only emulated, unless asked not to.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    with pytest.raises(TargetError, match=r"Old GPU has no bfloat16\n.*torch-cuda-fp16"):
        check_cuda("torch-cuda-bf16", torch.bfloat16)
    check_cuda("torch-cuda-fp16", torch.float16)


@pytest.mark.parametrize("legacy", [None, True, False])
def test_tf32_is_off_inside_and_as_it_was_after(legacy: bool | None) -> None:
    # In a process of its own: these settings are the whole process's.
    script = f"""
import torch
from hwnas_export.cuda_graph import plain_kernels
b = torch.backends
if {legacy} is not None:
    b.cuda.matmul.allow_tf32 = b.cudnn.allow_tf32 = {legacy}
b.cudnn.benchmark = True
def state():
    return b.cudnn.conv.fp32_precision, b.cuda.matmul.fp32_precision, b.cudnn.benchmark
before = state()
try:
    with plain_kernels():
        assert state() == ("ieee", "ieee", False), state()
        raise KeyError
except KeyError:
    pass
assert state() == before, (before, state())
if {legacy} is not None:
    assert b.cuda.matmul.allow_tf32 is {legacy}
    assert b.cudnn.allow_tf32 is {legacy}
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_plain_kernels_change_something_here() -> None:
    before = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    with plain_kernels():
        assert before != torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]


class Gpu:
    """A GPU that works through its queue at its own pace, and a host that takes time to queue."""

    LAUNCH_NS, CALL_NS = 10_000, 2_000

    def __init__(self) -> None:
        self.host_ns = self.busy_until_ns = 0
        self.launched: list[int] = []
        self.captured: list[int] = []

    def launch(self, calls: int) -> None:
        self.host_ns += self.LAUNCH_NS
        self.launched.append(calls)
        # It begins when it is asked to, or when it has done what it was asked before.
        begin = max(self.busy_until_ns, self.host_ns)
        self.busy_until_ns = begin + calls * self.CALL_NS

    def graph_of(self, calls: int) -> Graph:
        if calls not in self.captured:
            self.captured.append(calls)
        return Graph(self, calls)


class Graph:
    def __init__(self, gpu: Gpu, calls: int) -> None:
        self.gpu, self.calls = gpu, calls

    def replay(self) -> None:
        self.gpu.launch(self.calls)


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.at_ns = gpu, 0

    def record(self) -> None:
        self.at_ns = max(self.gpu.busy_until_ns, self.gpu.host_ns)

    def synchronize(self) -> None:
        self.gpu.host_ns = max(self.gpu.host_ns, self.at_ns)

    def elapsed_time(self, end_event: Self) -> float:
        return (end_event.at_ns - self.at_ns) / 1e6


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.mark.parametrize("calls", [1, 7, 8, 30])
def test_a_gpus_own_time_is_told_without_the_hosts(gpu: Gpu, calls: int) -> None:
    sampler = queued_sampler(gpu.graph_of, lambda: Event(gpu), calls_per_graph=64)
    sampler(64)  # tells how long a lead-in must be
    assert sampler(calls) == pytest.approx(calls * Gpu.CALL_NS)
    # The first sample has a lead-in of a single call: too short to hide the launch behind.
    assert queued_sampler(gpu.graph_of, lambda: Event(gpu))(1) > Gpu.CALL_NS


def test_calls_are_split_over_graphs_and_none_is_lost(gpu: Gpu) -> None:
    sampler = queued_sampler(gpu.graph_of, lambda: Event(gpu), calls_per_graph=100)
    for calls, graphs in ((1, [1]), (100, [100]), (250, [100, 100, 50])):
        gpu.launched.clear()
        sampler(calls)
        assert gpu.launched[1:] == graphs  # the first is the lead-in


def test_the_lead_in_lasts_long_enough_and_no_longer(gpu: Gpu) -> None:
    sampler = queued_sampler(gpu.graph_of, lambda: Event(gpu))
    for _ in range(3):
        sampler(50)
    assert 50_000 <= gpu.launched[-2] * Gpu.CALL_NS < 100_000
    # A call that itself lasts longer is made once: energy is metered over the same samples.
    gpu.CALL_NS = 4_000_000
    for _ in range(2):
        sampler(50)
    assert gpu.launched[-2] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_module_that_no_graph_can_hold_is_refused(
    images: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    class Waiting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.sum())  # waits for the GPU, which a capture forbids

    with (
        TorchRunner(Waiting(), SHAPE, device="cuda") as runner,
        pytest.raises(ExportError, match="cannot be captured as a CUDA graph"),
    ):
        runner.sampler_on(images)


@pytest.mark.gpu
@pytest.mark.serial
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpus_time_is_proportional_to_the_calls() -> None:
    module = nn.Conv2d(32, 32, 3, padding=1)
    with TorchRunner(module, (8, 32, 56, 56), device="cuda") as runner:
        sampler = runner.sampler_on(np.zeros((8, 32, 56, 56), np.float32))
        sampler(100)
        few, many = (float(np.median([sampler(calls) for _ in range(21)])) for calls in (50, 200))
    assert many / few == pytest.approx(4, rel=0.1)
