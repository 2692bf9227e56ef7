from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from hwnas.core.errors import ConfigError
from hwnas.space.cells.operations import (
    NONE,
    OPERATIONS,
    FactorizedReduce,
    cell_module,
    operation_key,
)
from hwnas.space.cells.space import CellSpace
from hwnas.space.cells.spec import CELL_SPACES, CellSpec
from hwnas.space.operators import (
    macs_of_operator,
    module_of_operator,
    parameters_of_operator,
    weights_of_operator,
)
from hwnas_export.memory import memory_of_onnx
from hwnas_export.onnx_export import onnx_from_modules
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Callable

    MacCounter = Callable[[nn.Module, torch.Tensor], int]

pytestmark = pytest.mark.usefixtures("one_thread")

# Odd sizes, that strides do not divide, and channels that are no multiples of 4.
SMALL = CellSpace(
    CellSpec(name="small", image_shape=(2, 13, 9), classes=4, cells=3, channels=3, nodes=2)
)
KEYS = [operator.key for operator in SMALL.operators()]
CANDIDATES = [name for name in OPERATIONS if name != NONE]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_an_operator_does_what_its_key_says(key: OperatorKey, counted_macs: MacCounter) -> None:
    module = module_of_operator(key)
    images = torch.rand(2, *key.in_shape)
    shape = key.out_shape if key.kind != "head" else key.out_shape[:1]
    assert module(images).shape == (2, *shape)
    assert not module.training
    assert macs_of_operator(key) == counted_macs(module, images[:1])
    assert parameters_of_operator(key) == sum(each.numel() for each in module.parameters())


def test_weights_are_those_of_the_exported_graphs() -> None:
    keys = [*{(key.kind, key.variant): key for key in KEYS}.values()]  # the last of each
    models = onnx_from_modules(
        [module_of_operator(key) for key in keys], [(1, *key.in_shape) for key in keys]
    )
    for key, model in zip(keys, models, strict=True):
        assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
        counted = 4 * weights_of_operator(key)
        # Where slices begin and end, and the like, are constants of a few integers.
        assert counted <= memory_of_onnx(model).weights_bytes <= counted + 256, key


@pytest.mark.parametrize(("name", "stride"), list(itertools.product(CANDIDATES, (1, 2))))
def test_an_operation_keeps_channels_and_halves_sizes_upward(name: str, stride: int) -> None:
    for size in ((8, 8), (7, 5), (1, 1)):
        module = cell_module(operation_key(name, 6, size, stride)).eval()
        given = module(torch.rand(2, 6, *size))
        assert given.shape == (2, 6, *(-(-side // stride) for side in size))


def test_nothing_runs_for_a_skip_that_keeps_the_size() -> None:
    assert operation_key("skip", 8, (4, 4), 1) is None
    assert isinstance(cell_module(None), nn.Identity)
    key = operation_key("skip", 8, (4, 4), 2)
    assert key is not None
    assert str(key) == "factorized 8x4x4->8x2x2 k0 s2 h0 b1 fp32"


def test_a_separable_convolution_has_twice_what_one_has() -> None:
    """As of the paper's code: applied twice, the first with the stride."""
    module = cell_module(operation_key("sep5", 6, (8, 8), 2))
    convolutions = [each for each in module.modules() if isinstance(each, nn.Conv2d)]
    assert [(each.kernel_size[0], each.stride[0], each.groups) for each in convolutions] == [
        (5, 2, 6), (1, 1, 1), (5, 1, 6), (1, 1, 1),
    ]  # fmt: skip
    dilated = cell_module(operation_key("dil5", 6, (8, 8), 1))
    first = next(each for each in dilated.modules() if isinstance(each, nn.Conv2d))
    assert (first.dilation, first.padding) == ((2, 2), (4, 4))


def test_averages_do_not_count_the_padding() -> None:
    ones = torch.ones(1, 2, 5, 5)
    module = cell_module(operation_key("avg3", 2, (5, 5), 1))
    assert torch.equal(module(ones), ones)


def test_a_factorized_reduction_sees_even_and_odd_pixels() -> None:
    """Against its definition: each half of the output reads the pixels of its own shift."""
    reduce = FactorizedReduce(2, 4).eval()
    images = torch.randn(1, 2, 6, 6)
    halves = reduce(images)
    even, odd = (
        torch.einsum("oc,bchw->bohw", conv.get_parameter("weight")[:, :, 0, 0], torch.relu(pixels))
        / (1 + 1e-5) ** 0.5
        for conv, pixels in (
            (reduce.get_submodule("even.0"), images[:, :, ::2, ::2]),
            (reduce.get_submodule("odd.0"), images[:, :, 1::2, 1::2]),
        )
    )
    torch.testing.assert_close(halves, torch.cat([even, odd], dim=1))


@pytest.mark.parametrize(("kind", "variant"), [("pool", "median"), ("cell", ""), ("pool", "")])
def test_an_operator_that_cells_do_not_have_is_refused(kind: str, variant: str) -> None:
    key = OperatorKey(kind=kind, in_shape=(2, 4, 4), out_shape=(2, 4, 4), variant=variant)
    with pytest.raises(ConfigError, match=f"no operator of kind `{kind}`"):
        module_of_operator(key)
    with pytest.raises(ConfigError) as caught:
        cell_module(key)
    assert "sep, dil, pool, factorized, preprocess" in caught.value.hint


def test_every_operator_of_the_published_space_can_be_built_and_named() -> None:
    keys = [operator.key for operator in CellSpace(CELL_SPACES["darts"]).operators()]
    assert len(set(map(str, keys))) == len(keys) == 42
    with torch.device("meta"):
        for key in keys:
            assert parameters_of_operator(key) >= 0
