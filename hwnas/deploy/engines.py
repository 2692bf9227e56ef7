"""The engines of a bundle: found, checked, opened."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hwnas.core.artifacts import sha256_of
from hwnas.core.decoding import read_json
from hwnas.core.environment import this_device
from hwnas.core.errors import ArtifactError, ConfigError, TargetError, nearest
from hwnas.core.progress import SILENT
from hwnas.deploy.plans import given_plan, plan_mismatch, plan_place
from hwnas.deploy.records import ENGINES_FOLDER, SIDECAR_FILE, EngineCard
from hwnas_profilers.targets import parse_target, require_target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hwnas.core.progress import Progress
    from hwnas.deploy.plans import PlanPlace
    from hwnas_export.runner import Runner
    from hwnas_export.tensorrt_plan import GivenPlan


def engine_cards(bundle: Path) -> tuple[EngineCard, ...]:
    """Read the sidecars of a bundle whose hashes have been checked, by target."""
    files = sorted((bundle / ENGINES_FOLDER).glob(f"*/{SIDECAR_FILE}"))
    return tuple(read_json(file, EngineCard) for file in files)


def engine_card(bundle: Path, target: str) -> EngineCard:
    """Return the sidecar of one engine.

    Raises:
        TargetError: The bundle holds no engine for that target.
    """
    cards = {card.target: card for card in engine_cards(bundle)}
    if target not in cards:
        similar = nearest(target, cards)
        raise TargetError(
            f"{bundle} holds no engine for target `{target}`",
            hint=f"{f'did you mean `{similar[0]}`? ' if similar else ''}"
            f"it holds: {', '.join(cards) or 'none'}",
        )
    return cards[target]


def open_runner(bundle: Path, card: EngineCard, *, progress: Progress = SILENT) -> Runner:
    """Make the runner of an engine, not yet active. Nothing is compiled before its hash is known.

    Args:
        bundle: The bundle's folder.
        card: One of its sidecars.
        progress: Told where the engine was made on another device.

    Raises:
        ArtifactError: A file is not the one that the sidecar describes.
        TargetError: The engine cannot run here; a plan of TensorRT also where it is for another
            GPU or version.
    """
    model = model_of(bundle, card)
    plan = None
    if card.plan:
        plan = given_plan(card, _checked(bundle / card.plan, card.plan_sha256))
        require_target(card.target)
        _check_plan_fits(bundle, card, plan_place())
    elif foreign := made_elsewhere(card):
        progress.say(f"{foreign}: `hwnas rebuild {bundle} --out NEW` chooses anew")
    return runner_for(
        card.target,
        model,
        threads=card.threads,
        session=card.session,
        batches=card.batches,
        plan=plan,
    )


def model_of(bundle: Path, card: EngineCard) -> bytes:
    """Return an engine's ONNX model, its hash checked.

    Raises:
        ArtifactError: It is missing, or not the one that the sidecar describes.
    """
    return _checked(bundle / card.model, card.model_sha256)


def made_elsewhere(card: EngineCard) -> str:
    """Say that what was chosen for an engine was measured on another device; empty if it was here.

    Args:
        card: An engine that the runtime compiles when it loads: it runs anywhere.
    """
    here = this_device(parse_target(card.target).runtime.device).name
    if card.device is None or card.device.name == here:
        return ""
    return f"the settings of {card.target} were chosen on {card.device.name}, and here is {here}"


def runner_for(
    target: str,
    model: bytes,
    *,
    threads: int = 1,
    session: Mapping[str, str] | None = None,
    batches: tuple[int, int, int] | None = None,
    plan: GivenPlan | None = None,
) -> Runner:
    """Make the runner of an ONNX model on a target of this machine, not yet active.

    Args:
        target: A target that takes ONNX models.
        model: The serialized model, in the target's precision.
        threads: Threads within an operator, on a CPU.
        session: Settings of ONNX Runtime's session; empty for the usual ones.
        batches: Smallest, most frequent and largest batch, for TensorRT; None for its defaults.
        plan: What TensorRT runs; None builds one.

    Raises:
        TargetError: The target is unknown, cannot be used here, or takes no ONNX model.
        ConfigError: It has no settings, and some are given.
    """
    parsed = require_target(target)
    if parsed.runtime.takes != "onnx" or parsed.destination:
        raise TargetError(f"target `{target}` runs no ONNX model on this machine")
    module, _, name = parsed.runtime.runner.partition(":")
    options: dict[str, Any] = {**parsed.runtime.options, "threads": threads}
    if name == "OnnxRuntimeRunner":
        options["session"] = session
    elif session:
        raise ConfigError(
            f"target `{target}` has no settings of a session, as in: {', '.join(session)}"
        )
    if name == "TensorRTRunner":
        from hwnas_export.tensorrt_engine import DEFAULT_SETTINGS

        settings = (
            DEFAULT_SETTINGS if batches is None else replace(DEFAULT_SETTINGS, batches=batches)
        )
        options |= {"settings": settings, "plan": plan}
    runner: Runner = getattr(importlib.import_module(module), name)(model, **options)
    return runner


def _check_plan_fits(bundle: Path, card: EngineCard, place: PlanPlace) -> None:
    reason = plan_mismatch(card, place)
    if reason:
        raise TargetError(
            f"the engine {card.target} of {bundle} cannot run here: {reason}",
            hint=f"build it for this machine: `hwnas rebuild {bundle} --out NEW`",
        )


def _checked(path: Path, digest: str) -> bytes:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", hint="restore it, or export again")
    content = path.read_bytes()
    if sha256_of(content) != digest:
        raise ArtifactError(
            f"{path} is not the file that its sidecar describes: its SHA-256 differs",
            hint="restore it, or export again",
        )
    return content
