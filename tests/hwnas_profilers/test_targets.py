from __future__ import annotations

import ctypes.util
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from hwnas.core.errors import ExportError, TargetError
from hwnas_profilers import targets
from hwnas_profilers.targets import (
    require_target,
    runners_for,
    target_names,
    target_statuses,
    threads_of,
)
from hwnas_profilers.workload import Operator, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def _bare_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No packages, no driver, no programs."""
    monkeypatch.setattr(targets, "package_version", lambda name: "")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    targets._has_nvidia_driver.cache_clear()
    yield
    targets._has_nvidia_driver.cache_clear()


@pytest.fixture
def _rich_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything installed."""
    monkeypatch.setattr(targets, "package_version", lambda name: "1.0")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so.1")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    targets._has_nvidia_driver.cache_clear()
    yield
    targets._has_nvidia_driver.cache_clear()


def test_what_is_not_usable_says_why_and_what_to_do() -> None:
    statuses = {status.name: status for status in target_statuses()}
    assert {name for name, status in statuses.items() if status.usable} == set(target_names())
    assert set(target_names()) == {"onnxruntime-cpu", "torch-cpu"}
    for status in statuses.values():
        assert status.usable == (not status.reason) == (not status.fix)
    assert {"onnxruntime-cuda", "torch-cuda", "tensorrt", "tensorrt-rtx"} <= set(statuses)
    assert {"pycuda", "openvino-cpu", "ssh"} <= set(statuses)


@pytest.mark.usefixtures("_bare_machine")
def test_on_a_bare_machine_everything_names_what_is_missing() -> None:
    statuses = {status.name: status for status in target_statuses()}
    assert not any(status.usable for status in statuses.values())
    assert "onnxruntime is not installed" in statuses["onnxruntime-cpu"].reason
    assert "pip install onnxruntime" in statuses["onnxruntime-cpu"].fix
    for name in ("tensorrt", "pycuda"):
        assert "no NVIDIA driver" in statuses[name].reason
        assert 'pip install "hwnas[tensorrt]"' in statuses[name].fix
    assert "`ssh` is not installed" in statuses["ssh"].reason


@pytest.mark.usefixtures("_rich_machine")
def test_what_hwnas_cannot_do_yet_is_not_blamed_on_the_machine() -> None:
    for status in target_statuses():
        if not status.implemented:
            assert status.reason == "this version of hwnas cannot profile it yet"
            assert status.fix.startswith("profile on onnxruntime-cpu or torch-cpu")


def test_a_build_of_torch_without_cuda_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "package_version", lambda name: "2.13.0+cpu")
    statuses = {status.name: status for status in target_statuses()}
    assert "a build without CUDA" in statuses["torch-cuda"].reason
    assert statuses["torch-cpu"].usable


def test_looking_imports_no_backend() -> None:
    code = (
        "import sys; from hwnas_profilers.targets import target_statuses; target_statuses()\n"
        "print([m for m in ('torch', 'onnxruntime', 'onnx', 'tensorrt') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("onnxruntime_cpu", "did you mean `onnxruntime-cpu`"),
        ("abacus", "known: onnxruntime-cpu, torch-cpu"),
        ("tensorrt", "cannot be used here"),
        ("ssh://jetson/tensorrt-fp16", "cannot profile it yet"),
    ],
)
def test_an_unusable_target_is_refused(name: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        require_target(name)
    with pytest.raises(TargetError, match=message):
        runners_for(name, [], threads=1)  # before the first runner is asked for


@pytest.mark.parametrize("target", target_names())
def test_runners_come_in_order_and_run(
    target: str, make_operator: Callable[[int], Operator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "_EXPORT_CHUNK", 2)
    assert require_target(target).usable
    operators = [make_operator(width) for width in (4, 5, 6)]
    images = torch.rand(1, 3, 8, 8).numpy()
    channels = []
    for runner in runners_for(target, operators, threads=1):
        assert runner.name == target
        with runner:
            channels.append(runner.infer(images).shape[1])
    assert channels == [4, 5, 6]


class _Branching(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.sum() > 0 else -images


def test_an_operator_that_cannot_be_exported_is_named(
    make_operator: Callable[[int], Operator],
) -> None:
    bad = Workload(name="the bad one", build=_Branching, input_shape=(1, 3, 8, 8))
    with pytest.raises(ExportError, match=r"^the bad one: _Branching cannot be exported"):
        list(runners_for("onnxruntime-cpu", [make_operator(4), bad], threads=1))


def test_a_failure_that_only_the_joined_export_has_is_survived(
    make_operator: Callable[[int], Operator], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(modules: object, shapes: object) -> None:
        raise ExportError("together they fail")

    monkeypatch.setattr("hwnas_export.onnx_export.onnx_from_modules", fail)
    assert len(list(runners_for("onnxruntime-cpu", [make_operator(4)], threads=1))) == 1


def test_threads_of_the_process_are_given_back() -> None:
    with threads_of("torch-cpu", 2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1
    with pytest.raises(KeyboardInterrupt), threads_of("torch-cpu", 2):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 1
    with threads_of("onnxruntime-cpu", 2):
        assert torch.get_num_threads() == 1
