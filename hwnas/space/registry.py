"""A space's description -> the space: which class is whose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.core.errors import ConfigError
from hwnas.space.cells.space import CellSpace
from hwnas.space.cells.spec import CellSpec
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import ChannelSpec
from hwnas.space.mbconv.space import MBConvSpace
from hwnas.space.mbconv.spec import MBConvSpec
from hwnas.space.user.space import UserSpace
from hwnas.space.user.spec import UserSpec

if TYPE_CHECKING:
    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.chain_spec import ChainSpec


def space_from_spec(spec: ChainSpec, *, batch: int = 1, dtype: str = "fp32") -> ChainSpace:
    """Build the space of a description.

    Args:
        spec: The description.
        batch: Images per call of its operators.
        dtype: Precision that its operators are compiled to.

    Raises:
        ConfigError: It is of none of our classes.
    """
    if isinstance(spec, ChannelSpec):
        return ChannelSpace(spec, batch=batch, dtype=dtype)
    if isinstance(spec, MBConvSpec):
        return MBConvSpace(spec, batch=batch, dtype=dtype)
    if isinstance(spec, CellSpec):
        return CellSpace(spec, batch=batch, dtype=dtype)
    if isinstance(spec, UserSpec):
        return UserSpace(spec, batch=batch, dtype=dtype)
    raise ConfigError(f"no space is described by {type(spec).__name__}")
