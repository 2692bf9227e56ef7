"""Whole networks against ONNX Runtime: of our spaces, in each precision, and common designs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.nn import functional

from hwnas.robustness.evaluate import logits_from_module
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.precision import onnx_in_precision
from hwnas_export.torch_from_onnx import check_twin, torch_from_onnx

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Images = NDArray[np.float32]


def images_of(count: int, shape: tuple[int, ...], seed: int = 0) -> Images:
    return np.random.default_rng(seed).random((count, *shape), dtype=np.float32)


def onnxruntime_logits(model: onnx.ModelProto, images: Images, *, fused: bool) -> Images:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    logits: Images = session.run(None, {"images": images})[0]
    return logits


def alive(network: nn.Module, images: Images) -> nn.Module:
    """Give batch normalization the images' statistics: untrained, deep logits hardly vary."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
    with torch.no_grad():
        network.train()(torch.from_numpy(images))
    return network.eval()


@pytest.fixture(scope="module", params=["rnas-cl-xs", "mbconv-32"])
def ours(request: pytest.FixtureRequest) -> tuple[nn.Module, onnx.ModelProto]:
    space = space_from_spec(space_spec(request.param, image_shape=(3, 16, 16), classes=10))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        genotype = space.random_genotype(np.random.default_rng(1))
        network = alive(space.network(genotype), images_of(64, (3, 16, 16)))
    return network, onnx_from_module(network, (1, 3, 16, 16), dynamic_batch=True)


# Shares of the largest logit. In fp16 ONNX Runtime computes on the CPU in fp32, between roundings
# of its own choice.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_networks_of_our_spaces(
    ours: tuple[nn.Module, onnx.ModelProto], precision: str, tolerance: float
) -> None:
    images = images_of(64, (3, 16, 16), seed=1)
    model = onnx_in_precision(ours[1], precision)
    parity = check_twin(model, torch_from_onnx(model), images)
    assert parity.max_abs_diff is not None
    assert parity.largest is not None
    assert parity.largest > 0.3
    assert parity.max_abs_diff <= tolerance * parity.largest
    assert parity.agreement == 1.0


@pytest.mark.parametrize("symmetric", [False, True])
def test_int8_networks_are_onnx_itself_and_near_the_engine(
    ours: tuple[nn.Module, onnx.ModelProto], symmetric: bool
) -> None:
    images = images_of(64, (3, 16, 16), seed=1)
    model = onnx_in_precision(
        ours[1], "int8", calibration=images_of(64, (3, 16, 16)), symmetric=symmetric
    )
    full, twin = (
        logits_from_module(module, images, batch=64) for module in (ours[0], torch_from_onnx(model))
    )
    plain, engine = (onnxruntime_logits(model, images, fused=fused) for fused in (False, True))

    def apart(a: Images, b: Images) -> float:
        return float(np.abs(a - b).mean() / np.abs(full).mean())

    # Node by node the two differ by sums in another order alone, which now and then tip a rounding;
    # layers behind it spread what one step made.
    assert apart(twin, plain) < 0.03 < apart(full, plain)
    # Fused, ONNX Runtime rounds biases and sums integers: the engine is not quite its own graph,
    # and its twin is as near as another rounding of the same network is.
    assert apart(twin, engine) < 1.2 * apart(full, engine)


def test_gradients_of_our_networks(ours: tuple[nn.Module, onnx.ModelProto]) -> None:
    found = []
    for module in (ours[0], torch_from_onnx(ours[1])):
        images = torch.from_numpy(images_of(8, (3, 16, 16), seed=2)).requires_grad_()
        torch.autograd.backward(functional.cross_entropy(module(images), torch.arange(8)))
        assert images.grad is not None
        found.append(images.grad)
    assert float(found[0].abs().max()) > 1e-4
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-6)


class Patches(nn.Module):
    """A small vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.places = nn.Parameter(torch.randn(1, 16, 16))
        self.layer = nn.TransformerEncoderLayer(
            16, 2, 32, activation="gelu", batch_first=True, norm_first=True, dropout=0.0
        )
        self.head = nn.Linear(16, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        logits: torch.Tensor = self.head(self.layer(tokens).mean(1))
        return logits


class Dense(nn.Module):
    """Joined features, and pooling whose windows reach beyond the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.norm = nn.BatchNorm2d(16)
        self.mean = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)
        self.most = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.head = nn.Linear(16, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = self.first(images)
        joined = torch.cat([first, torch.tanh(self.second(first))], 1)
        features = self.most(self.mean(functional.leaky_relu(self.norm(joined))))
        logits: torch.Tensor = self.head(functional.dropout(features.amax((2, 3)), training=False))
        return logits


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("kind", [Patches, Dense])
def test_what_torch_exports(kind: type[nn.Module], opset: int) -> None:
    images = images_of(8, (3, 16, 16))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = alive(kind(), images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, (torch.zeros(2, 3, 16, 16),), dynamo=True, opset_version=opset, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=99)},),
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    assert model.opset_import[0].version == opset
    parity = check_twin(model, torch_from_onnx(model), images)
    assert parity.max_abs_diff is not None
    assert parity.max_abs_diff < 1e-5
    assert parity.agreement == 1.0
