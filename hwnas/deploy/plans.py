"""TensorRT's plans: native code for one version and kind of GPU, built here or ahead of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.environment import this_device

if TYPE_CHECKING:
    from hwnas.deploy.records import EngineCard
    from hwnas_export.tensorrt_plan import GivenPlan

AHEAD_OF_TIME = ("8.0", "8.6", "8.9", "12.0")
"""Compute capabilities that TensorRT for RTX builds for where none are named and no GPU is here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPlace:
    """Where plans would run: what a plan must have been built for.

    Attributes:
        package: TensorRT's kind: `tensorrt` or `tensorrt_rtx`.
        version: Its version.
        device: The GPU's name.
        compute_capability: Of that GPU, e.g. `8.9`.
    """

    package: str
    version: str
    device: str
    compute_capability: str


def given_plan(card: EngineCard, content: bytes) -> GivenPlan:
    """Return an engine's plan as TensorRT's runner takes it: with the hash that it must have."""
    from hwnas_export.tensorrt_plan import GivenPlan

    return GivenPlan(
        content=content,
        sha256=card.plan_sha256,
        compute_capabilities=card.compute_capabilities,
    )


def plan_place() -> PlanPlace:
    """Describe this machine.

    Raises:
        MissingDependencyError: TensorRT is not installed.
        TargetError: It cannot be loaded, or there is no GPU.
    """
    from hwnas_export.cuda_driver import cuda_driver
    from hwnas_export.tensorrt_api import tensorrt_version

    package, _, version = tensorrt_version().partition(" ")
    major, minor = cuda_driver().device().compute_capability
    return PlanPlace(
        package=package,
        version=version,
        device=this_device("cuda").name,  # as sidecars name it
        compute_capability=f"{major}.{minor}",
    )


def plan_mismatch(card: EngineCard, place: PlanPlace) -> str:
    """Say why an engine's plan is none for a place; empty where it is one.

    TensorRT's plans are for the GPU that they were built on; those of TensorRT for RTX for the
    compute capabilities that they were built for.
    """
    built_by = card.packages.get(place.package)
    if built_by != place.version:
        other = ", ".join(f"{name} {version}" for name, version in card.packages.items())
        return f"it was built by {other or 'an unknown version'}; here is {place.package} " + (
            place.version
        )
    if place.compute_capability not in card.compute_capabilities:
        return (
            f"it was built for compute capability {', '.join(card.compute_capabilities) or '?'}; "
            f"{place.device} has {place.compute_capability}"
        )
    if card.device is not None and place.package == "tensorrt" and card.device.name != place.device:
        return f"it was built on {card.device.name}; here is {place.device}"
    return ""
