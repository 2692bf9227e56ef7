"""Logits of a reference and of an engine, as often and as fast as attacks ask for them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from hwnas.core.environment import usable_cores
from hwnas.core.errors import DataError
from hwnas.robustness.evaluate import logits_from_module, logits_from_runner
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from hwnas.robustness.square import Predict
    from hwnas_export.runner import Runner

# What a small network computes for so many images stays in the caches of a core: on 32x32 images a
# call of 128 took 30 % longer per image. Fewer than the least do not pay for handing them over.
_PART = 32
_LEAST_PART = 8


@contextmanager
def asking(engine: Runner, *, batch: int, workers: int | None = None) -> Iterator[Predict]:
    """Yield what gives the logits of an active runner, for any number of images.

    An engine is deployed with few threads, one as a rule; attacks ask it hundreds of thousands of
    times. A session of ONNX Runtime on a CPU may be called from several threads at once, so that
    each core gets a part of the images, with the very session that is verified. Other runners are
    asked by one thread.

    Args:
        engine: An active runner, of a fixed or a free batch.
        batch: Images per call at most, where its batch is free.
        workers: Threads that ask; None takes the cores that this process may use.
    """
    fixed = engine.input_shape[0]
    shared = isinstance(engine, OnnxRuntimeRunner) and "-cpu" in engine.name
    count = (workers or usable_cores()) if shared else 1
    size = fixed or (min(batch, _PART) if shared else batch)
    if count == 1:
        yield lambda images: logits_from_runner(engine, images, batch=size)
        return
    with ThreadPoolExecutor(count) as pool:

        def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
            # As many parts for each thread, none above the batch.
            turns = -(-len(images) // (size * count))
            part = fixed or max(-(-len(images) // (turns * count)), _LEAST_PART)
            parts = [images[at : at + part] for at in range(0, len(images), part)]
            if len(parts) == 1:
                return logits_from_runner(engine, images, batch=size)
            return np.concatenate(
                list(pool.map(lambda each: logits_from_runner(engine, each, batch=size), parts))
            )

        yield predict


def reference_logits(
    twin: nn.Module | Predict, images: NDArray[np.float32], *, batch: int
) -> NDArray[np.float32]:
    """Compute the logits of a module or of an array function, (N, classes).

    Raises:
        DataError: The function gives no logits.
    """
    if isinstance(twin, nn.Module):
        return logits_from_module(twin, images, batch=batch)
    logits = np.concatenate(
        [twin(images[start : start + batch]) for start in range(0, len(images), batch)]
    )
    if logits.ndim != 2 or len(logits) != len(images):
        raise DataError(
            f"the reference gives {logits.shape} for {len(images)} images instead of logits, "
            f"({len(images)}, classes)"
        )
    return logits
