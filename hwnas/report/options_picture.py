"""The picture of what the search weighed for each block, and what was derived.

A block may have two options or sixty. Widths are drawn side by side, in their order; the options of
an mbconv space by what they are made of, each kernel, expansion and so on with the probability of
all options that have it; those of a space of cells by edges and operations; those of any other
space by rank.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.report.cells_picture import draw_edges, edge_names
from hwnas.report.drawing import (
    FONT_POINTS,
    INK,
    MUTED,
    SMALL_POINTS,
    Picture,
    new_figure,
    picture_from_figure,
)
from hwnas.report.heat_map import bare, cell
from hwnas.report.numbers import fixed, percent
from hwnas.report.operator_labels import shortened
from hwnas.space.cells.space import CellSpace
from hwnas.space.mbconv.space import MBConvSpace
from hwnas.space.registry import space_from_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from hwnas.report.run_files import RunFiles
    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.mbconv.spec import MBConvChoice

_ROW_INCHES = 0.25
_MAX_RANKED = 5
# What a row of ranks has room for, and what each of them needs besides its name.
_LETTERS = 54
_LETTERS_OF_SHARE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What the search made of one block.

    Attributes:
        options: What it may be.
        probabilities: Of each option.
        chosen: Index of the one that was derived.
    """

    options: tuple[int | str, ...]
    probabilities: tuple[float, ...]
    chosen: int

    @property
    def is_likeliest(self) -> bool:
        """Whether what was derived is what the search would take."""
        return self.probabilities[self.chosen] == max(self.probabilities)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """Something that options of an mbconv space have in common.

    Attributes:
        group: What kind of thing it is.
        label: What it is, at the head of its column.
    """

    group: str
    label: str


def options_picture(run: RunFiles) -> Picture:
    """Draw the probabilities of each block's options, and which was derived."""
    space = space_from_spec(run.search.space)
    blocks = blocks_of(run, space)
    names: Sequence[str] = space.block_names
    if isinstance(space, CellSpace):
        how, names = draw_edges, edge_names(space)
        figure_height = len(names) * _ROW_INCHES + 0.5
    elif isinstance(space, MBConvSpace):
        how, figure_height = _draw_traits, len(blocks) * _ROW_INCHES + 0.75
    elif all(isinstance(option, int) for block in blocks for option in block.options):
        how, figure_height = _draw_widths, len(blocks) * _ROW_INCHES + 0.5
    else:
        how, figure_height = _draw_ranks, len(blocks) * _ROW_INCHES + 0.5
    figure = new_figure(figure_height)
    axes = figure.add_subplot()
    what = how(axes, blocks, space)
    axes.set_yticks(range(len(names)), names)
    likeliest = sum(block.is_likeliest for block in blocks)
    rest = (
        "the budget leaves room for all of them."
        if likeliest == len(blocks)
        else "the others gave way to the budget."
    )
    caption = f"{what} {likeliest} of {len(blocks)} blocks got their likeliest option: {rest}"
    alt = "What was derived, with its probability: " + "; ".join(
        f"{name}: {block.options[block.chosen]} ({percent(block.probabilities[block.chosen], 0)})"
        for name, block in zip(space.block_names, blocks, strict=True)
    )
    return picture_from_figure(
        figure,
        name="options",
        title="What the search weighed, and what was derived",
        caption=caption,
        alt=alt,
    )


def blocks_of(run: RunFiles, space: ChainSpace) -> list[Block]:
    """Bring together each block's options, their probabilities, and what was derived."""
    chosen = space.choices(run.derivation.genotype)
    return [
        Block(
            options=options,
            probabilities=tuple(math.exp(value) for value in logs),
            chosen=choice,
        )
        for options, logs, choice in zip(
            space.options, run.search.log_probabilities, chosen, strict=True
        )
    ]


def traits_of(choice: MBConvChoice) -> list[Trait]:
    """Say what an option of an mbconv space is made of.

    >>> from hwnas.space.mbconv.spec import MBConvChoice, MBConvOption
    >>> option = MBConvOption(kernel=5, expansion=6, se=True)
    >>> [trait.label for trait in traits_of(MBConvChoice(block=option, width=40))]
    ['5', '6', 'SE']
    >>> [trait.label for trait in traits_of(MBConvChoice(block=None, width=40))]
    ['skip']
    """
    block = choice.block
    if block is None:
        return [Trait(group="", label="skip")]
    squeezed = [Trait(group="", label="SE")] if block.se else []
    return [
        Trait(group="kernel", label=str(block.kernel)),
        Trait(group="expansion", label=str(block.expansion)),
        *squeezed,
    ]


def _draw_widths(axes: Axes, blocks: Sequence[Block], space: ChainSpace) -> str:
    columns = max(len(block.options) for block in blocks)
    darkest = max(max(block.probabilities) for block in blocks)
    for y, block in enumerate(blocks):
        for x, (probability, option) in enumerate(
            zip(block.probabilities, block.options, strict=True)
        ):
            is_chosen = x == block.chosen
            cell(axes, x, y, probability / darkest, is_framed=is_chosen)
            _named(axes, x, y, str(option), probability, is_chosen=is_chosen)
    axes.set_xticks(
        [x + 0.5 for x in range(columns)],
        ["widest", *("" for _ in range(columns - 2)), "narrowest"][:columns],
    )
    bare(axes, columns, len(blocks))
    return (
        "Channels that each block may have, with the probability that the search gave them; "
        "framed and marked ▸, the derived ones."
    )


def _draw_ranks(axes: Axes, blocks: Sequence[Block], space: ChainSpace) -> str:
    most = max(len(block.options) for block in blocks)
    longest = max(len(str(option)) for block in blocks for option in block.options)
    columns = min(most, _MAX_RANKED, max(2, _LETTERS // (longest + _LETTERS_OF_SHARE)))
    has_rest = most > columns
    darkest = max(max(block.probabilities) for block in blocks)
    for y, block in enumerate(blocks):
        ranks = sorted(range(len(block.options)), key=lambda i: -block.probabilities[i])
        shown = ranks[:columns]
        if block.chosen not in shown:
            shown[-1] = block.chosen
        for x, index in enumerate(shown):
            probability, is_chosen = block.probabilities[index], index == block.chosen
            cell(axes, x, y, probability / darkest, is_framed=is_chosen)
            name = shortened(str(block.options[index]), _LETTERS // columns - _LETTERS_OF_SHARE)
            _named(axes, x, y, name, probability, is_chosen=is_chosen, points=SMALL_POINTS)
        others = len(ranks) - len(shown)
        if others:
            rest = 1 - sum(block.probabilities[index] for index in shown)
            text = f"{others} more: {percent(max(0.0, rest), 0)}"
            axes.text(
                columns * 1.02, y, text, va="center", fontsize=SMALL_POINTS, color=MUTED
            )  # fmt: skip
    heads = ["likeliest", *("" for _ in range(columns - 1))]
    axes.set_xticks([x + 0.5 for x in range(columns)], heads)
    bare(axes, columns + 0.22 * columns * has_rest, len(blocks))
    return (
        "What each block may be, the likeliest first, with the probability that the search gave "
        "it; framed and marked ▸, what was derived."
    )


def _draw_traits(axes: Axes, blocks: Sequence[Block], space: ChainSpace) -> str:
    assert isinstance(space, MBConvSpace)
    described = [block.options for block in space.spec.blocks]
    traits = list(
        dict.fromkeys(
            trait
            for options in described
            for choice in options.values()
            for trait in traits_of(choice)
        )
    )
    order = ("kernel", "expansion", "")
    traits.sort(key=lambda trait: (order.index(trait.group), trait.label == "skip", trait.label))
    most_widths = max(len(block.widths) for block in space.spec.blocks)
    wide = 2.2  # columns that hold a width beside its probability
    starts = _starts(traits)
    left_of_widths = starts[-1] + 1.25
    columns = left_of_widths + (wide * most_widths if most_widths > 1 else 0)
    for y, (block, options, of_space) in enumerate(
        zip(blocks, described, space.spec.blocks, strict=True)
    ):
        choices = list(options.values())
        own = [traits_of(choice) for choice in choices]
        for trait, x in zip(traits, starts, strict=True):
            having = [index for index, found in enumerate(own) if trait in found]
            if not having:
                continue
            share = sum(block.probabilities[index] for index in having)
            is_chosen = block.chosen in having
            cell(axes, x, y, share, is_framed=is_chosen)
            _share(axes, x + 0.5, y, share, is_chosen=is_chosen)
        if len(of_space.widths) > 1:
            for place, width in enumerate(of_space.widths):
                x = left_of_widths + wide * place
                having = [i for i, choice in enumerate(choices) if choice.width == width]
                share = sum(block.probabilities[index] for index in having)
                is_chosen = block.chosen in having
                cell(axes, x, y, share, width=wide, is_framed=is_chosen)
                _named(
                    axes, x, y, str(width), share, width=wide, is_chosen=is_chosen, unit="",
                    points=SMALL_POINTS,
                )  # fmt: skip
        chosen = f"{block.options[block.chosen]}"
        axes.text(columns + 0.15, y, chosen, va="center", fontsize=SMALL_POINTS, color=INK)
        axes.text(
            columns + 4.95, y, percent(block.probabilities[block.chosen], 0), va="center",
            ha="right", fontsize=SMALL_POINTS, color=MUTED,
        )  # fmt: skip
    axes.set_xticks([x + 0.5 for x in starts], [trait.label for trait in traits])
    bare(axes, columns + 5, len(blocks))
    groups = {
        group: [x for trait, x in zip(traits, starts, strict=True) if trait.group == group]
        for group in ("kernel", "expansion")
    }
    heads = [(name, (min(at) + max(at) + 1) / 2) for name, at in groups.items() if at]
    if most_widths > 1:
        heads.append(("width", left_of_widths + wide * most_widths / 2))
    for name, x in (*heads, ("derived", columns + 2.5)):
        axes.annotate(
            name, (x, 1), xycoords=("data", "axes fraction"), xytext=(0, 16),
            textcoords="offset points", ha="center", va="bottom", fontsize=SMALL_POINTS,
            color=MUTED,
        )  # fmt: skip
    return (
        "What each block may be made of, with the probability in percent that the search gave to "
        "all options that have it (SE: squeeze-and-excitation"
        + ("; widths, then their probability" if most_widths > 1 else "")
        + "); framed, what was derived, and at the right its name with the probability of just "
        "that option."
    )


def _starts(traits: Sequence[Trait]) -> list[float]:
    """Place columns side by side, with a gap between groups."""
    starts = [0.0]
    for before, here in itertools.pairwise(traits):
        is_new = here.group != before.group or not here.group
        starts.append(starts[-1] + (1.25 if is_new else 1.0))
    return starts


def _share(axes: Axes, x: float, y: int, share: float, *, is_chosen: bool) -> None:
    axes.text(
        x, y, fixed(100 * share, 0), ha="center", va="center", fontsize=SMALL_POINTS,
        fontweight="bold" if is_chosen else "normal",
    )  # fmt: skip


def _named(
    axes: Axes,
    left: float,
    y: int,
    name: str,
    share: float,
    *,
    is_chosen: bool,
    width: float = 1.0,
    unit: str = "%",
    points: float = FONT_POINTS,
) -> None:
    """Write an option at the left of its cell, and its probability at the right."""
    axes.text(
        left + 0.08 * width, y, f"{'▸ ' if is_chosen and unit else ''}{name}", va="center",
        fontweight="bold" if is_chosen else "normal", fontsize=points,
    )  # fmt: skip
    text = percent(share, 0) if unit else fixed(100 * share, 0)
    axes.text(
        left + 0.92 * width, y, text, va="center", ha="right", fontsize=SMALL_POINTS,
        color=INK if unit else MUTED,
    )  # fmt: skip
