"""One process of many that computes on its own: no batch is shared, no collective is run.

torchrun tells a process its rank in the environment, where trainings look for others to share every
batch with. A study's processes share arms and seeds instead, so each must look like the only one.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hwnas.core.processes import process_count, process_rank

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOLD = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
         "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
_TORCHRUN = "TORCHELASTIC_"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@contextmanager
def on_its_own() -> Iterator[tuple[int, int]]:
    """Let what runs within be the only process, on a GPU of its own where there are GPUs.

    Yields:
        Which process this is, from 0, and how many there are.
    """
    rank, count = process_rank(), process_count()
    if count == 1:
        yield rank, count
        return
    before = dict(os.environ)
    place = int(os.environ.get("LOCAL_RANK", rank))
    for name in list(os.environ):
        if name in _TOLD or name.startswith(_TORCHRUN):
            del os.environ[name]
    devices = visible_gpus()
    if devices:
        # Before CUDA starts in this process: afterward it looks at the variable no more.
        os.environ[_VISIBLE] = devices[place % len(devices)]
    try:
        yield rank, count
    finally:
        os.environ.clear()
        os.environ.update(before)


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as the driver numbers them."""
    given = os.environ.get(_VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
