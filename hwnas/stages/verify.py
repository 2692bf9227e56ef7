"""`hwnas verify`: the engine itself against its budget, its twin and its attackers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.search.records import Resources
    from hwnas.verify.verification import Verification
    from hwnas_export.memory import ModelMemory
    from hwnas_export.runner import Runner
    from hwnas_profilers.records import EnergyStatistics


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
    engine itself. The engine's latency is measured here, on this machine, and its memory counted
    from its own graph. Each budget that it was derived under is a gate.

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
        latency = time_runner(engine, settings=settings, progress=progress)
        energy = _metered(engine, card.target, card.resources, progress)
        verification = verify_engine(
            twin=opened.twin,
            engine=engine,
            images=images,
            labels=labels,
            threat=card.threat,
            budget_ms=card.budget_ms,
            latency=latency,
            budgets=opened.budgets,
            memory=_memory(opened.model, card.resources),
            energy=energy,
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


def _memory(model: bytes, resources: Resources | None) -> ModelMemory:
    """Count what the engine's own model takes, at the batch that it was derived for."""
    import onnx

    from hwnas_export.memory import memory_of_onnx

    batch = resources.batch if resources else 1
    return memory_of_onnx(onnx.load_model_from_string(model), batch=batch)


def _metered(
    engine: Runner, target: str, resources: Resources | None, progress: Progress
) -> EnergyStatistics | None:
    """Meter the engine where there is a budget on its energy; None where that cannot be done."""
    import numpy as np

    from hwnas.core.errors import MissingDependencyError, TargetError
    from hwnas_profilers.energy import energy_meter_for, measure_energy_uj
    from hwnas_profilers.profiler import normal_input
    from hwnas_profilers.targets import parse_target

    if resources is None or resources.energy_budget_mj is None:
        return None
    images = normal_input(engine, np.random.default_rng(0), resources.batch)
    try:
        meter = energy_meter_for(parse_target(target).runtime.device)
        return measure_energy_uj(engine.sampler_on(images), meter)
    except (TargetError, MissingDependencyError) as error:
        progress.say(f"verify: the energy could not be metered: {error}")
        return None
