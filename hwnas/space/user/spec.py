"""A space of a user's own network as data: all that costs, tables and records need to know of it.

It is found out once, by building and running the user's modules (`user_survey`). Reading it back
runs no code of the user's: that happens when a module is built, and then it is checked that the
code still says what the data does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hwnas.core.errors import ConfigError
from hwnas.space.chain_spec import ChainSpec

USER = "user:"
"""What the names of users' spaces begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserOperator:
    """What runs at one place of a chain, between two choices.

    Attributes:
        macs: Multiply-accumulates per image.
        params: Trained parameters.
        weights: Weights, with batch normalization folded into the convolutions.
        digest: Hash of its modules: classes, settings that they print, names and shapes of weights.
    """

    macs: int
    params: int
    weights: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UserOption:
    """What a block may be.

    Attributes:
        name: What genotypes call it, e.g. `conv3-32` or `conv3-32+skip`.
        picks: Name of the option of each searched part of the block.
        width: Output channels of the block's first part, where it declares them.
        width_out: Output channels of the block.
        operators: For each width that may come before, what runs; None where nothing does.
    """

    name: str
    picks: tuple[str, ...]
    width: int | None
    width_out: int
    operators: tuple[UserOperator | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserBlock:
    """Parts that are chosen together: a searched one, and what follows until the next block.

    Attributes:
        parts: Names of its parts.
        searched: Names of those of them that are searched.
        size: Height and width of its output.
        options: What it may be, the largest first.
    """

    parts: tuple[str, ...]
    searched: tuple[str, ...]
    size: tuple[int, int]
    options: tuple[UserOption, ...]

    @property
    def name(self) -> str:
        """What keys and errors call it: its first part."""
        return self.parts[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """The distinct output widths, in the order of the options."""
        return tuple(dict.fromkeys(option.width_out for option in self.options))


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSpec(ChainSpec):
    """A space of a user's own network.

    Attributes:
        name: What it is called: `user:path/to/file.py:function`, as the user named it.
        image_shape: (channels, height, width) of an image.
        classes: Classes of the data set.
        begin_parts: Names of the parts before the first block.
        begin_shape: (channels, height, width) of what they give.
        begin: Normalization of pixels and these parts.
        blocks: What is searched.
        end_parts: Names of the parts after the last block.
        end: They, for each width of the last block.
        kind: Tells this description from those of other spaces.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    begin_parts: tuple[str, ...]
    begin_shape: tuple[int, int, int]
    begin: UserOperator
    blocks: tuple[UserBlock, ...]
    end_parts: tuple[str, ...]
    end: tuple[UserOperator, ...]
    kind: Literal["user"] = "user"

    def __post_init__(self) -> None:
        self._check_images()
        if not self.blocks:
            raise ConfigError("a space of a user's own network has at least one searched block")
        before = 1
        for block in self.blocks:
            if not block.parts or not block.options:
                raise ConfigError("a block of a user's own network has parts and options")
            if any(len(option.operators) != before for option in block.options):
                raise ConfigError(
                    f"block `{block.name}` does not tell an operator for each width before it"
                )
            before = len(block.widths)
        if len(self.end) != before:
            raise ConfigError("the end does not tell an operator for each width of the last block")

    def widths_before(self, block: int) -> tuple[int, ...]:
        """Return the distinct widths that may come before a block; after the last, before the end.

        Args:
            block: Its index, from 0.
        """
        return self.blocks[block - 1].widths if block else (self.begin_shape[0],)

    def size_before(self, block: int) -> tuple[int, int]:
        """Return height and width of what comes before a block."""
        return self.blocks[block - 1].size if block else self.begin_shape[1:]


def differences(then: UserSpec, now: UserSpec) -> list[str]:
    """Say how a user's code differs from what a record says of it, the first parts first."""
    found: list[str] = []
    if (then.begin_parts, then.begin_shape, then.begin) != (
        now.begin_parts,
        now.begin_shape,
        now.begin,
    ):
        found.append(f"the begin ({_listed(now.begin_parts)}) is another")
    if len(then.blocks) != len(now.blocks):
        found.append(f"it has {len(now.blocks)} searched blocks instead of {len(then.blocks)}")
    for old, new in zip(then.blocks, now.blocks, strict=False):
        if old.parts != new.parts or old.searched != new.searched:
            found.append(f"parts {_listed(new.parts)} instead of {_listed(old.parts)}")
            continue
        names, names_now = ([option.name for option in each.options] for each in (old, new))
        if names != names_now:
            found.append(f"{new.name} has {_listed(names_now)} instead of {_listed(names)}")
            continue
        changed = [
            option.name
            for before, option in zip(old.options, new.options, strict=True)
            if before != option
        ]
        if changed or old.size != new.size:
            found.append(f"{_listed(changed) or 'the output size'} of {new.name} changed")
    if (then.end_parts, then.end) != (now.end_parts, now.end):
        found.append(f"the end ({_listed(now.end_parts)}) is another")
    return found


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names)
