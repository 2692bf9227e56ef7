from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from hwnas.space.channel.space import ChannelSpace
from hwnas.training.recalibration import recalibrate

if TYPE_CHECKING:
    from hwnas.data.images import ImageData
    from hwnas.space.channel.network import ChannelNetwork
    from hwnas.space.channel.spec import ChannelSpec

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def network(small_spec: ChannelSpec) -> ChannelNetwork:
    space = ChannelSpace(small_spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return space.network(space.largest)


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]


def spoil(network: nn.Module) -> None:
    """Leave statistics behind that are those of no network: as a supernet may."""
    generator = torch.Generator().manual_seed(0)
    for norm in norms(network):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_(0.0, 10.0, generator=generator)
        norm.running_var.uniform_(10.0, 100.0, generator=generator)


def test_statistics_are_those_of_the_images(network: ChannelNetwork, few_digits: ImageData) -> None:
    pixels = few_digits.train.pixels()
    recalibrate(network, pixels, batch=len(pixels))
    convolved = network.stem.conv[0](network.stem.normalize(pixels))
    norm = norms(network)[0]
    torch.testing.assert_close(norm.running_mean, convolved.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, convolved.var((0, 2, 3)))


def test_in_eval_mode_a_network_then_computes_what_it_does_while_training(
    network: ChannelNetwork, few_digits: ImageData
) -> None:
    pixels = few_digits.train.pixels()
    spoil(network)
    with torch.no_grad():
        trained = network.train()(pixels)
        spoil(network)
        far = network.eval()(pixels)
        recalibrate(network, pixels, batch=len(pixels))
        near = network(pixels)
    scale = trained.abs().max()
    assert (near - trained).abs().max() < 0.01 * scale
    assert (far - trained).abs().max() > 0.1 * scale


def test_what_was_before_is_forgotten_and_the_batch_matters_little(
    network: ChannelNetwork, few_digits: ImageData
) -> None:
    pixels = few_digits.train.pixels()
    with torch.no_grad():
        logits = []
        for batch in (96, 96, 32):
            spoil(network)
            recalibrate(network, pixels, batch=batch)
            logits.append(network.eval()(pixels))
    assert torch.equal(logits[0], logits[1])
    assert (logits[2] - logits[0]).abs().max() < 0.2 * logits[0].abs().max()


@pytest.mark.parametrize("training", [True, False])
def test_nothing_else_is_changed(
    network: ChannelNetwork, few_digits: ImageData, training: bool
) -> None:
    network.train(training)
    weights = {name: value.clone() for name, value in network.named_parameters()}
    recalibrate(network, few_digits.train.pixels())
    assert all(part.training is training for part in network.modules())
    assert {norm.momentum for norm in norms(network)} == {0.1}
    for name, value in network.named_parameters():
        assert torch.equal(value, weights[name])
        assert value.grad is None
