"""The supernet of a user's space: all options of all parts, on shared weights."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, final

import torch
from torch import nn

from hwnas.space.blocks import Normalize
from hwnas.space.energy import channel_energy
from hwnas.space.supernet import Observed, Supernet
from hwnas.space.user.chain import Step, run_steps
from hwnas.space.user.network import fixed_steps, steps_of, tapped_parts
from hwnas.space.user.shared import SharedModule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from hwnas.space.genotype import Genotype
    from hwnas.space.user.chain import Part
    from hwnas.space.user.shared import Pair
    from hwnas.space.user.spec import UserSpec


@final
class UserSupernet(Supernet):
    """Every part as the mix of its options, each at all of its widths.

    A part gives sum over its options o and pairs of widths (i, w) of p_i g_{o,w} m_w f_o(x), with
    p_i the probability of the width before, and m_w ones on the first w channels (DMaskingNAS). f_o
    is run once for all pairs where that gives the same, else on windows of its weights: see
    `SharedModule`. What an option is, a skip too, is the user's.

    Args:
        spec: The space.
        parts: The user's parts by name, newly made: those that are fixed become this network's.

    Attributes:
        runs: How often an option's module is called in a forward pass, by part and option.

    References:
        Wan et al., FBNetV2 (arXiv 2004.05565), 3.1: channel masks.
    """

    def __init__(self, spec: UserSpec, parts: Mapping[str, Part]) -> None:
        super().__init__()
        self._spec = spec
        self.tap_names = tapped_parts(spec)
        self.pixels = Normalize(spec.image_shape[0])
        features = torch.zeros(2, *spec.image_shape)
        built, features = run_steps(fixed_steps(spec.begin_parts, parts), features)
        self.begin = nn.Sequential(*(module for _, module in built if module is not None))
        self.parts = nn.ModuleList()
        self._block_of: list[int] = []
        for index in range(len(spec.blocks)):
            # The size of what a part gives is the same for all widths.
            widest = max(spec.widths_before(index))
            features = features.new_zeros(2, widest, *spec.size_before(index))
            for mixed in _mixed_parts(spec, index, parts, features):
                self.parts.append(mixed)
                self._block_of.append(index)
            self.register_buffer(f"widths{index}", _widths(spec, index), persistent=False)
        size = spec.blocks[-1].size
        self.end = SharedModule(
            functools.partial(_end, spec, parts, size),
            [(width, spec.classes) for width in spec.widths_before(len(spec.blocks))],
            size,
        )

    @property
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled."""
        return self.pixels

    @property
    def runs(self) -> dict[str, int]:
        """How often an option's module is called in a forward pass, by part and option."""
        found = {
            f"{mixed.name}.{option}" if option else mixed.name: len(shared.runs)
            for mixed in self._mixed
            for option, shared in mixed.shared.items()
        }
        return {**found, "end": len(self.end.runs)}

    def forward(self, images: Tensor, gates: Sequence[Tensor], *, observe: bool = True) -> Observed:
        """Compute the logits of a mix of networks: see `Supernet`."""
        features: Tensor = self.begin(self.pixels(images))
        taps = [features] if self._spec.begin_parts else []
        before = gates[0].new_ones(1)  # probabilities of the widths before a block
        for place, mixed in enumerate(self._mixed):
            block = self._block_of[place]
            features = mixed(features, before, gates[block])
            if mixed.name in self.tap_names:
                taps.append(features)
            if self._block_of[place + 1 : place + 2] != [block]:
                before = (gates[block][:, None] * self.get_buffer(f"widths{block}")).sum(dim=0)
        logits: Tensor = self.end(features, before)
        return Observed(logits, tuple(map(channel_energy, taps)) if observe else ())

    def slim_state(self, genotype: Genotype) -> dict[str, Tensor]:
        """Cut a genotype's weights out: the first entries of each tensor, in each dimension."""
        spec = self._spec
        state = {
            f"pixels.{name}": tensor.clone() for name, tensor in self.pixels.state_dict().items()
        }
        state |= _renamed(
            {name: tensor.clone() for name, tensor in self.begin.state_dict().items()},
            spec.begin_parts,
        )
        width = spec.begin_shape[0]
        chosen = [
            [option.name for option in block.options].index(name)
            for block, name in zip(spec.blocks, genotype.blocks, strict=True)
        ]
        for place, mixed in enumerate(self._mixed):
            cut, width = mixed.state_of(chosen[self._block_of[place]], width)
            state |= {f"parts.{mixed.name}.{name}": tensor for name, tensor in cut.items()}
        return state | _renamed(self.end.state_of((width, spec.classes)), spec.end_parts)

    @property
    def _mixed(self) -> Sequence[MixedPart]:
        return self.parts  # type: ignore[return-value]


@final
class MixedPart(nn.Module):
    """One part of a block: the mix of its options.

    Args:
        part: The part.
        picks: Of each option of the block, which option of this part it picks.
        pairs: Its input and output width, for [width before the block][option of the block].
        size: Height and width of its input.

    Attributes:
        name: What the part is called.
    """

    def __init__(
        self,
        part: Part,
        picks: Sequence[str],
        pairs: Sequence[Sequence[Pair]],
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.name = part.name
        self._picks, self._pairs = tuple(picks), pairs
        self._names = [name for name in part.options if part.options[name] is not None]
        self._options = nn.ModuleList()
        for index, name in enumerate(self._names):
            picked = [choice for choice, pick in enumerate(picks) if pick == name]
            own = list(dict.fromkeys(row[choice] for row in pairs for choice in picked))
            build = functools.partial(_built, part, name)
            self._options.append(SharedModule(build, own, size))
            selection = torch.zeros(len(pairs), len(picks), len(own))
            for before, row in enumerate(pairs):
                for choice in picked:
                    selection[before, choice, own.index(row[choice])] = 1.0
            self.register_buffer(f"selection{index}", selection, persistent=False)
        skipped = torch.tensor([float(part.options[pick] is None) for pick in picks])
        self.can_skip = bool(skipped.any())
        self.register_buffer("skipped", skipped, persistent=False)

    @property
    def shared(self) -> dict[str, SharedModule]:
        """The modules of its options, by name."""
        return dict(zip(self._names, self._options, strict=True))  # type: ignore[arg-type]

    def forward(self, features: Tensor, before: Tensor, gate: Tensor) -> Tensor:
        """Mix the options.

        Args:
            features: (batch, channels, height, width)
            before: Probabilities of the widths before the block.
            gate: Of the options of the block.
        """
        # No products of matrices: autocast would round the gates before they are summed.
        total = None
        if self.can_skip:
            total = features * (gate * self.get_buffer("skipped")).sum().to(features.dtype)
        joint = before[:, None, None] * gate[None, :, None]  # (widths before, options, 1)
        for index, shared in enumerate(self._options):
            selection = self.get_buffer(f"selection{index}")
            weights = (joint * selection).sum(dim=(0, 1))
            output = shared(features, weights)
            total = output if total is None else total + output
        assert total is not None
        return total

    def state_of(self, choice: int, width: int) -> tuple[dict[str, Tensor], int]:
        """Cut out the state for an option of the block and an input width; and its output width."""
        pairs = {row[choice] for row in self._pairs}
        pair = next(each for each in pairs if each[0] == width)
        shared = self.shared.get(self._picks[choice])
        return ({} if shared is None else shared.state_of(pair)), pair[1]


def _mixed_parts(
    spec: UserSpec, index: int, parts: Mapping[str, Part], features: Tensor
) -> list[MixedPart]:
    """Make the parts of a block, given what may come before it."""
    block = spec.blocks[index]
    paths = [steps_of(block, option, parts) for option in block.options]
    widths = [[width] * len(paths) for width in spec.widths_before(index)]
    found = []
    for place, name in enumerate(block.parts):
        steps = [path[place] for path in paths]
        size = (features.shape[2], features.shape[3])
        widths_out = [
            [_width_out(step, width, size) for step, width in zip(steps, row, strict=True)]
            for row in widths
        ]
        pairs = [list(zip(*rows, strict=True)) for rows in zip(widths, widths_out, strict=True)]
        found.append(MixedPart(parts[name], [step.option for step in steps], pairs, size))
        _, features = run_steps(steps[:1], features)
        widths = widths_out
    return found


def _width_out(step: Step, width: int, size: tuple[int, int]) -> int:
    if step.width is not None:
        return step.width
    if step.part.kind == "searched":
        return width  # it keeps it
    _, output = run_steps([step], torch.zeros(2, width, *size))
    return output.shape[1]


def _built(part: Part, option: str, width_in: int, width_out: int) -> nn.Module:
    module = part.build(option, width_in, width_out)
    assert module is not None
    return module


def _end(
    spec: UserSpec, parts: Mapping[str, Part], size: tuple[int, int], width: int, _: int
) -> nn.Module:
    built, _logits = run_steps(fixed_steps(spec.end_parts, parts), torch.zeros(2, width, *size))
    return nn.Sequential(*(module for _, module in built if module is not None))


def _widths(spec: UserSpec, index: int) -> Tensor:
    """Return (options, distinct output widths): which option has which width."""
    block = spec.blocks[index]
    return torch.tensor(
        [[float(option.width_out == width) for width in block.widths] for option in block.options]
    )


def _renamed(state: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Name the parts of a Sequential as the slim network does."""
    renamed = {}
    for key, tensor in state.items():
        place, _, rest = key.partition(".")
        renamed[f"parts.{names[int(place)]}.{rest}"] = tensor
    return renamed
