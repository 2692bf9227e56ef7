from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from hwnas_profilers.agent import unpacked
from hwnas_profilers.remote_packing import packed

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.mark.parametrize(
    ("array", "palette"),
    [
        (np.linspace(0, 1, 4096, dtype=np.float32).reshape(4, 1, 32, 32), 0),
        (np.arange(4096, dtype=np.float32).reshape(4, 1, 32, 32) % 200, 200),
        (np.arange(8192, dtype=np.float32).reshape(8, 1, 32, 32) % 1000, 1000),
        (np.array([0.0, -0.0, np.nan, np.inf] * 64, dtype=np.float32), 4),
        (np.zeros((0, 3, 8, 8), dtype=np.float32), 0),
        (np.ones((1, 1), dtype=np.float32), 0),
    ],
)
def test_arrays_arrive_as_they_were(array: NDArray[np.float32], palette: int) -> None:
    packing, payload = packed(array)
    assert packing["palette"] == palette
    assert len(payload) <= array.nbytes
    arrived = unpacked(packing, payload)
    assert arrived.shape == array.shape
    assert arrived.dtype == np.float32
    assert arrived.tobytes() == array.tobytes()
