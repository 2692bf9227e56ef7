"""What a supernet learns besides its choices: its architecture logits and its tutor logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from hwnas.distill.gumbel import gumbel_softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.chain_space import ChainSpace


class Choices(nn.Module):
    """What a search learns besides weights.

    All logits start at zero: every option is as likely as any other.

    Args:
        space: The space.
        student_layers: Layers of the supernet that learn from a tutor.
        teacher_layers: Layers of the teacher that may be one.

    Attributes:
        architecture: One (options,) tensor of logits per searched block.
        tutors: (student layers, teacher layers) logits.
    """

    def __init__(self, space: ChainSpace, student_layers: int, teacher_layers: int) -> None:
        super().__init__()
        self.architecture = nn.ParameterList(
            nn.Parameter(torch.zeros(len(options))) for options in space.options
        )
        self.tutors = nn.Parameter(torch.zeros(student_layers, teacher_layers))

    def probabilities(self) -> list[Tensor]:
        """Return each block's distribution over its options."""
        return [torch.softmax(logits, dim=0) for logits in self.architecture]


def sample_gates(
    choices: Choices, temperature: float, generator: torch.Generator, *, hard: bool
) -> list[Tensor]:
    """Draw each block's gates once, for a whole batch."""
    return [
        gumbel_softmax(logits, temperature, generator, hard=hard) for logits in choices.architecture
    ]


def one_hot_gates(space: ChainSpace, chosen: Sequence[int]) -> list[Tensor]:
    """Return the gates that open exactly one network's channels."""
    return [
        torch.nn.functional.one_hot(torch.tensor(choice), len(options)).to(torch.float32)
        for choice, options in zip(chosen, space.options, strict=True)
    ]
