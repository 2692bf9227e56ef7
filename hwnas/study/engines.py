"""Judging the engines of a study's network beside the network itself: exported, then attacked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

# Not for type checking alone: msgspec evaluates the annotations when it decodes.
from hwnas.deploy.records import EngineCard
from hwnas.study.figures import CLEAN, TWIN, WORST
from hwnas.verify.records import Verification

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hwnas.core.progress import Progress
    from hwnas.robustness.threat import ThreatModel
    from hwnas.stages.config import RunConfig
    from hwnas.study.engine_settings import EngineSettings
    from hwnas.verify.records import VerifySettings

SCHEMA = 1
_ANY_DIFFERENCE = 1e9
_BYTES_PER_KIB = 1024.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedEngine:
    """An engine, and what was found on it.

    Attributes:
        target: What it runs on.
        size_bytes: Size of what is loaded: its plan, or else its ONNX model.
        card: Its sidecar: made by what, on what.
        verification: What was found. A gate that failed is a finding like any other.
    """

    target: str
    size_bytes: int
    card: EngineCard
    verification: Verification
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmEngines:
    """All engines of an arm in a seed: the raw record beside its figures.

    Attributes:
        arm: The arm.
        seed: The seed.
        key: Tells what they were made from, from other settings.
        engines: The engines, in the study's order.
    """

    arm: str
    seed: int
    key: str
    engines: tuple[JudgedEngine, ...]
    schema: int = SCHEMA


def judged_path(bundle: Path) -> Path:
    """Return where what was found on an engine is kept: beside its bundle."""
    return bundle.with_suffix(".json")


def verify_settings(config: RunConfig, engines: EngineSettings, images: int) -> VerifySettings:
    """Return how an engine is verified: every attack gets every image.

    Args:
        config: The arm's settings; its seed draws the attacks' starts.
        engines: The study's settings.
        images: Test images.
    """
    return replace(
        config.verify,
        square_queries=engines.queries,
        square_samples=images,
        adaptive_samples=images,
        adaptive_steps=engines.steps,
        seed=config.seed,
    )


def make_judged_engine(
    network: Path,
    config: RunConfig,
    threat: ThreatModel,
    engines: EngineSettings,
    target: str,
    bundle: Path,
    out: Path,
    *,
    progress: Progress,
) -> JudgedEngine:
    """Export a network to one engine, and verify it on the images that the study judges by.

    It is kept even if it is no faster than the one in FP32, and gates that fail stop nothing: both
    are what a study is to show. Its latency is measured later, side by side with all others.

    Args:
        network: Folder that the training wrote.
        config: The arm's settings.
        threat: What it is attacked with.
        engines: How many images, queries and steps; `images` has been resolved.
        target: The target.
        bundle: Folder of the bundle; one that is finished is taken up.
        out: File of what was found.
        progress: Where to report.

    Raises:
        ArtifactError: The network or the bundle was changed.
        DataError: There are no images to calibrate int8 on.
        TargetError: The target cannot be used here.
        ExportError: The model cannot be exported, or gives NaN or infinity.
    """
    import torch

    from hwnas.core.artifacts import write_atomically
    from hwnas.core.decoding import encode_json
    from hwnas.core.threads import torch_threads
    from hwnas.deploy.engines import engine_card, model_of, open_runner
    from hwnas.deploy.settings import ExportSettings
    from hwnas.stages.bundle import arrays_of, open_bundle
    from hwnas.stages.export import make_engine
    from hwnas.study.judge import test_images
    from hwnas.verify.verification import verify_engine
    from hwnas_profilers.targets import RUNTIMES

    images, labels = arrays_of(test_images(config.data, engines.images))
    settings = verify_settings(config, engines, len(images))
    # An export refuses logits that are far off. Here that is a finding, and has gates of its own.
    tolerances = replace(settings.tolerances, max_abs_diff=_ANY_DIFFERENCE)
    make_engine(
        network,
        bundle,
        verify=replace(settings, tolerances=tolerances),
        settings=ExportSettings(
            targets=(target,), keep_slower=True, calibration_images=engines.calibration_images
        ),
        data=config.data,
        progress=progress,
    )
    opened = open_bundle(bundle)
    card = engine_card(bundle, target)
    smallest, _, largest = card.batches
    on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    with (
        torch_threads(config.training_threads),
        open_runner(bundle, card, progress=progress) as runner,
    ):
        verification = verify_engine(
            twin=opened.twin.to("cuda" if on_gpu else "cpu"),
            engine=runner,
            images=images,
            labels=labels,
            threat=threat,
            precision=RUNTIMES[target].precision,
            model=model_of(bundle, card),
            settings=replace(settings, batch=min(max(settings.batch, smallest), largest)),
            progress=progress,
        )
    judged = JudgedEngine(
        target=target,
        size_bytes=(bundle / (card.plan or card.model)).stat().st_size,
        card=card,
        verification=verification,
    )
    write_atomically(out, encode_json(judged, indent=1))
    return judged


def engine_figures(
    judged: Mapping[str, JudgedEngine], names: Mapping[str, str]
) -> dict[str, float]:
    """Return the figures of an arm's engines, and of their twin.

    The twin is one network under the same attacks from the same starts, whichever engine it stands
    beside: its figures are those beside the first.

    Args:
        judged: By target; empty for none.
        names: What engines are called, by target.
    """
    figures: dict[str, float] = {}
    for target, each in judged.items():
        found = each.verification
        if not figures:
            figures[f"{TWIN}.{CLEAN}"] = found.clean_accuracy.twin.value
            figures[f"{TWIN}.replay"] = found.robust_accuracy.twin.value
            if found.adaptive is not None:
                figures[f"{TWIN}.adaptive"] = found.adaptive.twin.value
        own = {
            CLEAN: found.clean_accuracy.engine.value,
            "replay": found.robust_accuracy.engine.value,
            WORST: (found.adaptive or found.black_box).worst_case.value,
            "agreement": found.parity.agreement,
            "adversarial_agreement": found.adversarial_agreement,
            "size_kib": each.size_bytes / _BYTES_PER_KIB,
            "failed_gates": float(sum(not gate.passed for gate in found.gates)),
        }
        if found.adaptive is not None:
            own["adaptive"] = found.adaptive.adaptive.value
        figures |= {f"{names[target]}.{name}": value for name, value in own.items()}
    return figures
