from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from hwnas.core.errors import ConfigError
from hwnas.space.macs import macs_of_network
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.space.widening import widened

if TYPE_CHECKING:
    from pathlib import Path

SPACES = ("rnas-cl-xs", "rnas-cl-m", "mbconv-32", "mbconv-32-widths", "darts-8")


@pytest.mark.parametrize("name", SPACES)
def test_width_one_is_the_network_itself(name: str) -> None:
    space = space_from_spec(space_spec(name))
    genotype = space.random_genotype(np.random.default_rng(0))
    same = widened(space, genotype, 1.0)
    same.load_state_dict(space.network(genotype).state_dict())
    assert same.tap_names == space.network(genotype).tap_names


@pytest.mark.parametrize("name", SPACES)
def test_wider_has_more_macs_and_runs(name: str) -> None:
    space = space_from_spec(space_spec(name))
    genotype = space.random_genotype(np.random.default_rng(1))
    shape = space.spec.image_shape
    macs = [macs_of_network(widened(space, genotype, each), shape) for each in (0.3, 1, 1.7, 3)]
    assert macs == sorted(set(macs))
    assert macs[1] == space.macs(genotype)
    # Nearly quadratic: depthwise convolutions and the first layer are linear in the width.
    assert 4 * macs[1] < macs[3] < 9.5 * macs[1]
    with torch.no_grad():
        assert widened(space, genotype, 1.7).eval()(torch.rand(1, *shape)).shape[0] == 1


def test_macs_leave_the_mode_alone() -> None:
    space = space_from_spec(space_spec("rnas-cl-xs"))
    network = space.network(space.smallest)
    stem = network.get_submodule("stem").eval()
    macs_of_network(network, space.spec.image_shape)
    assert network.training
    assert not stem.training


def test_a_users_network_cannot_be_widened(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "from hwnas.space.user.parts import Follows, Searched\n"
        "def network(classes):\n"
        "    return nn.Sequential(\n"
        "        Searched({'a': lambda i, o: nn.Conv2d(i, o, 3)}, widths=(4, 2)),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), Follows(lambda w: nn.Linear(w, classes)))\n"
    )
    spec = space_spec(f"user:{file}:network", image_shape=(1, 8, 8), classes=3)
    space = space_from_spec(spec)
    with pytest.raises(ConfigError, match="cannot be widened") as caught:
        widened(space, space.largest, 2.0)
    assert "wider" in caught.value.hint
