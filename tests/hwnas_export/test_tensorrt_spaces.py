"""Engines of every space's blocks, really built by TensorRT for RTX, ahead of time and with no GPU.

Blocks of one kind differ between spaces in their sizes alone, so each kind is built once, in the
smallest size that some space has. The blocks of a family are put side by side into one network: a
build's cost lies mostly in the build, not in the blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.space.ensemble import Ensemble
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import SPACES, space_spec
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.precision import PRECISIONS, onnx_in_precision, precision_of
from hwnas_export.tensorrt_engine import EngineSettings, engine_from_onnx

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

    from hwnas_profilers.workload import Operator

pytestmark = [
    pytest.mark.tensorrt,
    # Its bindings deprecate some of what they hold as they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

USER_SPACE = f"user:{Path(__file__).parents[2] / 'examples' / 'user_space.py'}:network"
FAMILIES = ("channel", "mbconv", "cells", "user")
WHOLE = ("rnas-cl-xs", "mbconv-32", "darts-xs", USER_SPACE)
"""A space of each family, the quickest to export."""

SETTINGS = EngineSettings(compute_capabilities=("8.9",), batches=(1, 4, 16))
Trait: TypeAlias = tuple[str, int, int, bool, str]


@pytest.fixture(autouse=True, scope="module")
def _needs_rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX, which builds without a GPU")


def trait(operator: Operator) -> Trait:
    """Return what a block's graph follows from, but for its sizes."""
    key = operator.key
    return (key.kind, key.kernel, key.stride, key.hidden > 0, key.variant)


def family_of(name: str) -> str:
    return type(space_spec(name)).__module__.split(".")[2]


@pytest.fixture(scope="module")
def blocks() -> dict[str, dict[Trait, Operator]]:
    """One block of each kind, by the family of the first space that has it."""
    found: dict[str, dict[Trait, Operator]] = {family: {} for family in FAMILIES}
    for name in (*SPACES, USER_SPACE):
        space = space_from_spec(space_spec(name))
        for operator in sorted(space.operators(), key=lambda each: space.macs_of(each.key)):
            kinds = found[family_of(name)]
            if not any(trait(operator) in family for family in found.values()):
                kinds[trait(operator)] = operator
    return found


class SideBySide(nn.Module):
    """Blocks that see corners of the same images; of each, the mean of what it computes."""

    def __init__(self, operators: Iterable[Operator]) -> None:
        super().__init__()
        operators = list(operators)
        self.shapes = [operator.input_shape[1:] for operator in operators]
        self.blocks = nn.ModuleList(operator.build() for operator in operators)
        self.image_shape = tuple(max(sizes) for sizes in zip(*self.shapes, strict=True))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = [
            block(images[:, :channels, :height, :width]).flatten(1).mean(1, keepdim=True)
            for block, (channels, height, width) in zip(self.blocks, self.shapes, strict=True)
        ]
        return torch.cat(means, 1)


def built(model: onnx.ModelProto, precision: str) -> bytes:
    converted = onnx_in_precision(model, precision, symmetric=True)
    assert precision_of(converted) == precision
    return engine_from_onnx(converted.SerializeToString(), settings=SETTINGS)


def test_no_space_is_left_out(blocks: dict[str, dict[Trait, Operator]]) -> None:
    assert {family_of(name) for name in (*SPACES, USER_SPACE)} == set(FAMILIES)
    assert all(blocks.values())
    assert {family_of(name) for name in WHOLE} == set(FAMILIES)


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed batch", "open batch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_becomes_an_engine_in_every_precision(
    blocks: dict[str, dict[Trait, Operator]], family: str, dynamic: bool
) -> None:
    joined = SideBySide(blocks[family].values()).eval()
    shape = (2, *joined.image_shape)
    model = onnx_from_module(joined, shape, dynamic_batch=dynamic)
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    with OnnxRuntimeRunner(model.SerializeToString()) as runner, torch.no_grad():
        expected = joined(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(runner.infer(images), expected, atol=1e-4)
    for precision in PRECISIONS:
        assert len(built(model, precision)) > 10_000


@pytest.mark.parametrize("name", WHOLE, ids=FAMILIES)
def test_a_whole_network_of_every_family_becomes_an_engine(name: str) -> None:
    space = space_from_spec(space_spec(name))
    model = onnx_from_module(
        space.network(space.smallest).eval(), (1, *space.spec.image_shape), dynamic_batch=True
    )
    for precision in PRECISIONS:
        assert len(built(model, precision)) > 10_000


def test_an_ensemble_becomes_an_engine() -> None:
    space = space_from_spec(space_spec("rnas-cl-xs"))
    shape, classes = space.spec.image_shape, space.spec.classes
    members = [space.network(genotype) for genotype in (space.smallest, space.largest)]
    together = Ensemble(members, "concat", image_shape=shape, classes=classes).eval()
    model = onnx_from_module(together, (1, *shape), dynamic_batch=True)
    for precision in PRECISIONS:
        assert len(built(model, precision)) > 10_000
