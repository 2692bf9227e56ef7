"""Whether the parts of a run fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.core.errors import ConfigError, TargetError
from hwnas_profilers.targets import RUNTIMES, parse_target

if TYPE_CHECKING:
    from hwnas.data.images import ImageData


DEPLOYED = tuple(name for name, runtime in RUNTIMES.items() if runtime.takes == "onnx")
"""Targets that bundles are made and verified for."""


def check_deployable(target: str) -> None:
    """Check that a bundle can be made for a target; some can only be profiled.

    Raises:
        TargetError: It cannot, or hwnas knows of no such target.
    """
    parse_target(target)
    if target not in DEPLOYED:
        raise TargetError(
            f"no bundle can be made for target `{target}`: it can be profiled, not deployed",
            hint=f"use a table of one of {', '.join(DEPLOYED)}",
        )


def check_images_fit(
    data: ImageData, image_shape: tuple[int, int, int], classes: int, *, what: str
) -> None:
    """Check that a network takes a data set's images and tells its classes apart.

    Raises:
        ConfigError: It does not.
    """
    if data.image_shape != image_shape:
        raise ConfigError(
            f"{what} takes images of {_times(image_shape)}, {data.name} has "
            f"{_times(data.image_shape)}",
            hint="set `image_size` in [data], or make it again for these images",
        )
    if len(data.class_names) != classes:
        raise ConfigError(f"{what} has {classes} classes, {data.name} has {len(data.class_names)}")


def _times(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))
