"""What `verify` found on an engine, as its sidecar holds it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hwnas.deploy.records import EngineCard, EngineFigures

if TYPE_CHECKING:
    from hwnas.verify.verification import Verification


def with_figures(card: EngineCard, verification: Verification) -> EngineCard:
    """Return an engine's sidecar with what was found on the engine.

    The robust accuracy is the worst case over as many attacks as were made: where some were made
    for the engine itself, over those as well, on the images that all attacked.
    """
    adaptive, threat = verification.adaptive, verification.threat
    protocol = "" if threat.protocol == "pixel" else f", protocol {threat.protocol}"
    worst = verification.black_box.worst_case if adaptive is None else adaptive.worst_case
    attacks = [
        verification.crafted,
        f"Square with {verification.settings.square_queries} queries",
    ]
    if adaptive is not None:
        attacks.append(f"APGD with {adaptive.steps} steps through {adaptive.gradients}")
    clean = verification.clean_accuracy.engine
    figures = EngineFigures(
        n=clean.n,
        clean_accuracy=clean.value,
        robust_accuracy=worst.value,
        robust_n=worst.n,
        threat="; ".join(
            [
                f"{threat.norm}, eps {threat.eps}{protocol}",
                *attacks,
                f"seed {verification.settings.seed}",
            ]
        ),
        latency=verification.latency,
    )
    return replace(card, figures=figures)
