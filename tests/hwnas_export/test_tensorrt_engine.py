"""Real engines, built ahead of time by TensorRT for RTX: it needs no GPU to build, only to run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from hwnas.core.errors import ExportError, MissingDependencyError, TargetError
from hwnas_export.cuda_driver import cuda_driver
from hwnas_export.onnx_export import onnx_from_module, onnx_from_modules
from hwnas_export.precision import PRECISIONS, onnx_in_precision
from hwnas_export.tensorrt_api import is_rtx, trt_module
from hwnas_export.tensorrt_engine import EngineSettings, engine_from_onnx
from hwnas_export.tensorrt_runner import TensorRTRunner

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.tensorrt,
    # Its bindings deprecate some of what they hold as they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True, scope="module")  # so that it comes before any export
def _needs_a_builder() -> None:
    try:
        rtx = is_rtx(trt_module())
    except MissingDependencyError as error:
        pytest.skip(error.message)
    if not rtx:
        try:
            cuda_driver()
        except TargetError as error:
            pytest.skip(f"TensorRT builds on a GPU alone: {error.message}")


@pytest.fixture
def rtx() -> None:
    if not is_rtx(trt_module()):
        pytest.skip("only TensorRT for RTX builds for GPUs that are not here")


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 4, 1)
        self.excite = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean((2, 3), keepdim=True)
        return images * torch.sigmoid(self.excite(torch.relu(self.squeeze(means))))


def mbconv() -> nn.Module:
    widen = [nn.Conv2d(8, 32, 1, bias=False), nn.BatchNorm2d(32), nn.Hardswish()]
    depthwise = [nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU6()]
    return nn.Sequential(*widen, *depthwise, SqueezeExcite(32), nn.Conv2d(32, 8, 1))


def stem() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())


def head() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


SHAPES = {"mbconv": (1, 8, 16, 16), "stem": (1, 3, 32, 32), "head": (1, 8, 4, 4)}


@pytest.fixture(scope="module")
def models() -> dict[str, onnx.ModelProto]:
    exported = onnx_from_modules([mbconv(), stem(), head()], list(SHAPES.values()))
    return dict(zip(SHAPES, exported, strict=True))


@pytest.fixture(scope="module")
def free_batch_model() -> onnx.ModelProto:
    return onnx_from_module(mbconv(), SHAPES["mbconv"], dynamic_batch=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("block", SHAPES)
def test_every_block_becomes_an_engine_in_every_precision(
    models: dict[str, onnx.ModelProto], block: str, precision: str
) -> None:
    model = onnx_in_precision(models[block], precision, symmetric=True)
    assert len(engine_from_onnx(model.SerializeToString())) > 1_000


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_open_batch_becomes_an_engine(free_batch_model: onnx.ModelProto, precision: str) -> None:
    model = onnx_in_precision(free_batch_model, precision, symmetric=True).SerializeToString()
    assert engine_from_onnx(model, settings=EngineSettings(batches=(1, 16, 64)))


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "12.0"])
def test_engines_are_built_for_gpus_that_are_not_here(
    models: dict[str, onnx.ModelProto], capability: str
) -> None:
    settings = EngineSettings(compute_capabilities=(capability,))
    assert engine_from_onnx(models["stem"].SerializeToString(), settings=settings)


@pytest.mark.usefixtures("rtx")
def test_an_unknown_gpu_names_the_known_ones(models: dict[str, onnx.ModelProto]) -> None:
    settings = EngineSettings(compute_capabilities=("8.6", "8.8"))
    with pytest.raises(ExportError, match=r"for compute capability 8\.8") as caught:
        engine_from_onnx(models["stem"].SerializeToString(), settings=settings)
    assert "8.6" in caught.value.hint
    assert "12.0" in caught.value.hint


@pytest.mark.usefixtures("rtx")
def test_rtx_leaves_the_timing_cache_alone(
    models: dict[str, onnx.ModelProto], tmp_path: Path
) -> None:
    path = tmp_path / "timing.cache"
    assert engine_from_onnx(models["stem"].SerializeToString(), timing_cache=path)
    assert not path.exists()


def test_a_limit_of_workspace_is_kept(models: dict[str, onnx.ModelProto]) -> None:
    model = models["mbconv"].SerializeToString()
    assert engine_from_onnx(model, settings=EngineSettings(workspace_mib=256))
    with pytest.raises(ExportError, match="workspace limit") as caught:
        engine_from_onnx(model, settings=EngineSettings(workspace_mib=1))
    assert "1 MiB" in caught.value.hint


def unsupported() -> onnx.ModelProto:
    node = helper.make_node("Det", ["images"], ["logits"], name="the_determinant")
    graph = helper.make_graph(
        [node],
        "unsupported",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_an_operator_that_it_lacks_is_named_with_its_node() -> None:
    with pytest.raises(ExportError, match="cannot parse") as caught:
        engine_from_onnx(unsupported().SerializeToString())
    message = caught.value.message
    assert "node 0 `the_determinant` (Det)" in message
    assert ".cpp:" in message  # where in the parser


def test_an_operator_that_it_lacks_is_named_within_a_network(
    models: dict[str, onnx.ModelProto],
) -> None:
    model = onnx.ModelProto.FromString(models["stem"].SerializeToString())
    last = model.graph.node[-1]
    last.output[0] = "features"
    model.graph.node.append(
        helper.make_node("Det", ["features"], ["logits"], name="head/the_determinant")
    )
    del model.graph.output[0].type.tensor_type.shape.dim[2:]
    with pytest.raises(ExportError, match="cannot parse") as caught:
        engine_from_onnx(model.SerializeToString())
    position = len(model.graph.node) - 1
    assert f"node {position} `head/the_determinant` (Det)" in caught.value.message


@pytest.mark.usefixtures("rtx")
def test_what_the_builder_refuses_comes_in_its_own_words(
    models: dict[str, onnx.ModelProto],
) -> None:
    settings = EngineSettings(compute_capabilities=("7.5",))  # without float32 matrix products
    with pytest.raises(ExportError, match="TensorRT cannot build the model: ") as caught:
        engine_from_onnx(models["head"].SerializeToString(), settings=settings)
    assert "it does not say why" not in caught.value.message


def test_junk_is_refused() -> None:
    with pytest.raises(ExportError, match="TensorRT cannot parse the model"):
        engine_from_onnx(b"junk" * 100)


def test_unsigned_activations_are_refused_in_its_own_words(
    models: dict[str, onnx.ModelProto],
) -> None:
    model = onnx_in_precision(models["mbconv"], "int8")
    with pytest.raises(ExportError, match="zero point is not supported"):
        engine_from_onnx(model.SerializeToString())


def test_more_than_an_open_batch_is_refused() -> None:
    model = unsupported()
    model.graph.node[0].op_type = "Relu"
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3, "h", 4])
    )
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "h", 4])
    )
    with pytest.raises(ExportError, match="`images` leaves more than its batch open"):
        engine_from_onnx(model.SerializeToString())


@pytest.mark.parametrize("level", [0, 5])
def test_every_optimization_level_builds(models: dict[str, onnx.ModelProto], level: int) -> None:
    settings = EngineSettings(optimization_level=level)
    assert engine_from_onnx(models["head"].SerializeToString(), settings=settings)


def test_building_says_nothing(
    models: dict[str, onnx.ModelProto],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    engine_from_onnx(models["head"].SerializeToString())
    captured = capfd.readouterr()
    assert captured.out == captured.err == caplog.text == ""


def test_without_a_gpu_a_runner_is_refused_before_anything_is_built(
    models: dict[str, onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        cuda_driver()
    except TargetError:
        pass
    else:
        pytest.skip("there is a GPU here")
    monkeypatch.setattr("hwnas_export.tensorrt_runner.require_pycuda", lambda: None)
    runner = TensorRTRunner(models["stem"].SerializeToString())
    with pytest.raises(TargetError, match="no NVIDIA driver") as caught:
        runner.activate()
    assert "NVIDIA GPU" in caught.value.hint
    with pytest.raises(RuntimeError, match="not active"):
        runner.infer(np.zeros((1, 3, 32, 32), np.float32))
