"""The engines of a bundle: found, checked, opened."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hwnas.core.artifacts import sha256_of
from hwnas.core.decoding import read_json
from hwnas.core.errors import ArtifactError, TargetError, nearest
from hwnas.deploy.records import ENGINES_FOLDER, SIDECAR_FILE, EngineCard
from hwnas_profilers.targets import require_target

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas_export.runner import Runner


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


def open_runner(bundle: Path, card: EngineCard) -> Runner:
    """Make the runner of an engine, not yet active. Nothing is compiled before its hash is known.

    Raises:
        ArtifactError: A file is not the one that the sidecar describes.
        TargetError: The engine cannot run here.
    """
    model = _checked(bundle / card.model, card.model_sha256)
    return runner_for(card.target, model, threads=card.threads)


def runner_for(target: str, model: bytes, *, threads: int = 1) -> Runner:
    """Make the runner of an ONNX model on a target of this machine, not yet active.

    Args:
        target: A target that takes ONNX models.
        model: The serialized model, in the target's precision.
        threads: Threads within an operator, on a CPU.

    Raises:
        TargetError: The target is unknown, cannot be used here, or takes no ONNX model.
    """
    parsed = require_target(target)
    if parsed.runtime.takes != "onnx" or parsed.destination:
        raise TargetError(f"target `{target}` runs no ONNX model on this machine")
    module, _, name = parsed.runtime.runner.partition(":")
    options: dict[str, Any] = dict(parsed.runtime.options)
    runner: Runner = getattr(importlib.import_module(module), name)(
        model, threads=threads, **options
    )
    return runner


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
