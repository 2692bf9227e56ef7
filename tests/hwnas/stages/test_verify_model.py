"""`hwnas verify` on any ONNX file and the model that it was made from, without a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

import hwnas.api
from hwnas.core.errors import ConfigError, GateFailedError, HwnasError
from hwnas.data.sources import DataConfig, load_data
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.precision import onnx_in_precision

if TYPE_CHECKING:
    from collections.abc import Callable

    import click.testing

    from hwnas.stages.verify import VerifyResult

CODE = """
from torch import nn


def network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )
"""
CONFIG = """
[verify]
square_queries = 20
square_samples = 40
adaptive_samples = 40
adaptive_steps = 5
masking_samples = 20
throughput_batches = [1, 4]
[verify.tolerances]
rise_points = 100.0
adaptive_gap_points = 5.0
square_gap_points = 5.0
black_box_gap_points = 5.0
[threat]
eps = 0.05
steps = 3
"""


@pytest.fixture(scope="module")
def folder(
    that_knows_digits: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A network that knows digits, in PyTorch and in ONNX, and settings for a quick look."""
    path: Path = tmp_path_factory.mktemp("models")
    scope: dict[str, Any] = {}
    exec(CODE, scope)  # what is written to `net.py` below
    net = that_knows_digits(scope["network"], steps=80)
    (path / "net.py").write_text(CODE)
    (path / "config.toml").write_text(CONFIG)
    save_file(net.state_dict(), path / "net.safetensors")
    model = onnx_from_module(net, (1, 1, 16, 16), dynamic_batch=True)
    onnx.save(model, path / "net.onnx")
    some = load_data(DataConfig()).train.pixels()[:128].numpy()
    quantized = onnx_in_precision(model, "int8", calibration=some, float_head=True)
    onnx.save(quantized, path / "int8.onnx")
    onnx.save(onnx_from_module(nn.Sequential(net, nn.Softmax(1)), (1, 1, 16, 16),
                               dynamic_batch=True), path / "softmax.onnx")  # fmt: skip
    onnx.save(onnx_from_module(nn.Sequential(net, nn.Linear(10, 7)), (1, 1, 16, 16),
                               dynamic_batch=True), path / "seven.onnx")  # fmt: skip
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    onnx.save(onnx_from_module(small, (1, 1, 8, 8), dynamic_batch=True), path / "small.onnx")
    (path / "cut.onnx").write_bytes(model.SerializeToString()[:-500])
    return path


def checked(folder: Path, engine: str, reference: str, **options: Any) -> VerifyResult:
    return hwnas.api.verify(
        reference=Path(reference) if ":" in reference else folder / reference,
        engine=folder / engine,
        **{"data": "digits", "config": folder / "config.toml", "relative_width": 0.5, **options},
    )


def test_a_quantized_model_against_its_network(folder: Path, tmp_path: Path) -> None:
    result = checked(
        folder, "int8.onnx", f"{folder / 'net.py'}:network", weights=folder / "net.safetensors",
        n=150, out=tmp_path / "found.json",
    )  # fmt: skip
    found = result.verification
    assert result.passed
    assert result.engines == {"onnxruntime-cpu-int8": found}
    assert found.precision == "int8"
    assert found.parity.n == 150
    assert found.adaptive is not None
    assert found.adaptive.gradients == "fake quantization of the engine"
    assert found.speed is not None
    assert found.speed.reference is not None
    assert found.speed.reference_target == "torch-cpu"
    assert found.memory is not None
    assert set(found.seconds) == {"clean", "replay", "square", "adaptive", "masking"}
    assert json.loads((tmp_path / "found.json").read_text())["passed"] is True


def test_a_reference_in_onnx_has_gradients_too(folder: Path) -> None:
    found = checked(folder, "net.onnx", "net.onnx", eps="0.08", budget_ms=1e3).verification
    assert not found.left_out
    assert found.threat.eps == "0.08"
    assert found.crafted == "PGD-3 on the twin"
    assert found.speed is not None
    assert found.speed.reference_target == "onnxruntime-cpu"
    assert {"latency", "adaptive_gap", "more_steps"} <= {gate.name for gate in found.gates}


def test_without_gradients_the_white_box_is_left_out_and_named(
    folder: Path, tmp_path: Path, hwnas: Callable[..., click.testing.Result]
) -> None:
    model = onnx.load(folder / "net.onnx")
    first = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["waves" if name == first else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Sin", [first], ["waves"], name="wave"))
    path = tmp_path / "waves.onnx"
    onnx.save(model, path)
    result = hwnas(
        "verify", "--reference", path, "--engine", path, "--data", "digits", "--config",
        folder / "config.toml", "--relative-width", 0.5, "--eps", 0.2, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "without white-box attacks" in result.stderr
    found = json.loads(result.stdout)["verification"]
    names = {gate["name"] for gate in found["gates"]}
    assert set(found["left_out"]) == {
        "square_gap", "adaptive_gap", "adaptive_drop", "more_steps", "larger_eps",
        "unbounded_eps", "attack_beats_noise",
    }  # fmt: skip
    assert not names & set(found["left_out"])
    assert all("`wave`" in reason for reason in found["left_out"].values())
    assert found["crafted"].startswith("Square on the reference")
    assert found["robust_accuracy"]["twin"]["value"] < found["clean_accuracy"]["twin"]["value"]


def test_a_damaged_model_exits_with_3(
    folder: Path, tmp_path: Path, hwnas: Callable[..., click.testing.Result]
) -> None:
    model = onnx.load(folder / "net.onnx")
    name = next(node for node in model.graph.node if node.op_type == "Gemm").input[1]
    (tensor,) = [each for each in model.graph.initializer if each.name == name]
    tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 1), name))
    onnx.save(model, tmp_path / "damaged.onnx")
    result = hwnas(
        "verify", "--reference", folder / "net.onnx", "--engine", tmp_path / "damaged.onnx",
        "--config", folder / "config.toml", "--relative-width", 0.5, "--json",
    )  # fmt: skip
    assert result.exit_code == 3
    assert "onnxruntime-cpu failed" in result.stderr
    assert "clean_drop" in result.stderr
    assert json.loads(result.stdout)["passed"] is False


@pytest.mark.parametrize(
    ("engine", "reference", "says"),
    [
        ("small.onnx", "net.onnx", "the engine takes images of 1x8x8"),
        ("seven.onnx", "net.onnx", "gives logits of shape"),
        ("softmax.onnx", "net.onnx", "gives probabilities, not logits"),
        ("net.onnx", "softmax.onnx", "gives probabilities, not logits"),
        ("cut.onnx", "net.onnx", "cut.onnx"),
        ("missing.onnx", "net.onnx", "missing.onnx does not exist"),
        ("net.py", "net.onnx", "is no .onnx file"),
        ("net.onnx", "missing.onnx", "missing.onnx does not exist"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_error(
    folder: Path, engine: str, reference: str, says: str
) -> None:
    with pytest.raises(HwnasError, match=says) as caught:
        checked(folder, engine, reference)
    assert not isinstance(caught.value, GateFailedError)
    assert "\n\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "`reference` is missing"),
        ({"reference": Path("net.onnx")}, "`engine` is missing"),
        ({"reference": Path("a"), "engine": Path("b")}, "`data` is missing"),
        ({"bundle": Path("bundle"), "engine": Path("b")}, "`engine` is for an engine without a"),
        ({"bundle": Path("bundle"), "budget_ms": 1.0}, "`budget_ms` is for an engine without a"),
    ],
)
def test_what_is_verified_is_named_once(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        hwnas.api.verify(**options)


def test_bad_numbers_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="`n` is at least 1"):
        checked(folder, "net.onnx", "net.onnx", n=0)
    with pytest.raises(ConfigError, match="not in pixel units"):
        checked(folder, "net.onnx", "net.onnx", eps="8")
