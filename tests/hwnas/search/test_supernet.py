from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hwnas.search.supernet import ChannelMasks, Choices, one_hot_gates, sample_gates
from hwnas.space.channel_space import ChannelSpace
from hwnas.space.channel_spec import ChannelSpec, StageSpec

if TYPE_CHECKING:
    from hwnas.space.network import ChannelNetwork

pytestmark = pytest.mark.usefixtures("one_thread")

SPACE = ChannelSpace(
    ChannelSpec(
        name="masked",
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
)


@pytest.fixture(scope="session")
def trained() -> ChannelNetwork:
    """A supernet after some steps of soft and hard gates, its statistics far from their start."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        supernet = SPACE.supernet()
    masks, choices = ChannelMasks(SPACE), Choices(SPACE, 1, 1)
    optimizer = torch.optim.Adam(supernet.parameters(), lr=0.02)
    for step in range(12):
        images = torch.rand(16, 3, 9, 9, generator=generator)
        labels = torch.randint(5, (16,), generator=generator)
        gates = sample_gates(choices, 1.0, generator, hard=step % 2 == 0)
        loss = functional.cross_entropy(supernet(images, masks(gates)), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert (supernet.state_dict()["blocks.3.expand.1.running_var"] - 1).abs().max() > 0.1
    return supernet.eval()


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_a_derived_network_is_the_masked_supernet(trained: ChannelNetwork, seed: int) -> None:
    genotype = SPACE.random_genotype(np.random.default_rng(seed))
    slim = SPACE.network(genotype).eval()
    slim.load_state_dict(SPACE.slim_state(trained, genotype))
    images = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    masks = ChannelMasks(SPACE)(one_hot_gates(SPACE, SPACE.choices(genotype)))
    slim_taps: list[torch.Tensor] = []
    full_taps: list[torch.Tensor] = []
    with torch.no_grad():
        derived = slim(images, taps=slim_taps)
        masked = trained(images, masks, full_taps)
    torch.testing.assert_close(derived, masked, atol=1e-5, rtol=1e-5)
    # What the tutors see is the same too: equal where open, zero where closed.
    for name, small, full in zip(slim.tap_names, slim_taps, full_taps, strict=True):
        open_channels = full[:, : small.shape[1]]
        torch.testing.assert_close(open_channels, small, atol=1e-5, rtol=1e-5, msg=name)
        assert not full[:, small.shape[1] :].any(), name


def test_open_masks_are_no_masks(trained: ChannelNetwork) -> None:
    images = torch.rand(4, 3, 9, 9)
    masks = ChannelMasks(SPACE)(one_hot_gates(SPACE, [0] * len(SPACE.options)))
    with torch.no_grad():
        torch.testing.assert_close(trained(images, masks), trained(images), atol=1e-5, rtol=1e-5)


def test_slim_weights_are_copies(trained: ChannelNetwork) -> None:
    before = trained.head.classifier.weight.clone()
    state = SPACE.slim_state(trained, SPACE.smallest)
    for value in state.values():
        value.zero_()
    assert torch.equal(trained.head.classifier.weight, before)


@given(seed=st.integers(0, 2**32))
def test_masks_of_relaxed_gates_are_the_chance_of_a_channel(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gates = [
        torch.softmax(torch.randn(len(options), generator=generator), 0)
        for options in SPACE.options
    ]
    before: tuple[tuple[int, float], ...] = ((SPACE.spec.stem, 1.0),)
    for mask, gate, options in zip(ChannelMasks(SPACE)(gates), gates, SPACE.options, strict=True):
        here = tuple(zip(options, gate.tolist(), strict=True))
        for channel in range(max(options)):
            chance = sum(p for width, p in here if width > channel)
            assert float(mask.out[channel]) == pytest.approx(chance, abs=1e-6)
        equal = sum(p * q for w, p in before for v, q in here if w == v)
        assert float(mask.residual) == pytest.approx(equal, abs=1e-6)
        assert mask.hidden.shape[1:] == mask.out.shape[1:] == (1, 1)
        # Masks only ever close from the back.
        assert (mask.hidden.flatten().diff() <= 1e-6).all()
        before = here


@pytest.mark.parametrize("hard", [False, True])
def test_gates_pass_gradients_to_every_choice_but_the_certain(hard: bool) -> None:
    choices = Choices(SPACE, 1, 1)
    gates = sample_gates(choices, 1.0, torch.Generator().manual_seed(0), hard=hard)
    logits = SPACE.supernet()(torch.rand(8, 3, 9, 9), ChannelMasks(SPACE)(gates))
    torch.autograd.backward(logits.square().mean())
    for parameter in choices.architecture:
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    if hard:
        assert all(set(gate.tolist()) == {0.0, 1.0} for gate in gates)


def test_choices_start_even() -> None:
    choices = Choices(SPACE, 7, 3)
    for probabilities, options in zip(choices.probabilities(), SPACE.options, strict=True):
        assert torch.allclose(probabilities, torch.full_like(probabilities, 1 / len(options)))
    assert choices.tutors.shape == (7, 3)
    assert not choices.tutors.any()
