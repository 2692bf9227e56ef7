"""What `OpenVinoRunner` promises beyond the contract."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.core.errors import MissingDependencyError, TargetError
from hwnas_export import openvino_runner
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.openvino_runner import OpenVinoRunner, import_openvino

if TYPE_CHECKING:
    from pathlib import Path

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed"
)


def test_where_it_is_missing_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    runner = OpenVinoRunner(b"")
    with pytest.raises(MissingDependencyError, match=r'pip install "hwnas\[openvino\]"'):
        runner.activate()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_target_that_there_is_not_is_refused(precision: str) -> None:
    with pytest.raises(TargetError, match=f"no target openvino-cpu-{precision}\n.*bf16"):
        OpenVinoRunner(b"", precision=precision)


def test_bf16_is_refused_by_a_cpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = {"OPTIMIZATION_CAPABILITIES": ["FP32", "INT8"], "FULL_DEVICE_NAME": "Old CPU"}
    core = SimpleNamespace(get_property=lambda device, name: properties[name])
    monkeypatch.setattr(
        openvino_runner, "import_openvino", lambda: SimpleNamespace(Core=lambda: core)
    )
    with pytest.raises(TargetError, match=r"computes in bf16.*FP32, INT8 on Old CPU\n.*openvino"):
        OpenVinoRunner(b"", precision="bf16").activate()


@needs_openvino
def test_the_precision_is_the_one_asked_for() -> None:
    """Where the CPU has bfloat16, OpenVINO would take it unasked."""
    if "BF16" not in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3)).eval()
    images = np.random.default_rng(0).random((1, 16, 12, 12), dtype=np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    model = onnx_from_module(module, images.shape).SerializeToString()
    errors = {}
    for precision in ("fp32", "bf16"):
        with OpenVinoRunner(model, precision=precision) as runner:
            errors[precision] = np.abs(runner.infer(images) - expected).max()
    assert errors["fp32"] < 1e-5
    assert 1e-4 < errors["bf16"] < 1e-2


@needs_openvino
def test_importing_it_reports_to_nobody(tmp_path: Path) -> None:
    script = (
        "import sys; from hwnas_export.openvino_runner import import_openvino;"
        "assert 'openvino' not in sys.modules; import_openvino();"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"HOME": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


@needs_openvino
def test_a_program_that_reports_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ModuleType("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", own)
    import_openvino()
    assert sys.modules["openvino_telemetry"] is own
