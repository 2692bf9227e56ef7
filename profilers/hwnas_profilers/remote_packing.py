"""Arrays as they are sent to a board: exact, and small where they have few different values.

Test images have 256 values at most, and what Square tries a few times as many: they are sent as
places in a list of values. Adversarial examples of a white box have nearly as many values as
pixels, and are sent as they are. `hwnas_profilers.agent.unpacked` is the other side.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PLACES = (("<u1", 2**8), ("<u2", 2**16))
_QUICKEST = 1  # level of zlib: a link of 100 Mbit/s is slower than this, and not than the others


def packed(array: NDArray[np.float32]) -> tuple[dict[str, Any], bytes]:
    """Pack an array without loss.

    Args:
        array: float32, of any shape.

    Returns:
        How it is packed, as `unpacked` reads it, and the bytes.
    """
    palette, places, content = _as_palette(array) or (0, "", array.astype("<f4").tobytes())
    deflated = zlib.compress(content, _QUICKEST) if palette else content
    smaller = len(deflated) < len(content)
    packing = {
        "shape": list(array.shape),
        "palette": palette,
        "places": places,
        "deflated": smaller,
    }
    return packing, deflated if smaller else content


def _as_palette(array: NDArray[np.float32]) -> tuple[int, str, bytes] | None:
    """Return how many values there are, the type of places, and values and places as bytes."""
    # Told apart by their bits: -0.0 and 0.0, or two kinds of NaN, are two values.
    bits = array.astype("<f4").view("<u4").ravel()
    # A search in the sorted values takes less time than `return_inverse` does.
    values = np.unique(bits)
    for kind, most in _PLACES:
        if len(values) <= most and values.nbytes < array.nbytes:
            places = np.searchsorted(values, bits).astype(kind)
            return len(values), kind, values.tobytes() + places.tobytes()
    return None
