"""Whether engines compute what their network does, on real images, when they are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.core.errors import ExportError
from hwnas.deploy.engines import model_of, open_runner
from hwnas.robustness.evaluate import logits_from_runner
from hwnas.verify.parity import parity_of
from hwnas_profilers.targets import RUNTIMES

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from hwnas.deploy.records import EngineCard
    from hwnas.verify.parity import Parity
    from hwnas.verify.verification import VerifySettings
    from hwnas_export.runner import Runner


def model_parity(
    model: bytes,
    images: NDArray[np.float32],
    expected: NDArray[np.float32],
    verify: VerifySettings,
    *,
    threads: int = 1,
) -> Parity:
    """Compare the portable model in FP32, as ONNX Runtime computes it on the CPU, with PyTorch.

    Args:
        model: The serialized model.
        images: float32, (n, channels, height, width), pixels in [0, 1].
        expected: PyTorch's logits of them, (n, classes).
        verify: Holds the tolerances and the batch.
        threads: Threads within an operator.

    Raises:
        ExportError: The logits differ by more than the tolerance.
    """
    from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner

    parity = _parity(OnnxRuntimeRunner(model, threads=threads), images, expected, verify.batch)
    tolerance = verify.tolerances.max_abs_diff
    if parity.max_abs_diff is None or not parity.max_abs_diff <= tolerance:
        raise ExportError(
            f"the exported model's logits differ from PyTorch's by up to {parity.max_abs_diff}, "
            f"more than {tolerance}, over {parity.n} validation images"
        )
    return parity


def engine_parity(
    bundle: Path,
    card: EngineCard,
    images: NDArray[np.float32],
    expected: NDArray[np.float32],
    verify: VerifySettings,
) -> Parity:
    """Compare an engine with PyTorch, by the tolerance of its precision.

    Damage is found here; how much rounding has cost is for the gates of `verify` to judge. Of an
    engine that was built ahead of time and cannot run here, its ONNX model is compared as
    ONNX Runtime computes it on the CPU.

    Args:
        bundle: The bundle's folder, which may be unfinished.
        card: The engine.
        images: As in `model_parity`.
        expected: As in `model_parity`.
        verify: As in `model_parity`.

    Raises:
        ExportError: The logits are not finite, or differ by more than the tolerance.
    """
    from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner

    if card.device is None:
        runner: Runner = OnnxRuntimeRunner(model_of(bundle, card), threads=card.threads)
    else:
        runner = open_runner(bundle, card)
    batch = min(verify.batch, card.batches[2])
    parity = _parity(runner, images, expected, batch)
    precision = RUNTIMES[card.target].precision
    tolerance = verify.tolerances.at_precision(precision).max_abs_diff
    if parity.max_abs_diff is None:
        raise ExportError(
            f"{card.target} gives NaN or infinity for {parity.nonfinite} of {parity.n} validation "
            "images",
            hint="its numbers do not fit the precision: export without this target",
        )
    if not parity.max_abs_diff <= tolerance:
        raise ExportError(
            f"the logits of {card.target} differ from PyTorch's by up to "
            f"{parity.max_abs_diff:.3g}, more than {tolerance:g}, over {parity.n} validation "
            f"images; {parity.agreement:.1%} of the predictions are equal",
            hint="calibrate on more images, export without this target, or allow more: "
            "`max_abs_diff` in [verify.tolerances]",
        )
    return parity


def _parity(
    runner: Runner, images: NDArray[np.float32], expected: NDArray[np.float32], batch: int
) -> Parity:
    with runner:
        return parity_of(expected, logits_from_runner(runner, images, batch=batch))
