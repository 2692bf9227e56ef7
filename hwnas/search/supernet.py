"""What a supernet learns besides its choices: its architecture logits and its tutor logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import nn

from hwnas.distill.gumbel import gumbel_softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.chain_space import ChainSpace

GateKind: TypeAlias = Literal["soft", "hard", "mixture"]
"""`soft`: a relaxed sample; `hard`: one network, gradients straight through; `mixture`: the
distribution itself, without noise or temperature, as DARTS has it."""


class Choices(nn.Module):
    """What a search learns besides weights.

    All logits start at zero: every option is as likely as any other.

    Args:
        space: The space.
        student_layers: Layers of the supernet that learn from a tutor.
        teacher_layers: Layers of the teacher that may be one.

    Attributes:
        architecture: Tensors that the space makes the logits of its blocks of: one of (options,)
            per searched block, or what its `choice_shapes` say.
        tutors: (student layers, teacher layers) logits.
    """

    def __init__(self, space: ChainSpace, student_layers: int, teacher_layers: int) -> None:
        super().__init__()
        self.architecture = nn.ParameterList(
            nn.Parameter(torch.zeros(shape)) for shape in space.choice_shapes
        )
        self.tutors = nn.Parameter(torch.zeros(student_layers, teacher_layers))
        self._space = space

    def logits(self) -> list[Tensor]:
        """Return each block's logits of its options, (options,)."""
        return self._space.block_logits(list(self.architecture))

    def probabilities(self) -> list[Tensor]:
        """Return each block's distribution over its options."""
        return [torch.softmax(logits, dim=0) for logits in self.logits()]


def sample_gates(
    choices: Choices, temperature: float, generator: torch.Generator, *, kind: GateKind = "soft"
) -> list[Tensor]:
    """Make each block's gates once, for a whole batch.

    Args:
        choices: The logits.
        temperature: Of the Gumbel-Softmax.
        generator: Source of its noise.
        kind: What to draw; a mixture is not drawn, and takes nothing from the generator.
    """
    if kind == "mixture":
        return choices.probabilities()
    return [
        gumbel_softmax(logits, temperature, generator, hard=kind == "hard")
        for logits in choices.logits()
    ]


def one_hot_gates(space: ChainSpace, chosen: Sequence[int]) -> list[Tensor]:
    """Return the gates that open exactly one network's channels."""
    return [
        torch.nn.functional.one_hot(torch.tensor(choice), len(options)).to(torch.float32)
        for choice, options in zip(chosen, space.options, strict=True)
    ]
