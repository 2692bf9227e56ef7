"""Which engines a network is exported to."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """Which engines are made, and how.

    Attributes:
        targets: Targets that engines are made for; none for the one that the network was searched
            for.
        batches: Smallest, most frequent and largest batch of TensorRT's engines.
        keep_slower: Keep engines in a lower precision that are no faster than those in FP32.
        calibration_images: Validation images that ranges of int8 are taken from.
        compute_capabilities: GPUs that TensorRT for RTX builds for; none for the one that is here.
        triton: Write a model repository for Triton too.
    """

    targets: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1, 8, 64)
    keep_slower: bool = False
    calibration_images: int = 512
    compute_capabilities: tuple[str, ...] = ()
    triton: bool = False

    def __post_init__(self) -> None:
        if len(self.batches) != 3 or not 1 <= self.batches[0] <= self.batches[1] <= self.batches[2]:
            given = ",".join(map(str, self.batches))
            raise ConfigError(
                f"batches are the smallest, the most frequent and the largest, not {given}",
                hint="three whole numbers from 1 on that do not fall, e.g. 1,8,64",
            )
        if self.calibration_images < 1:
            raise ConfigError(
                f"int8 cannot be calibrated on {self.calibration_images} images",
                hint="a few hundred are right: 512 is the default",
            )

    @property
    def profile(self) -> tuple[int, int, int]:
        """The three batches."""
        smallest, usual, largest = self.batches
        return (smallest, usual, largest)
