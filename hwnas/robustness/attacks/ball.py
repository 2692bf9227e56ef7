"""Where a perturbation may go: a ball around each image of a batch, cut to the box [0, 1].

An attack asks a ball for three things: a random point to start from, a step along a gradient, and
the projection of a point back into it. `ball_around` makes one for a batch; `keep` drops samples.

The formulas, and the order of their operations, are those of AutoAttack's reference code: with the
same seed the same points follow, to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.robustness.threat import Norm

_TINY = 1e-12


class Ball(Protocol):
    """A ball around each of N images; points and gradients are (N, channels, height, width)."""

    def random_point(self, generator: torch.Generator) -> Tensor:
        """Return points with a random change of length eps, cut to the box."""
        ...

    def step(self, points: Tensor, gradients: Tensor, sizes: float | Tensor) -> Tensor:
        """Move points by `sizes` (in the ball's norm) up their gradients, and project them."""
        ...

    def project(self, points: Tensor) -> Tensor:
        """Return the points moved into ball and box; the argument may be written over."""
        ...

    def keep(self, rows: Tensor) -> Ball:
        """Return the balls of some of the images."""
        ...


def ball_around(images: Tensor, norm: Norm, eps: float) -> Ball:
    """Make the ball of a batch.

    Args:
        images: (N, channels, height, width).
        norm: Norm of the perturbation.
        eps: Radius.
    """
    if norm == "linf":
        return LinfBall(images, eps)
    return L2Ball(images, eps)


def sizes_of(perturbations: Tensor, norm: Norm) -> Tensor:
    """Return the size of each perturbation, (N, channels, height, width) -> (N,)."""
    if norm == "linf":
        return perturbations.abs().amax(dim=(1, 2, 3))
    return perturbations.square().sum(dim=(1, 2, 3)).sqrt()


class LinfBall:
    """Every pixel within eps of the image's."""

    def __init__(
        self, images: Tensor, eps: float, ends: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self._images, self._eps = images, eps
        # Both ends cut to the box: one clamp does both, also where an image lies outside the box,
        # as under the protocol "normalized".
        self._low, self._high = ends or (
            (images - eps).clamp_(0.0, 1.0),
            (images + eps).clamp_(0.0, 1.0),
        )

    def random_point(self, generator: torch.Generator) -> Tensor:
        """Return points with a random change of length eps, cut to the box."""
        drawn = _like(self._images, torch.rand(self._images.shape, generator=generator))
        drawn = 2 * drawn - 1
        drawn = drawn / (drawn.abs().amax(dim=(1, 2, 3), keepdim=True) + _TINY)
        return (self._images + self._eps * drawn).clamp_(0.0, 1.0)

    def step(self, points: Tensor, gradients: Tensor, sizes: float | Tensor) -> Tensor:
        """Move points up their gradients and project them."""
        return self.project(gradients.sign().mul_(sizes).add_(points))

    def project(self, points: Tensor) -> Tensor:
        """Move points into ball and box; the argument may be written over."""
        return torch.clamp(points, self._low, self._high, out=points)

    def keep(self, rows: Tensor) -> LinfBall:
        """Return the balls of some of the images."""
        ends = self._low[rows], self._high[rows]
        return LinfBall(self._images[rows], self._eps, ends)


class L2Ball:
    """Changes of all pixels with a root of summed squares up to eps."""

    def __init__(self, images: Tensor, eps: float) -> None:
        self._images, self._eps = images, eps

    def random_point(self, generator: torch.Generator) -> Tensor:
        """Return points with a random change of length eps, cut to the box."""
        drawn = _like(self._images, torch.randn(self._images.shape, generator=generator))
        return (self._images + self._eps * _unit(drawn)).clamp_(0.0, 1.0)

    def step(self, points: Tensor, gradients: Tensor, sizes: float | Tensor) -> Tensor:
        """Move points up their gradients and project them."""
        return self.project(points + sizes * _unit(gradients))

    def project(self, points: Tensor) -> Tensor:
        """Move points into ball and box; the argument may be written over."""
        change = points - self._images
        length = _length(change)
        # Divided by its length and multiplied again also where it is short enough, as in the
        # reference: the rounding is a part of the path.
        change.div_(length + _TINY).mul_(length.clamp(max=self._eps))
        return change.add_(self._images).clamp_(0.0, 1.0)

    def keep(self, rows: Tensor) -> L2Ball:
        """Return the balls of some of the images."""
        return L2Ball(self._images[rows], self._eps)


def _length(change: Tensor) -> Tensor:
    """Return (N, 1, 1, 1)."""
    return change.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


def _unit(change: Tensor) -> Tensor:
    return change / (_length(change) + _TINY)


def _like(images: Tensor, drawn: Tensor) -> Tensor:
    """Return what a CPU generator drew, where the images live."""
    return drawn.to(images.device, images.dtype)
