"""What the descriptions of all spaces share."""

from __future__ import annotations

import hashlib
from abc import ABC
from dataclasses import field, fields, is_dataclass
from typing import Any

import msgspec

from hwnas.core.errors import ConfigError

_LATER = "later"


class ChainSpec(ABC):
    """A search space as data: what a table, a genotype and a supernet must agree on.

    Its subclasses are frozen dataclasses, so that a space is plain JSON and can be built again from
    it: see `spec_from_plain`. All spaces are chains: a fixed begin, searched blocks, a fixed end.

    Attributes:
        name: What it is called.
        image_shape: (channels, height, width) of an image.
        classes: Classes of the data set.
    """

    __slots__ = ()

    name: str
    image_shape: tuple[int, int, int]
    classes: int

    @property
    def fingerprint(self) -> str:
        """Hash of the whole description: equal exactly for equal spaces."""
        # Fields in their order, as fingerprints always had them.
        return hashlib.sha256(msgspec.json.encode(_identity(self))).hexdigest()[:16]

    def _check_images(self) -> None:
        """Refuse images and classes that no network can be for.

        Raises:
            ConfigError: They are such.
        """
        if min(self.image_shape) < 1:
            raise ConfigError(f"image_shape is (channels, height, width), not {self.image_shape}")
        if self.classes < 2:
            raise ConfigError(f"a classifier needs at least two classes, not {self.classes}")


def later_field(default: Any) -> Any:
    """Declare a field that descriptions did not have at first.

    At its default it says nothing that was not so before, and stays out of the fingerprint: tables
    and records of before go on being those of their space.
    """
    return field(default=default, metadata={_LATER: True})


def _identity(value: Any) -> Any:
    """Return a description as plain data, without what `later_field` leaves out."""
    if is_dataclass(value):
        return {
            each.name: _identity(getattr(value, each.name))
            for each in fields(value)
            if not (_LATER in each.metadata and getattr(value, each.name) == each.default)
        }
    return [_identity(item) for item in value] if isinstance(value, tuple) else value
