"""`hwnas verify`: the engine itself against its budget, its twin and its attackers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.verify.verification import Verification


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """What was found on a bundle's engine.

    Attributes:
        bundle: Its folder.
        passed: Whether every gate was passed.
        verification: The figures and gates.
    """

    bundle: str
    passed: bool
    verification: Verification


def verify(
    bundle: Path,
    *,
    out: Path | None = None,
    relative_width: float = 0.005,
    progress: Progress = SILENT,
) -> VerifyResult:
    """Check a bundle's engine: parity, latency, accuracy and robustness.

    The test images, which nothing before has seen, are run through the engine and its PyTorch twin:
    as they are, as adversarial examples crafted on the twin, and through a black-box attack on the
    engine itself. The engine's latency is measured here, on this machine.

    Args:
        bundle: Folder that `hwnas export` or `hwnas run` wrote.
        out: Where to write the figures as JSON; by default nowhere.
        relative_width: The latency is known well enough once the 95 % interval of its median is
            narrower than this share of the median.
        progress: Where to report.

    Returns:
        The figures and gates.

    Raises:
        ArtifactError: The bundle is none, or a file of it was changed.
        GateFailedError: A gate was not passed. The figures are written, and are its `result`.
    """
    from hwnas.core.artifacts import write_atomically
    from hwnas.core.decoding import encode_json
    from hwnas.core.errors import GateFailedError
    from hwnas.data.sources import load_data
    from hwnas.stages.bundle import arrays_of, open_bundle
    from hwnas.stages.checks import check_images_fit
    from hwnas.verify.verification import verify_engine
    from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
    from hwnas_profilers.profiler import time_runner
    from hwnas_profilers.timing import TimingSettings

    settings = TimingSettings.for_networks(relative_width=relative_width)
    opened = open_bundle(bundle)
    card = opened.card
    data = load_data(card.data)
    check_images_fit(data, card.image_shape, len(card.class_names), what="the engine")
    images, labels = arrays_of(data.test)
    with OnnxRuntimeRunner(opened.model, threads=card.threads) as engine:
        latency = time_runner(engine, settings=settings, threads=card.threads, progress=progress)
        verification = verify_engine(
            twin=opened.twin,
            engine=engine,
            images=images,
            labels=labels,
            threat=card.threat,
            budget_ms=card.budget_ms,
            latency=latency,
            settings=card.verify,
            progress=progress,
        )
    result = VerifyResult(bundle=str(bundle), passed=verification.passed, verification=verification)
    if out is not None:
        write_atomically(out, encode_json(verification, indent=2))
    try:
        verification.require()
    except GateFailedError as error:
        error.result = result
        raise
    return result
