"""Robustness objectives of a search: what the architecture parameters are to raise besides.

All measure in units of the scale of the logits. Without that, a search would only learn to shrink
logits, which changes no prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, final

from hwnas.robustness.jacobian import jacobian_norms

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hwnas.robustness.threat import Eps, Norm
    from hwnas.search.rnas_cl import SearchConfig

Objective: TypeAlias = Literal["none", "jacobian", "certified", "combined"]
"""`jacobian`: how fast logits change around an image; `certified`: a lower bound of its smallest
margin in a ball; `combined`: their sum."""

BoundMethod: TypeAlias = Literal["ibp", "crown-ibp"]
"""How margins are bounded: see `hwnas.robustness.bounds`."""


class Rated(NamedTuple):
    """What an objective says of images.

    Attributes:
        logits: (N, classes), of the images themselves.
        by_scale: Gives the ratings, (N,), for a scale of the logits, which is one number for all
            images of a step and not known before all are seen. The higher, the more robust.
    """

    logits: Tensor
    by_scale: Callable[[Tensor], Tensor]


class RobustObjective(Protocol):
    """Rates images by how robustly a network classifies them, differentiable in its gates."""

    def __call__(
        self,
        forward: Callable[[Any], Any],
        images: Tensor,
        labels: Tensor,
        *,
        eps: Eps,
        rows: Tensor | None,
    ) -> Rated:
        """Rate images.

        Args:
            forward: Maps images to logits, in eval mode.
            images: (N, channels, height, width), pixels in [0, 1].
            labels: (N,), int64.
            eps: Radius of the ball, for objectives that know one.
            rows: (N, rows): classes that are looked at, for objectives that may sample them; None
                looks at all.
        """
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class JacobianObjective:
    """-(1/K) sum_k ||grad_x f_k||_q: see `hwnas.robustness.jacobian`."""

    norm: Norm = "linf"

    def __call__(
        self,
        forward: Callable[[Any], Any],
        images: Tensor,
        labels: Tensor,
        *,
        eps: Eps,
        rows: Tensor | None,
    ) -> Rated:
        """Rate images: see `RobustObjective`."""
        logits, norms = jacobian_norms(forward, images, norm=self.norm, rows=rows)
        slopes = norms.mean(1)
        return Rated(logits, lambda scale: -slopes / scale)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedObjective:
    """Lower bound of the smallest margin, min_{j != y} f_y - f_j, over an l_inf ball: l(m / s).

    m is the bound, s the scale of the logits and l(v) = sign(v) log(1 + |v|). Bounds of networks
    that were not trained for them are off by orders of magnitude, which multiply layer by layer:
    -1e8 scales is usual for a small supernet, -1e23 for one of 64 layers. Of such a bound a
    logarithm is what can stand beside a loss: it grows by what each layer adds, in nats. Around 0
    it is the bound itself.

    Not levelled off on either side: images that are far from certified count, and so do those that
    are.
    """

    method: BoundMethod = "ibp"

    def __call__(
        self,
        forward: Callable[[Any], Any],
        images: Tensor,
        labels: Tensor,
        *,
        eps: Eps,
        rows: Tensor | None,
    ) -> Rated:
        """Rate images: see `RobustObjective`."""
        from hwnas.robustness.bounds import margin_lower_bounds

        margins = margin_lower_bounds(forward, images, labels, eps=eps, method=self.method)
        smallest = margins.scatter(1, labels[:, None], float("inf")).amin(1)  # (N, classes) -> (N,)
        return Rated(forward(images), lambda scale: signed_log(smallest / scale))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CombinedObjective:
    """R_CB + R_Jac, as the paper adds them."""

    jacobian: JacobianObjective
    certified: CertifiedObjective

    def __call__(
        self,
        forward: Callable[[Any], Any],
        images: Tensor,
        labels: Tensor,
        *,
        eps: Eps,
        rows: Tensor | None,
    ) -> Rated:
        """Rate images: see `RobustObjective`."""
        first = self.jacobian(forward, images, labels, eps=eps, rows=rows)
        second = self.certified(forward, images, labels, eps=eps, rows=rows)
        return Rated(first.logits, lambda scale: first.by_scale(scale) + second.by_scale(scale))


def signed_log(values: Tensor) -> Tensor:
    """Return sign(v) log(1 + |v|), which is v around 0. Its like, asinh, overflows in backward."""
    return values.sign() * values.abs().log1p()


def objective_of(config: SearchConfig) -> RobustObjective | None:
    """Return the objective that a search is told to raise; None where there is none."""
    if config.objective == "none":
        return None
    jacobian = JacobianObjective(norm=config.objective_norm)
    certified = CertifiedObjective(method=config.objective_bound)
    if config.objective == "jacobian":
        return jacobian
    if config.objective == "certified":
        return certified
    return CombinedObjective(jacobian=jacobian, certified=certified)
