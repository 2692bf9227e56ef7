from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from hwnas.core.errors import ConfigError
from hwnas.space.blocks import ConvUnit, FeatureHead, expansion_width
from hwnas.space.operators import (
    head_variant,
    macs_of_operator,
    module_of_operator,
    parameters_of_operator,
    weights_of_operator,
)
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    MacCounter = Callable[[nn.Module, torch.Tensor], int]

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = OperatorKey(
    kind="head", in_shape=(6, 4, 3), out_shape=(5, 1, 1), hidden=24, variant=head_variant(10)
)


def test_an_expansion_of_one_is_none() -> None:
    assert expansion_width(12, 1) == 0
    assert expansion_width(12, 6) == 72


def test_a_unit_knows_its_parts() -> None:
    unit = ConvUnit(3, 8, kernel=5, activate=False)
    assert (unit.conv.kernel_size, unit.norm.num_features, unit.activate) == ((5, 5), 8, False)


def test_a_head_makes_features_of_the_average() -> None:
    head = FeatureHead(6, 5, hidden=24, features=10).eval()
    inputs = torch.randn(2, 6, 4, 3)
    taps: list[torch.Tensor] = []
    with torch.no_grad():
        logits = head(inputs, taps=taps)
        expanded, features = taps
        torch.testing.assert_close(expanded, head.expand(inputs))
        pooled = functional.hardswish(head.features(expanded.mean((2, 3))))
        torch.testing.assert_close(features, pooled[:, :, None, None])
        torch.testing.assert_close(logits, head.classifier(pooled))
        torch.testing.assert_close(logits, head(inputs))


def test_such_a_head_is_an_operator(counted_macs: MacCounter) -> None:
    module = module_of_operator(HEAD)
    inputs = torch.rand(1, *HEAD.in_shape)
    assert module(inputs).shape == (1, 5)
    assert macs_of_operator(HEAD) == counted_macs(module, inputs)
    # 1x1 expansion with batch normalization, then two linear layers with biases.
    assert parameters_of_operator(HEAD) == 6 * 24 + 2 * 24 + 25 * 10 + 11 * 5
    assert weights_of_operator(HEAD) == 6 * 24 + 24 + 25 * 10 + 11 * 5


@pytest.mark.parametrize(
    ("variant", "hidden"), [("relu-10", 24), ("hswish", 24), ("hswish-x", 24), ("hswish-10", 0)]
)
def test_a_head_of_another_kind_is_refused(variant: str, hidden: int) -> None:
    key = OperatorKey(
        kind="head", in_shape=(6, 4, 3), out_shape=(5, 1, 1), hidden=hidden, variant=variant
    )
    for use in (module_of_operator, macs_of_operator):
        with pytest.raises(ConfigError, match=f"variant `{variant}` and {hidden} hidden") as caught:
            use(key)
        assert "`hswish-1984` for 1984 features" in caught.value.hint
