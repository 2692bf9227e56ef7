"""Memory that the process keeps, so that a step finds what the one before it has freed.

glibc gives large blocks back to the system at once and asks for them anew: each time the system
fills every page with zeros and maps it. Of networks whose activations are large and whose
arithmetic is little, as those with depthwise convolutions, that takes as long as the arithmetic.
"""

from __future__ import annotations

import ctypes
import sys

# From glibc's malloc.h; see mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_NEVER = -1
_GROW_BY_BYTES = 64 * 2**20
_KEPT_BYTES = 256 * 2**20
"""Activations of a layer are smaller; whole data sets are larger, and go back to the system."""


def keep_freed_memory() -> bool:
    """Let the process keep the memory that it frees, for as long as it lives.

    What it goes on holding is the most that it held at once in blocks of less than 256 MiB, and the
    gaps between them: in the first rounds small blocks settle right behind large ones, which then
    no longer fit where they were, until all have found a place. Where the allocator is not
    glibc's, nothing changes.

    Returns:
        Whether the allocator took it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    # Before 2.35 no threshold above 32 MiB was taken: then blocks of all sizes are kept.
    large = mallopt(_MMAP_THRESHOLD, _KEPT_BYTES) or mallopt(_MMAP_MAX, 0)
    kept = mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_TOP_PAD, _GROW_BY_BYTES)
    return bool(large and kept)
