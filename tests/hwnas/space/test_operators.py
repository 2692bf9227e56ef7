from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from hwnas.core.errors import ConfigError
from hwnas.space.blocks import InvertedResidual, SqueezeExcite, squeeze_width
from hwnas.space.mbconv.space import MBConvSpace
from hwnas.space.mbconv.spec import MBConvSpec, MBConvStage
from hwnas.space.operators import macs_of_operator, module_of_operator, operator_of
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Callable

    MacCounter = Callable[[nn.Module, torch.Tensor], int]

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = MBConvSpace(
    MBConvSpec(
        name="small",
        image_shape=(3, 11, 7),
        classes=5,
        stem=12,
        stem_stride=1,
        stages=(MBConvStage(blocks=2, widths=(20,), stride=2),),
    )
)


@pytest.mark.parametrize(
    "key", [operator.key for operator in SMALL.operators()], ids=lambda key: str(key)
)
def test_an_operator_has_its_shapes_and_its_macs(
    key: OperatorKey, counted_macs: MacCounter
) -> None:
    module = module_of_operator(key)
    assert not module.training
    inputs = torch.rand(1, *key.in_shape)
    with torch.no_grad():
        assert module(inputs).numel() == torch.Size(key.out_shape).numel()
    assert macs_of_operator(key) == counted_macs(module, inputs)


def test_se_and_expansion_tell_operators_apart() -> None:
    keys = [operator.key for operator in SMALL.operators() if operator.key.kind == "mbconv"]
    assert {key.variant for key in keys} == {"hswish", "hswish-se"}
    assert {key.hidden for key in keys if key.in_shape[0] == 12} == {0, 40, 72}
    for key in keys:
        module = module_of_operator(key)
        excites = [each for each in module.modules() if isinstance(each, SqueezeExcite)]
        pointwise = [
            each
            for each in module.modules()
            if isinstance(each, nn.Conv2d) and each.kernel_size == (1, 1) and each.bias is None
        ]
        assert len(excites) == (key.variant == "hswish-se")
        assert len(pointwise) == (2 if key.hidden else 1)


def test_an_operator_is_measured_under_its_key() -> None:
    key = OperatorKey(kind="head", in_shape=(8, 4, 4), out_shape=(3, 1, 1), batch=2)
    operator = operator_of(key)
    assert (operator.key, operator.name, operator.input_shape) == (key, str(key), (2, 8, 4, 4))
    assert operator.build()(torch.rand(operator.input_shape)).shape == (2, 3)


def test_an_unknown_variant_is_refused() -> None:
    key = OperatorKey(
        kind="mbconv", in_shape=(8, 4, 4), out_shape=(8, 4, 4), kernel=3, variant="relu"
    )
    with pytest.raises(ConfigError, match="variant `relu`") as caught:
        module_of_operator(key)
    assert caught.value.hint == "known variants: hswish, hswish-se"


# Blocks


# Of MobileNetV3's tables, and the smallest.
@pytest.mark.parametrize(
    ("hidden", "squeezed"),
    [(72, 24), (120, 32), (240, 64), (480, 120), (672, 168), (960, 240), (16, 8), (1, 8)],
)
def test_squeeze_widths_are_those_of_mobilenet_v3(hidden: int, squeezed: int) -> None:
    assert squeeze_width(hidden) == squeezed


def test_squeeze_and_excite_weighs_channels_by_their_means() -> None:
    block = SqueezeExcite(4)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        features = torch.rand(2, 4, 5, 3)
        # hard-sigmoid(0) is one half.
        torch.testing.assert_close(block(features), features / 2)
        block.expand.get_parameter("bias").copy_(torch.tensor([3.0, -3.0, 0.0, 1.5]))
        factors = torch.tensor([1.0, 0.0, 0.5, 0.75])[:, None, None]
        torch.testing.assert_close(block(features), features * factors)
        # The mean of channel 0 alone opens channel 1.
        block.reduce.weight[0, 0] = 1.0
        block.expand.weight[1, 0] = 6.0
        mean = features[:, 0].mean(dim=(1, 2))[:, None, None]
        torch.testing.assert_close(block(features)[:, 1], features[:, 1] * mean.clamp(0, 1))


def test_excitation_comes_between_the_depthwise_convolution_and_the_projection() -> None:
    block = InvertedResidual(8, 8, hidden=16, kernel=3, stride=1, se=True).eval()
    features = torch.rand(1, 8, 4, 4)
    assert block.squeeze_excite is not None
    with torch.no_grad():
        filtered = block.depthwise(block.expand(features))
        expected = features + block.project(block.squeeze_excite(filtered))
        torch.testing.assert_close(block(features), expected)


def test_a_block_without_expansion_filters_its_input() -> None:
    block = InvertedResidual(8, 8, hidden=0, kernel=3, stride=1).eval()
    features = torch.rand(1, 8, 4, 4)
    with torch.no_grad():
        expected = features + block.project(block.depthwise(features))
        torch.testing.assert_close(block(features), expected)
    assert not any(name.startswith("expand") for name in block.state_dict())


def test_a_plain_block_has_the_weights_that_it_always_had() -> None:
    block = InvertedResidual(8, 4, hidden=16, kernel=3, stride=1)
    normalized = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert list(block.state_dict()) == [
        f"{part}.{name}"
        for part in ("expand", "depthwise", "project")
        for name in ("0.weight", *(f"1.{each}" for each in normalized))
    ]
