"""The images that ranges of quantized engines come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hwnas.core.artifacts import sha256_of
from hwnas.core.errors import DataError
from hwnas.deploy.records import CalibrationData

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hwnas.data.images import Split


def calibration_images(
    held_out: Split, count: int, *, source: str, seed: int
) -> tuple[NDArray[np.float32], CalibrationData]:
    """Draw calibration images from those that were held out of training.

    From training images ranges would come out as the network has learned them by heart; the test
    images are for `verify` alone.

    Args:
        held_out: The validation images.
        count: How many to draw; all are taken where there are no more.
        source: Where they are from, for the record.
        seed: What they are drawn with.

    Returns:
        Pixels in [0, 1], float32, (n, channels, height, width), and the record of them.

    Raises:
        DataError: There is none.
    """
    if not len(held_out):
        raise DataError(
            f"{source} has no images to calibrate int8 on",
            hint="hold some out of training: `validation` in [data]",
        )
    drawn = held_out.subset(count, torch.Generator().manual_seed(seed))
    images: NDArray[np.float32] = drawn.pixels().numpy()
    digest = sha256_of(f"{images.shape}".encode() + images.tobytes())
    return images, CalibrationData(source=source, n=len(images), seed=seed, sha256=digest)
