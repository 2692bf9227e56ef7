from __future__ import annotations

from typing import get_args

import pytest
import torch

from hwnas.search.supernet import Choices, GateKind, one_hot_gates, sample_gates
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import ChannelSpec, StageSpec

pytestmark = pytest.mark.usefixtures("one_thread")

SPACE = ChannelSpace(
    ChannelSpec(
        name="chosen",
        image_shape=(3, 9, 9),
        classes=5,
        stem=8,
        stem_stride=1,
        stages=(
            StageSpec(blocks=2, widths=(8, 6, 4)),
            StageSpec(blocks=2, widths=(12, 7), stride=2),
        ),
        expansion=3,
    )
)


@pytest.mark.parametrize("kind", get_args(GateKind))
def test_gates_pass_gradients_to_every_choice(kind: GateKind) -> None:
    choices = Choices(SPACE, 1, 1)
    gates = sample_gates(choices, 1.0, torch.Generator().manual_seed(0), kind=kind)
    logits = SPACE.supernet()(torch.rand(8, 3, 9, 9), gates).logits
    torch.autograd.backward(logits.square().mean())
    for parameter in choices.architecture:
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    if kind == "hard":
        assert all(set(gate.tolist()) == {0.0, 1.0} for gate in gates)


def test_one_hot_gates_are_of_the_chosen_options() -> None:
    gates = one_hot_gates(SPACE, [2, 0, 1, 1])
    assert [gate.tolist() for gate in gates] == [[0, 0, 1], [1, 0, 0], [0, 1], [0, 1]]


def test_choices_start_even() -> None:
    choices = Choices(SPACE, 7, 3)
    for probabilities, options in zip(choices.probabilities(), SPACE.options, strict=True):
        assert torch.allclose(probabilities, torch.full_like(probabilities, 1 / len(options)))
    assert choices.tutors.shape == (7, 3)
    assert not choices.tutors.any()
