"""The engines of a bundle, verified one after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx

from hwnas.core.errors import ConfigError, MissingDependencyError, TargetError
from hwnas.data.sources import load_data
from hwnas.deploy.engines import engine_card, engine_cards, model_of, open_runner
from hwnas.stages.bundle import arrays_of, open_bundle
from hwnas.stages.checks import check_images_fit
from hwnas.stages.verify import VerifyResult
from hwnas.verify.speed import measure_speed
from hwnas.verify.verification import verify_engine
from hwnas_export.memory import memory_of_onnx
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_profilers.energy import energy_meter_for, measure_energy_uj
from hwnas_profilers.profiler import normal_input
from hwnas_profilers.targets import RUNTIMES, parse_target

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from hwnas.core.progress import Progress
    from hwnas.deploy.records import EngineCard
    from hwnas.search.records import Resources
    from hwnas.stages.bundle import Bundle
    from hwnas.verify.verification import Verification
    from hwnas_export.memory import ModelMemory
    from hwnas_export.runner import Runner
    from hwnas_profilers.records import EnergyStatistics
    from hwnas_profilers.timing import TimingSettings

_ANY_BATCH = (1, 1, 65_536)


def verify_bundle(
    bundle: Path, target: str | None, *, timing: TimingSettings, progress: Progress
) -> VerifyResult:
    """Verify the engines of a bundle. Raises as `hwnas.stages.verify.verify`, save for gates.

    Args:
        bundle: Its folder.
        target: The one engine to verify; None takes all that can run here.
        timing: How exactly latencies are timed.
        progress: Where to report.
    """
    opened = open_bundle(bundle)
    data = load_data(opened.card.data)
    check_images_fit(data, opened.card.image_shape, len(opened.card.class_names), what="the engine")
    images, labels = arrays_of(data.test)
    found: dict[str, Verification] = {}
    left_out: dict[str, str] = {}
    for name, card in _wanted(bundle, opened, target).items():
        try:
            runner, model = _opened(bundle, opened, card, progress)
            runner.activate()
        except (TargetError, MissingDependencyError) as error:
            if target is not None:
                raise
            left_out[name] = error.message
            progress.say(f"verify: {name} is not verified here: {error.message}")
            continue
        with runner:
            found[name] = _verified(opened, card, runner, model, images, labels, timing, progress)
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise TargetError(f"no engine of {bundle} can run here: {reasons}")
    first, *others = found
    return VerifyResult(
        bundle=str(bundle),
        passed=all(each.passed for each in found.values()),
        verification=found[first],
        others={name: found[name] for name in others},
        not_verified=left_out,
    )


def _wanted(bundle: Path, opened: Bundle, target: str | None) -> dict[str, EngineCard | None]:
    """Return the engines to verify, the network's own first; None is that of an older bundle."""
    own = opened.card.target
    cards = {card.target: card for card in engine_cards(bundle)}
    if not cards and target in (None, own):
        return {own: None}
    if target is not None:
        return {target: engine_card(bundle, target)}
    return {name: cards[name] for name in sorted(cards, key=lambda name: name != own)}


def _opened(
    bundle: Path, opened: Bundle, card: EngineCard | None, progress: Progress
) -> tuple[Runner, bytes]:
    """Return an engine's runner and its ONNX model, whose hashes have been checked."""
    if card is None:
        return OnnxRuntimeRunner(opened.model, threads=opened.card.threads), opened.model
    return open_runner(bundle, card, progress=progress), model_of(bundle, card)


def _verified(
    opened: Bundle,
    card: EngineCard | None,
    engine: Runner,
    model: bytes,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    timing: TimingSettings,
    progress: Progress,
) -> Verification:
    known = opened.card
    smallest, _, largest = _ANY_BATCH if card is None else card.batches
    settings = known.verify
    if settings.batch < smallest:
        raise ConfigError(
            f"the engine {engine.name} takes batches of {smallest} to {largest}, and [verify] asks "
            f"for {settings.batch}",
            hint=f"set `batch` in [verify] to {smallest} or more",
        )
    settings = replace(settings, batch=min(settings.batch, largest))
    # The budgets were given for the network's own target.
    own = card is None or card.target == known.target
    return verify_engine(
        twin=opened.twin,
        engine=engine,
        images=images,
        labels=labels,
        threat=known.threat,
        # That of its arithmetic: OpenVINO computes in bfloat16 from a model in single precision.
        precision="fp32" if card is None else RUNTIMES[card.target].precision,
        model=model,
        budget_ms=known.budget_ms if own else None,
        speed=measure_speed(
            engine,
            settings=timing,
            batches=settings.throughput_batches,
            batch=max(known.resources.batch if known.resources else 1, smallest),
            smallest=smallest,
            largest=largest,
            progress=progress,
        ),
        budgets=opened.budgets if own else None,
        memory=_memory(model, known.resources) if own else None,
        energy=_metered(engine, known.target, known.resources, progress) if own else None,
        settings=settings,
        progress=progress,
    )


def _memory(model: bytes, resources: Resources | None) -> ModelMemory:
    """Count what the engine's own model takes, at the batch that it was derived for."""
    batch = resources.batch if resources else 1
    return memory_of_onnx(onnx.load_model_from_string(model), batch=batch)


def _metered(
    engine: Runner, target: str, resources: Resources | None, progress: Progress
) -> EnergyStatistics | None:
    """Meter the engine where there is a budget on its energy; None where that cannot be done."""
    if resources is None or resources.energy_budget_mj is None:
        return None
    images = normal_input(engine, np.random.default_rng(0), resources.batch)
    try:
        meter = energy_meter_for(parse_target(target).runtime.device)
        return measure_energy_uj(engine.sampler_on(images), meter)
    except (TargetError, MissingDependencyError) as error:
        progress.say(f"verify: the energy could not be metered: {error}")
        return None
