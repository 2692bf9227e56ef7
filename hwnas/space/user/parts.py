"""Marks for the places of a user's own network that are searched: see docs/user-spaces.md."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn, final

from torch import nn

from hwnas.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Names stand in keys of tables and in names of weights, where `.`, `+` and `:` have a meaning.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@final
class Searched(nn.Module):
    """A place of which one option is chosen and, where widths are given, how wide it is.

    Args:
        options: What may stand here, by name, the largest first: a function of the input and the
            output channels that builds a module, or None where nothing shall run. Names are of
            letters, digits, `-` and `_`.
        widths: Output channels to choose from, the widest first. None keeps the width of the part
            before; then both arguments of an option are the same.

    Raises:
        ConfigError: The declaration contradicts itself.
    """

    def __init__(
        self,
        options: Mapping[str, Callable[[int, int], nn.Module] | None],
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.options = dict(options)
        self.widths = None if widths is None else tuple(widths)
        if not self.options:
            raise ConfigError("Searched has no options", hint='e.g. {"conv3": lambda i, o: ...}')
        for name, build in self.options.items():
            if not _NAME.fullmatch(str(name)):
                raise ConfigError(
                    f"{name!r} is no name of an option",
                    hint="use letters, digits, - and _, beginning with a letter or digit",
                )
            if build is not None and not callable(build):
                raise ConfigError(
                    f"option `{name}` is {type(build).__name__}, not a function",
                    hint="give a function of the widths, e.g. lambda i, o: MyBlock(i, o)",
                )
        if self.widths is None:
            return
        if not self.widths or any(type(width) is not int or width < 1 for width in self.widths):
            raise ConfigError(f"widths are whole numbers of at least 1, not {list(self.widths)}")
        if list(self.widths) != sorted(set(self.widths), reverse=True):
            raise ConfigError(f"widths go from the widest down, each once: {list(self.widths)}")

    def forward(self, features: object) -> NoReturn:
        """Refuse: which option runs is what the search finds out."""
        raise ConfigError(
            "a network with searched places cannot be run itself",
            hint="networks are made of it: hwnas.space.user.space.UserSpace.network",
        )


@final
class Follows(nn.Module):
    """A part that is not searched, but is built for whatever width comes before it.

    Args:
        build: A function of the input channels that builds a module.

    Raises:
        ConfigError: `build` is no function.
    """

    def __init__(self, build: Callable[[int], nn.Module]) -> None:
        super().__init__()
        if isinstance(build, nn.Module) or not callable(build):
            raise ConfigError(
                f"Follows takes a function of the width, not {type(build).__name__}",
                hint="e.g. Follows(lambda width: MyHead(width, 10))",
            )
        self.build = build

    def forward(self, features: object) -> NoReturn:
        """Refuse, as `Searched` does."""
        raise ConfigError(
            "a network with searched places cannot be run itself",
            hint="networks are made of it: hwnas.space.user.space.UserSpace.network",
        )
