"""Networks of every kind of space, exported: the engine computes what PyTorch does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.robustness.evaluate import logits_from_module, logits_from_runner
from hwnas.space.mbconv.space import MBConvSpace
from hwnas.space.mbconv.spec import MBConvSpec, MBConvStage
from hwnas.space.operators import as_trained
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.verify.parity import parity_of
from hwnas.verify.tolerances import Tolerances
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.precision import onnx_in_precision
from tests.hwnas.stages.few_cells import CELLS

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.genotype import Genotype
    from hwnas.verify.parity import Parity

SPEC = MBConvSpec(
    name="few",
    image_shape=(2, 9, 9),
    classes=3,
    stem=8,
    stem_stride=1,
    stages=(
        MBConvStage(blocks=3, widths=(12, 8)),
        MBConvStage(blocks=2, widths=(16, 12), stride=2),
    ),
    kernels=(3, 5),
    expansions=(1, 2),
)
SPACE = MBConvSpace(SPEC)
# Block 2 is skipped from 8 to 12 channels, and block 3 from 12 to 8: padded, then cut.
RESIZED = ("k5-e2-se-w8", "skip-w12", "skip-w8", "k3-e1-w16", "skip-w12")


def parity(space: ChainSpace, genotype: Genotype, *batches: int) -> list[Parity]:
    """Compare PyTorch and the engine on images, in batches that it was not traced with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = as_trained(space.network(genotype)).eval()
    shape = space.spec.image_shape
    model = onnx_from_module(twin, (1, *shape), dynamic_batch=True)
    images = np.random.default_rng(0).random((7, *shape), dtype=np.float32)
    with OnnxRuntimeRunner(model.SerializeToString(), threads=1) as engine:
        return [
            parity_of(
                logits_from_module(twin, images, batch=batch),
                logits_from_runner(engine, images, batch=batch),
            )
            for batch in batches
        ]


def test_resized_skips_are_exported() -> None:
    genotype = SPACE.genotype(RESIZED)
    assert [key.kind for key in SPACE.operators_of(genotype)].count("resize") == 3
    for found in parity(SPACE, genotype, 1, 3):
        assert found.max_abs_diff is not None
        assert found.max_abs_diff < 1e-4
        assert found.distinct_logits_engine == found.distinct_logits_twin > 10


@pytest.mark.slow
@settings(max_examples=4)
@given(data=st.data())
def test_any_network_of_an_mbconv_space_is_exported(data: st.DataObject) -> None:
    choices = [data.draw(st.integers(0, len(options) - 1)) for options in SPACE.options]
    (found,) = parity(SPACE, SPACE.genotype_of_choices(choices), 2)
    assert found.max_abs_diff is not None
    assert found.max_abs_diff < 1e-4


def test_a_network_of_a_users_space_is_exported(users_code: Path) -> None:
    space = space_from_spec(space_spec(f"user:{users_code}:network", image_shape=(1, 8, 8)))
    (found,) = parity(space, space.smallest, 3)
    assert found.max_abs_diff is not None
    assert found.max_abs_diff < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["channel", "mbconv", "cells", "user"])
def test_networks_of_every_space_are_exported_in_every_precision(
    kind: str, users_code: Path
) -> None:
    """Rounding alone is judged: networks without training, whose predictions say nothing."""
    spec = {
        "channel": space_spec("rnas-cl-xs"),
        "mbconv": SPEC,
        "cells": CELLS,
        "user": space_spec(f"user:{users_code}:network", image_shape=(1, 8, 8)),
    }[kind]
    space = space_from_spec(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = as_trained(space.network(space.smallest)).eval()
    shape = space.spec.image_shape
    model = onnx_from_module(twin, (1, *shape), dynamic_batch=True)
    rng = np.random.default_rng(0)
    images, calibration = (rng.random((48, *shape), dtype=np.float32) for _ in range(2))
    expected = logits_from_module(twin, images, batch=48)
    tolerances = Tolerances()
    for precision, symmetric in (("fp32", False), ("fp16", False), ("int8", False), ("int8", True)):
        converted = onnx_in_precision(
            model, precision, calibration=calibration, symmetric=symmetric, float_head=True
        )
        with OnnxRuntimeRunner(converted.SerializeToString()) as engine:
            found = parity_of(expected, logits_from_runner(engine, images, batch=48))
        assert found.relative_l2 is not None
        assert found.relative_l2 < tolerances.at_precision(precision).relative_l2
        assert found.distinct_logits_engine > 0.9 * found.distinct_logits_twin
