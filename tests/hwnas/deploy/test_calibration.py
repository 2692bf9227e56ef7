"""The images that int8 is calibrated on: held out, seeded, and known by their hash."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hwnas.core.errors import DataError
from hwnas.data.images import Split
from hwnas.deploy.calibration import calibration_images


def split(count: int) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Split(images=images, labels=torch.zeros(count, dtype=torch.int64))


def test_so_many_are_drawn_of_those_held_out() -> None:
    held_out = split(40)
    images, record = calibration_images(held_out, 16, source="noise, validation split", seed=3)
    assert images.shape == (16, 1, 4, 4)
    assert images.dtype == np.float32
    all_of_them = held_out.pixels().numpy()
    assert all(any(np.array_equal(image, each) for each in all_of_them) for image in images)
    assert (record.source, record.n, record.seed) == ("noise, validation split", 16, 3)


def test_the_hash_follows_the_draw() -> None:
    def digest(count: int, seed: int) -> str:
        return calibration_images(split(40), count, source="", seed=seed)[1].sha256

    assert digest(16, 0) == digest(16, 0)
    assert len({digest(16, 0), digest(16, 1), digest(17, 0)}) == 3


def test_all_are_taken_where_there_are_no_more() -> None:
    images, record = calibration_images(split(5), 512, source="", seed=0)
    assert len(images) == record.n == 5


def test_without_images_there_is_nothing_to_calibrate_on() -> None:
    with pytest.raises(DataError, match=r"noise has no images to calibrate int8 on\n.*validation"):
        calibration_images(split(0), 512, source="noise", seed=0)
