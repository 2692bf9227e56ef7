"""Whether a teacher may compute in bfloat16: only where that is faster and says the same."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from hwnas.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.distill.teacher import Precision, Teacher

WORTH_MACS = 5_000_000
"""Multiply-accumulates per image below which fp32 is kept unmeasured: a small network gains little,
and runs of equal seed then have equal teachers, whatever else the machine does meanwhile."""

FASTER = 0.9
"""bf16 must take less than this share of the time of fp32, in each of the pairs."""

PAIRS = 5

SAME_TOP1 = 0.99
"""Share of images on which both must have the same most likely class, at least."""

_OTHER = "set `precision` in [teacher] to auto, bf16 or fp32"

MAP_DISTANCE = 0.02
"""How far a layer's map, a unit vector, may be off on average: a tenth of what lies between the
maps of neighboring layers of a wide residual network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionChoice:
    """Which precision was chosen, and by what.

    Attributes:
        precision: What the teacher is to compute in.
        reason: Why, in one line.
    """

    precision: Precision
    reason: str


def choose_precision(teacher: Teacher, images: Tensor) -> PrecisionChoice:
    """Try bf16 beside fp32 on a batch, and take it if it is faster and as good.

    Args:
        teacher: The teacher; its `precision` is left as it was.
        images: A batch of real images, as many as it will see at once, where the network is.
    """
    macs = _macs_per_image(teacher, images)
    if macs < WORTH_MACS:
        return PrecisionChoice(
            precision="fp32",
            reason=f"{macs / 1e6:.1f} million multiply-accumulates per image are too few to gain",
        )
    before = teacher.precision
    try:
        return _tried(teacher, images)
    except RuntimeError as error:  # a function that bfloat16 has no kernel for
        reason = str(error).strip().partition("\n")[0]
        return PrecisionChoice(precision="fp32", reason=f"it cannot compute in bf16: {reason}")
    finally:
        teacher.precision = before


def check_precision(teacher: Teacher, images: Tensor, precision: Precision) -> None:
    """Check that a teacher can compute in a precision that was asked for.

    Raises:
        ConfigError: It cannot, or gives what is not finite.
    """
    before = teacher.precision
    try:
        logits, maps = _observed(teacher, images, precision)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"the teacher cannot compute in {precision}: {reason}", hint=_OTHER
        ) from error
    finally:
        teacher.precision = before
    if not (logits.isfinite().all() and maps.isfinite().all()):
        raise ConfigError(
            f"in {precision} the teacher gives what is not finite: numbers beyond its range",
            hint=_OTHER,
        )


def _tried(teacher: Teacher, images: Tensor) -> PrecisionChoice:
    # First calls choose kernels and lay out weights: they are not timed.
    exact, reduced = _observed(teacher, images, "fp32"), _observed(teacher, images, "bf16")
    top1 = float((exact[0].argmax(1) == reduced[0].argmax(1)).float().mean())
    distance = float((exact[1] - reduced[1]).norm(dim=2).mean(0).max())
    # Not `distance > ...`: NaN agrees with nothing.
    if not (top1 >= SAME_TOP1 and distance <= MAP_DISTANCE):
        return PrecisionChoice(
            precision="fp32",
            reason=f"in bf16 it has the same most likely class on {top1:.1%} of {len(images)} "
            f"images, and maps that are up to {distance:.3f} off",
        )
    times: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(PAIRS):  # in turns, so that what else the machine does meets both
        for precision, taken in times.items():
            taken.append(_seconds(teacher, images, precision))
    pairs = zip(times["bf16"], times["fp32"], strict=True)
    faster = all(short < FASTER * long for short, long in pairs)
    return PrecisionChoice(
        precision="bf16" if faster else "fp32",
        reason=f"{len(images)} images take {median(times['fp32']) * 1e3:.3g} ms in fp32 and "
        f"{median(times['bf16']) * 1e3:.3g} ms in bf16; the most likely class is the same on "
        f"{top1:.1%}, maps are up to {distance:.3f} off",
    )


def _observed(teacher: Teacher, images: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    teacher.precision = precision
    return teacher.observe(images)


def _seconds(teacher: Teacher, images: Tensor, precision: Precision) -> float:
    start = time.perf_counter()
    logits, _ = _observed(teacher, images, precision)
    logits.sum().item()  # waits for a GPU
    return time.perf_counter() - start


def _macs_per_image(teacher: Teacher, images: Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        teacher.network(images[:1])
    return float(counter.get_total_flops()) / 2
