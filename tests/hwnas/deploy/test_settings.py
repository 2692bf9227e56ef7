"""Which settings of an export are refused."""

from __future__ import annotations

import pytest

from hwnas.core.errors import ConfigError
from hwnas.deploy.settings import ExportSettings


@pytest.mark.parametrize("batches", [(), (1,), (1, 8), (8, 1, 64), (0, 1, 2), (1, 2, 3, 4)])
def test_batches_are_three_that_do_not_fall(batches: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"smallest, the most frequent and the largest"):
        ExportSettings(batches=batches)
    assert ExportSettings(batches=(2, 2, 2)).profile == (2, 2, 2)


@pytest.mark.parametrize("count", [0, -5])
def test_int8_needs_images(count: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot be calibrated on {count} images"):
        ExportSettings(calibration_images=count)
