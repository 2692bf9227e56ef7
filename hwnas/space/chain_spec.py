"""What the descriptions of all spaces share."""

from __future__ import annotations

import hashlib
from abc import ABC

from hwnas.core.decoding import encode_json
from hwnas.core.errors import ConfigError


class ChainSpec(ABC):
    """A search space as data: what a table, a genotype and a supernet must agree on.

    Its subclasses are frozen dataclasses, so that a space is plain JSON and can be built again from
    it: see `spec_from_plain`. All spaces are chains: a fixed stem, searched blocks, a fixed head.

    Attributes:
        name: What it is called.
        image_shape: (channels, height, width) of an image.
        classes: Classes of the data set.
        stem: Output channels of the first convolution.
        stem_stride: Its stride.
    """

    __slots__ = ()

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    stem: int
    stem_stride: int

    @property
    def fingerprint(self) -> str:
        """Hash of the whole description: equal exactly for equal spaces."""
        return hashlib.sha256(encode_json(self)).hexdigest()[:16]

    def _check_images(self) -> None:
        """Refuse images and classes that no network can be for.

        Raises:
            ConfigError: They are such.
        """
        if min(self.image_shape) < 1:
            raise ConfigError(f"image_shape is (channels, height, width), not {self.image_shape}")
        if self.classes < 2:
            raise ConfigError(f"a classifier needs at least two classes, not {self.classes}")
