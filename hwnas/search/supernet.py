"""The searched supernet: a network's weights, its architecture logits and its tutor logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from hwnas.distill.gumbel import gumbel_softmax
from hwnas.space.blocks import hidden_width
from hwnas.space.network import BlockMasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.channel_space import ChannelSpace


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

    def __init__(self, space: ChannelSpace, student_layers: int, teacher_layers: int) -> None:
        super().__init__()
        self.architecture = nn.ParameterList(
            nn.Parameter(torch.zeros(len(options))) for options in space.options
        )
        self.tutors = nn.Parameter(torch.zeros(student_layers, teacher_layers))

    def probabilities(self) -> list[Tensor]:
        """Return each block's distribution over its options."""
        return [torch.softmax(logits, dim=0) for logits in self.architecture]


class ChannelMasks(nn.Module):
    """Masks that close the channels a sampled width does not have.

    A block's output mask is sum_i g_i m_i, with m_i ones on the first w_i channels (DMaskingNAS).
    Departures, so that a supernet with one-hot gates computes what the slim network will: the
    hidden channels are masked by the width before, and the shortcut is weighted by the probability
    that both widths are equal. See `InvertedResidual`.

    Args:
        space: The space.
    """

    def __init__(self, space: ChannelSpace) -> None:
        super().__init__()
        spec = space.spec
        before: tuple[int, ...] = (spec.stem,)
        self._names: list[tuple[str, str, str]] = []
        for index, options in enumerate(space.options):
            hidden = [hidden_width(width, spec.expansion) for width in before]
            names = (f"hidden{index}", f"out{index}", f"equal{index}")
            self.register_buffer(names[0], _first_channels(hidden), persistent=False)
            self.register_buffer(names[1], _first_channels(options), persistent=False)
            equal = torch.tensor([[float(i == j) for j in options] for i in before])
            self.register_buffer(names[2], equal, persistent=False)
            self._names.append(names)
            before = options

    def forward(self, gates: Sequence[Tensor]) -> list[BlockMasks]:
        """Turn gates, one (options,) tensor per block, into masks."""
        masks = []
        before = gates[0].new_ones(1)
        for gate, (hidden, out, equal) in zip(gates, self._names, strict=True):
            masks.append(
                BlockMasks(
                    hidden=(before @ self.get_buffer(hidden))[:, None, None],
                    out=(gate @ self.get_buffer(out))[:, None, None],
                    residual=before @ self.get_buffer(equal) @ gate,
                )
            )
            before = gate
        return masks


def sample_gates(
    choices: Choices, temperature: float, generator: torch.Generator, *, hard: bool
) -> list[Tensor]:
    """Draw each block's gates once, for a whole batch."""
    return [
        gumbel_softmax(logits, temperature, generator, hard=hard) for logits in choices.architecture
    ]


def one_hot_gates(space: ChannelSpace, chosen: Sequence[int]) -> list[Tensor]:
    """Return the gates that open exactly one network's channels."""
    return [
        torch.nn.functional.one_hot(torch.tensor(choice), len(options)).to(torch.float32)
        for choice, options in zip(chosen, space.options, strict=True)
    ]


def _first_channels(widths: Sequence[int]) -> Tensor:
    """Return (options, max width): row i is one on the first `widths[i]` channels."""
    channels = torch.arange(max(widths))
    return (channels[None, :] < torch.tensor(widths)[:, None]).to(torch.float32)
