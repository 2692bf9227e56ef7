"""The supernet against the networks that it holds, and against masks that are multiplied."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hwnas.space.blocks import (
    ConvUnit,
    FeatureHead,
    InvertedResidual,
    expansion_width,
    hidden_width,
)
from hwnas.space.channel.masks import ChannelMasks, first_channels
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import ChannelSpec, StageSpec
from hwnas.space.energy import channel_energy
from hwnas.space.memory_format import channels_last

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.channel.supernet import ChannelSupernet
    from hwnas.space.genotype import Genotype

pytestmark = pytest.mark.usefixtures("one_thread")

SPACES = {
    "plain": ChannelSpace(
        ChannelSpec(
            name="plain",
            image_shape=(3, 9, 9),
            classes=5,
            stem=8,
            stem_stride=1,
            stages=(
                # The stem's width is an option, then not the widest: shortcuts come and go.
                StageSpec(blocks=2, widths=(8, 6, 4)),
                StageSpec(blocks=3, widths=(12, 8, 5), stride=2),
                StageSpec(blocks=2, widths=(12, 7)),
            ),
            expansion=3,
        )
    ),
    # As that for ImageNet: a first stage without expansion, a stage at stride 1 that is wider or
    # narrower than the one before but shares widths with it, a head with features of its own.
    "imagenet": ChannelSpace(
        ChannelSpec(
            name="imagenet",
            image_shape=(3, 15, 11),
            classes=4,
            stem=8,
            stem_stride=2,
            stages=(
                StageSpec(blocks=2, widths=(8, 6), expansion=1),
                StageSpec(blocks=1, widths=(12, 8, 4)),
                StageSpec(blocks=2, widths=(10, 8, 6)),
                StageSpec(blocks=1, widths=(8,), stride=2),
            ),
            expansion=4,
            head=20,
        )
    ),
}
EVERY_SPACE = pytest.mark.parametrize("name", SPACES)


def images_for(space: ChannelSpace, seed: int, batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, *space.spec.image_shape, generator=generator)


def one_hot(space: ChannelSpace, genotype: Genotype) -> list[Tensor]:
    return [
        functional.one_hot(torch.tensor(choice), len(options)).float()
        for choice, options in zip(space.choices(genotype), space.options, strict=True)
    ]


def relaxed(space: ChannelSpace, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.softmax(2 * torch.randn(len(options), generator=generator), 0)
        for options in space.options
    ]


def drawn(space: ChannelSpace, seed: int) -> Genotype:
    return space.random_genotype(np.random.default_rng(seed))


@functools.cache
def trained(name: str) -> ChannelSupernet:
    """A supernet after some steps of soft and hard gates, its statistics far from their start."""
    space = SPACES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        supernet = space.supernet()
    optimizer = torch.optim.Adam(supernet.parameters(), lr=0.02)
    for step in range(16):
        gates = one_hot(space, drawn(space, step)) if step % 2 else relaxed(space, step)
        logits = supernet(images_for(space, step, batch=16), gates).logits
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(logits, torch.arange(16) % 4))
        optimizer.step()
    moved = supernet.state_dict()["network.blocks.3.expand.1.running_var"]
    assert (moved - 1).abs().max() > 0.1
    return supernet.eval()


# A supernet of one-hot gates is the slim network


@EVERY_SPACE
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_a_derived_network_is_the_masked_supernet(name: str, seed: int) -> None:
    space, supernet = SPACES[name], trained(name)
    genotype = drawn(space, seed)
    slim = space.network(genotype).eval()
    slim.load_state_dict(supernet.slim_state(genotype))
    images = images_for(space, seed)
    taps: list[Tensor] = []
    with torch.no_grad():
        derived = slim(images, taps=taps)
        masked = supernet(images, one_hot(space, genotype))
    assert slim.tap_names == supernet.tap_names
    assert len(taps) == len(masked.energies) == len(slim.tap_names)
    torch.testing.assert_close(masked.logits, derived, atol=1e-5, rtol=1e-5)
    for layer, tap, energy in zip(slim.tap_names, taps, masked.energies, strict=True):
        torch.testing.assert_close(energy, channel_energy(tap), atol=1e-5, rtol=1e-5, msg=layer)


@EVERY_SPACE
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_so_it_is_in_training_and_it_learns_the_same(name: str, seed: int) -> None:
    space, supernet = SPACES[name], SPACES[name].supernet().train()
    supernet.load_state_dict(trained(name).state_dict())
    genotype = drawn(space, seed)
    slim = space.network(genotype).train()
    slim.load_state_dict(supernet.slim_state(genotype))
    before = {name: value.clone() for name, value in supernet.network.state_dict().items()}
    images = images_for(space, seed, batch=8)
    derived, masked = slim(images), supernet(images, one_hot(space, genotype)).logits
    torch.testing.assert_close(masked, derived, atol=1e-4, rtol=1e-4)
    for logits in (derived, masked):
        torch.autograd.backward(logits.square().mean())
    full = dict(supernet.network.named_parameters())
    for layer, parameter in slim.named_parameters():
        assert parameter.grad is not None
        gradient = full[layer].grad
        assert gradient is not None
        window = tuple(slice(size) for size in parameter.shape)
        torch.testing.assert_close(
            gradient[window], parameter.grad, atol=1e-4, rtol=1e-3, msg=layer
        )
    # Statistics of the slim network's channels move as its own do, all others stay.
    after = supernet.network.state_dict()
    for layer, value in slim.state_dict().items():
        if layer.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(after[layer][: len(value)], value, atol=1e-5, rtol=1e-4)
            assert torch.equal(after[layer][len(value) :], before[layer][len(value) :]), layer


@EVERY_SPACE
def test_open_masks_are_no_masks(name: str) -> None:
    space, supernet = SPACES[name], trained(name)
    images = images_for(space, 0)
    with torch.no_grad():
        masked = supernet(images, one_hot(space, space.largest)).logits
        torch.testing.assert_close(masked, supernet.network(images), atol=1e-5, rtol=1e-5)


def test_slim_weights_are_copies() -> None:
    supernet = trained("plain")
    before = supernet.network.state_dict()["head.classifier.weight"].clone()
    for value in supernet.slim_state(SPACES["plain"].smallest).values():
        value.zero_()
    assert torch.equal(supernet.network.state_dict()["head.classifier.weight"], before)


def test_masks_are_no_weights() -> None:
    names = trained("plain").state_dict()
    assert all(name.startswith("network.") for name in names)


# What it computes for relaxed gates


class PlainMasks:
    """The supernet's mathematics, with every mask multiplied with what it masks.

    It reads the weights of a supernet in float64, and leaves its running statistics alone.
    """

    def __init__(self, space: ChannelSpace, supernet: ChannelSupernet) -> None:
        self.spec, self.options = space.spec, space.options
        self.network = supernet.network
        self.taps: list[Tensor] = []

    def __call__(self, images: Tensor, gates: Sequence[Tensor]) -> Tensor:
        network, spec = self.network, self.spec
        stem = network.stem.conv
        features = self._tap(
            functional.hardswish(self._normalized(stem, network.normalize(images)))
        )
        before = torch.ones(1).double()
        widths_in: tuple[int, ...] = (spec.stem,)
        for block, described, gate, widths in zip(
            network.blocks, spec.blocks, gates, self.options, strict=True
        ):
            assert isinstance(block, InvertedResidual)
            inner = [expansion_width(width, described.expansion) or width for width in widths_in]
            hidden = before @ first_channels(inner).double()
            out = gate @ first_channels(widths).double()
            hidden, out = hidden[:, None, None], out[:, None, None]
            expanded = features
            if isinstance(block.expand, ConvUnit):
                masked = self._normalized(block.expand, features) * hidden
                expanded = self._tap(functional.hardswish(masked))
            masked = self._normalized(block.depthwise, expanded) * hidden
            filtered = self._tap(functional.hardswish(masked))
            projected = self._normalized(block.project, filtered) * out
            self._tap(projected)
            output = projected
            if described.stride == 1:
                for i, width_in in enumerate(widths_in):
                    for j, width in enumerate(widths):
                        if width == width_in:
                            shared = min(features.shape[1], output.shape[1])
                            added = torch.zeros_like(output)
                            added[:, :shared] = features[:, :shared]
                            output = output + before[i] * gate[j] * added * out
            features, before, widths_in = output, gate, widths
        head = network.head
        if isinstance(head, FeatureHead):
            inner = [hidden_width(width, spec.expansion) for width in widths_in]
            hidden = (before @ first_channels(inner).double())[:, None, None]
            masked = self._normalized(head.expand, features) * hidden
            expanded = self._tap(functional.hardswish(masked))
            pooled = functional.hardswish(head.features(expanded.mean((2, 3))))
            self._tap(pooled[:, :, None, None])
            return torch.as_tensor(head.classifier(pooled))
        return torch.as_tensor(head(features))

    def _normalized(self, unit: ConvUnit, features: Tensor) -> Tensor:
        norm, values = unit.norm, unit.conv(features)
        if norm.training:
            return functional.batch_norm(
                values, None, None, norm.weight, norm.bias, training=True, eps=norm.eps
            )
        return functional.batch_norm(
            values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )

    def _tap(self, features: Tensor) -> Tensor:
        self.taps.append(features)
        return features


@EVERY_SPACE
@pytest.mark.parametrize("training", [False, True])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), hard=st.booleans(), last=st.booleans())
def test_folded_masks_compute_what_plain_ones_do(
    name: str, training: bool, seed: int, hard: bool, last: bool
) -> None:
    space = SPACES[name]
    supernet = space.supernet()
    supernet.load_state_dict(trained(name).state_dict())
    supernet.double().train(training)
    images = images_for(space, seed, batch=5).double()
    if last:
        channels_last(supernet)
        images = images.to(memory_format=torch.channels_last)
    plain = PlainMasks(space, supernet)
    some = one_hot(space, drawn(space, seed)) if hard else relaxed(space, seed)
    leaves = [gate.double().requires_grad_() for gate in some]
    expected = plain(images, leaves)
    energies = [tap.square().sum(1) for tap in plain.taps]
    observed = supernet(images, leaves)
    torch.testing.assert_close(observed.logits, expected, atol=1e-5, rtol=1e-5)
    for energy, own in zip(observed.energies, energies, strict=True):
        torch.testing.assert_close(energy, own, atol=1e-5, rtol=1e-5)
    # So do all gradients, of logits and energies together.
    parts = {f"gate {i}": leaf for i, leaf in enumerate(leaves)} | dict(supernet.named_parameters())
    gradients = []
    for logits, maps in ((observed.logits, observed.energies), (expected, energies)):
        loss = logits.square().sum() + sum((1 + each).log().sum() for each in maps)
        gradients.append(torch.autograd.grad(loss, list(parts.values())))
    for part, ours, plainly in zip(parts, *gradients, strict=True):
        torch.testing.assert_close(ours, plainly, atol=1e-5, rtol=1e-5, msg=part)


@given(seed=st.integers(0, 2**32))
def test_masks_of_relaxed_gates_are_the_chance_of_a_channel(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before, widths = (12, 8, 5), (12, 7, 5)
    masks = ChannelMasks(before, [40, 24, 16], widths, shortcut=True)
    first, second = (torch.softmax(torch.randn(3, generator=generator), 0) for _ in range(2))
    opened = masks(first, second)
    hidden, out = opened.hidden.tolist(), opened.out.tolist()
    p, q = first.tolist(), second.tolist()
    assert out == pytest.approx([1.0] * 5 + [q[0] + q[1]] * 2 + [q[0]] * 5, abs=1e-6)
    assert hidden == pytest.approx([1.0] * 16 + [p[0] + p[1]] * 8 + [p[0]] * 16, abs=1e-6)
    equal = p[0] * q[0] + p[2] * q[2]
    assert opened.shortcut.tolist() == pytest.approx([equal * each for each in out], abs=1e-6)


def test_masks_that_are_always_open_are_none() -> None:
    gates = torch.tensor([0.3, 0.7])
    assert ChannelMasks((8,), [24], (8, 4), shortcut=True)(torch.ones(1), gates).hidden is None
    # Widths may differ, and hidden channels be rounded to the same number.
    assert ChannelMasks((8, 7), [24, 24], (8, 4), shortcut=True)(gates, gates).hidden is None
    assert ChannelMasks((8, 6), [24, 16], (9, 4), shortcut=True)(gates, gates).shortcut is None
    assert ChannelMasks((8, 6), [24, 16], (8, 4), shortcut=False)(gates, gates).shortcut is None


def test_a_closed_option_is_missed() -> None:
    # The last block's wider option is closed; its gate must still feel what it would change.
    space, supernet = SPACES["plain"], trained("plain")
    gates = one_hot(space, space.smallest)
    gates[-1].requires_grad_()
    logits = supernet(images_for(space, 1), gates, observe=False).logits
    (gradient,) = torch.autograd.grad(logits.square().sum(), gates[-1])
    assert (gradient.abs() > 1e-4).all()


# How it runs


@EVERY_SPACE
def test_nothing_is_observed_that_is_not_asked_for(name: str) -> None:
    space, supernet = SPACES[name], trained(name)
    images, gates = images_for(space, 3), relaxed(space, 3)
    with torch.no_grad():
        silent, seen = supernet(images, gates, observe=False), supernet(images, gates)
    assert silent.energies == ()
    assert torch.equal(silent.logits, seen.logits)


@pytest.mark.slow
def test_it_is_one_graph_for_a_compiler() -> None:
    name = "imagenet"
    space = SPACES[name]
    supernet = space.supernet()
    images = images_for(space, 4, batch=6)
    compiled = torch.compile(supernet, backend="aot_eager", fullgraph=True)
    gradients = []
    for called in (supernet, compiled):
        supernet.load_state_dict(trained(name).state_dict())
        gates = [gate.requires_grad_() for gate in relaxed(space, 4)]
        observed = called(images, gates)
        loss = observed.logits.square().sum() + sum(each.sum() for each in observed.energies)
        gradients.append(torch.autograd.grad(loss, [*supernet.parameters(), *gates]))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_it_runs_under_autocast() -> None:
    space, supernet = SPACES["plain"], trained("plain")
    images, gates = images_for(space, 5), relaxed(space, 5)
    with torch.no_grad():
        exact = supernet(images, gates)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = supernet(images, gates)
    for ours, theirs in zip(rounded.energies, exact.energies, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=0.05 * float(theirs.max()), rtol=0.1)
