"""Targets as engines are made for them."""

from __future__ import annotations

import onnxruntime as ort
import pytest

from hwnas.core.errors import MissingDependencyError, TargetError
from hwnas.deploy.engine_targets import (
    check_buildable,
    fp32_target,
    has_sessions,
    is_tensorrt,
    model_precision,
    runtime_packages,
)
from hwnas_export import tensorrt_api
from hwnas_profilers import targets
from hwnas_profilers.targets import RUNTIMES

TAKING_ONNX = [name for name, runtime in RUNTIMES.items() if runtime.takes == "onnx"]


@pytest.mark.parametrize("target", TAKING_ONNX)
def test_each_has_another_in_fp32_of_the_same_runtime(target: str) -> None:
    rival = fp32_target(target)
    assert model_precision(rival) == RUNTIMES[rival].precision == "fp32"
    assert RUNTIMES[rival].runner == RUNTIMES[target].runner
    assert model_precision(target) in ("fp32", "fp16", "int8")
    assert is_tensorrt(target) == target.startswith("tensorrt")
    assert has_sessions(target) == target.startswith("onnxruntime-cpu")


def test_what_a_target_runs_with_has_its_version() -> None:
    assert runtime_packages("onnxruntime-cpu-int8")["onnxruntime"] == ort.__version__


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("torch-cpu", "no engine can be made for target `torch-cpu`"),
        ("ssh://pi@board/onnxruntime-cpu", "no engine can be made"),
        ("onnxruntime-cpuu", r"no target `onnxruntime-cpuu`\n.*onnxruntime-cpu"),
    ],
)
def test_what_no_engine_can_be_made_for(target: str, says: str) -> None:
    with pytest.raises(TargetError, match=says):
        check_buildable(target)


def test_a_cpu_target_runs_here() -> None:
    assert check_buildable("onnxruntime-cpu-int8") is True


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_has_nvidia_driver", lambda: False)


def test_without_tensorrt_its_install_line_is_given(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_api, "_MODULES", ("no_such_tensorrt",))
    with pytest.raises(MissingDependencyError, match=r"not installed\n.*pip install"):
        check_buildable("tensorrt-fp16")


def test_tensorrt_proper_builds_on_a_gpu_alone(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_api, "trt_module", lambda: object())
    monkeypatch.setattr(tensorrt_api, "is_rtx", lambda trt: False)
    with pytest.raises(TargetError, match=r"cannot be used here: .*\n.*tensorrt-rtx"):
        check_buildable("tensorrt-fp16")
    monkeypatch.setattr(tensorrt_api, "is_rtx", lambda trt: True)
    assert check_buildable("tensorrt-fp16") is False
