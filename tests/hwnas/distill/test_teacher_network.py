from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hwnas.core.errors import ConfigError
from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = TeacherSpec(image_shape=(3, 12, 12), classes=4, width=4, blocks=(1, 2, 1))


@pytest.fixture
def network() -> TeacherNetwork:
    return TeacherNetwork(SPEC).eval()


def test_a_stage_doubles_the_channels_and_halves_the_size(network: TeacherNetwork) -> None:
    shapes: list[tuple[int, ...]] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    assert network(torch.rand(2, 3, 12, 12)).shape == (2, 4)
    assert shapes == [(4, 12, 12), (8, 6, 6), (8, 6, 6), (16, 3, 3)]


def test_tutors_are_the_stem_and_every_convolution_of_a_block(network: TeacherNetwork) -> None:
    modules = dict(network.named_modules())
    assert set(network.tap_names) <= set(modules)
    assert len(network.tap_names) == 1 + 2 * 4
    main_path = [
        name
        for name, each in modules.items()
        if isinstance(each, nn.Conv2d) and "shortcut" not in name
    ]
    assert len(main_path) == len(network.tap_names)


def test_what_a_tutor_shows_is_after_its_activation(network: TeacherNetwork) -> None:
    network.normalize.set_statistics([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    network.train()(torch.rand(8, 3, 12, 12))  # moves the running statistics
    network.eval()
    modules = dict(network.named_modules())
    lowest: list[float] = []
    for name in network.tap_names:
        modules[name].register_forward_hook(lambda _, __, out: lowest.append(float(out.min())))
    with torch.no_grad():
        network(torch.rand(2, 3, 12, 12))
    assert len(lowest) == len(network.tap_names)
    assert min(lowest) == 0  # before it, normalization would have made half of it negative


@pytest.mark.parametrize("changes", [{"width": 0}, {"blocks": ()}, {"blocks": (1, 0)}])
def test_a_teacher_without_layers_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="positive width and blocks in each stage"):
        TeacherSpec(image_shape=(1, 8, 8), classes=2, **changes)
