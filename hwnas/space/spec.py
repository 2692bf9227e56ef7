"""Every space by name, and from plain data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hwnas.core.decoding import convert
from hwnas.core.errors import ConfigError, nearest
from hwnas.space.cells.spec import CELL_SPACES, CellSpec
from hwnas.space.channel.spec import CHANNEL_SPACES, ChannelSpec
from hwnas.space.mbconv.spec import MBCONV_SPACES, MBConvSpec
from hwnas.space.user.spec import USER, UserSpec

if TYPE_CHECKING:
    from hwnas.space.chain_spec import ChainSpec

SPACES: dict[str, ChannelSpec | MBConvSpec | CellSpec] = {
    **CHANNEL_SPACES,
    **MBCONV_SPACES,
    **CELL_SPACES,
}
"""The spaces that come with hwnas."""


def space_spec(
    name: str,
    *,
    image_shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
) -> ChainSpec:
    """Look a space up by name, for images and classes other than its own where given.

    Args:
        name: One of `SPACES`, or `user:path/to/file.py:function`, whose code is run: see
            docs/user-spaces.md.
        image_shape: (channels, height, width).
        classes: Number of classes.

    Raises:
        ConfigError: No space has that name, or a user's own declares none.
        InputFileError: A user's file does not exist.
    """
    if name.startswith(USER):
        from hwnas.space.user.survey import user_spec

        return user_spec(name, image_shape=image_shape, classes=classes)
    if name not in SPACES:
        similar = nearest(name, SPACES)
        hint = f"did you mean `{similar[0]}`? " if similar else ""
        hint += f"known: {', '.join(SPACES)}"
        if ":" in name:
            hint = f"a space of your own is named {USER}{name}"
        raise ConfigError(f"unknown space `{name}`", hint=hint)
    spec = SPACES[name]
    if image_shape is not None:
        spec = replace(spec, image_shape=image_shape)
    return spec if classes is None else replace(spec, classes=classes)


def spec_from_plain(plain: dict[str, Any], *, source: str) -> ChainSpec:
    """Decode a space's description, such as a latency table's header holds.

    Its `kind` says which space it is; the channel-mask spaces, which were there first, have none.

    Args:
        plain: Plain data: what `msgspec.to_builtins` makes of a description.
        source: Where it is from, for the error.

    Raises:
        ConfigError: It describes no space of this version of hwnas.
    """
    if "kind" not in plain:
        return convert(plain, ChannelSpec, source=source)
    kind = plain["kind"]
    if kind == "mbconv":
        return convert(plain, MBConvSpec, source=source)
    if kind == "cells":
        return convert(plain, CellSpec, source=source)
    if kind == "user":  # runs no code of the user's: that needs a module to be built
        return convert(plain, UserSpec, source=source)
    raise ConfigError(
        f"{source}: unknown kind of space `{kind}`",
        hint="known: mbconv, cells, user, and none for the channel-mask spaces; is it of a later "
        "hwnas?",
    )
