"""Lower bounds of a network's margins over l_inf balls of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from hwnas.core.errors import DataError, UnboundedOperationError
from hwnas.robustness.bounds.backward import lower_bounds
from hwnas.robustness.bounds.bounded import Bounded, Recording
from hwnas.robustness.bounds.interval import Interval
from hwnas.robustness.bounds.refine import refined
from hwnas.robustness.bounds.steps import LinearStep
from hwnas.robustness.bounds.tensor import BoundedTensor
from hwnas.robustness.threat import check_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hwnas.robustness.threat import Eps

Method: TypeAlias = Literal["ibp", "crown-ibp", "crown"]
"""How bounds are found, from the fastest to the tightest."""


def margin_lower_bounds(
    forward: Callable[[Any], Any],
    images: Tensor,
    labels: Tensor,
    *,
    eps: Eps | Tensor,
    method: Method = "ibp",
) -> Tensor:
    """Bound from below by how much the right logit beats each other one, over a ball of images.

    The bounds hold for every image x' of [0, 1] with |x' - x| <= eps in each pixel. Where all of a
    sample's are positive (but the label's own), no such image is misclassified.

    - `ibp`: interval bound propagation, at the cost of some three forward passes. Loose on networks
      that were not trained for it; cheap to optimize.
    - `crown-ibp`: linear bounds are propagated backward from the margins to the pixels, with lines
      over the intervals of `ibp`. Some two to five forward passes more per class, and where
      gradients are wanted, memory for as many images as images times classes.
    - `crown`: intervals are found by linear bounds too, layer by layer. The tightest, at the cost
      of a backward pass per value that a nonlinearity bends: for small networks and batches.

    Where the last layers are linear maps of vectors, they are merged into the margins for `ibp`
    too. The other two give the larger one of their own bound and that of their intervals.

    Bounds are differentiable in whatever `forward` computes with: weights, and a supernet's gates.

    Rounding: bounds are computed in the type of the images, and lowered by a share of the
    magnitudes that were summed (2^-16 in float32, 2^-40 in float64), which covers what rounding was
    seen to do; the float64 bound is what a certificate is made of: see `certified`.

    Args:
        forward: The network's own forward, from images to logits, in eval mode. It is called once,
            with a tensor that carries bounds: every function of torch that it calls must have a
            sound rule.
        images: (N, channels, height, width), pixels in [0, 1]; float32 or float64.
        labels: (N,), int64.
        eps: The ball's radius in pixel units; or one for each image, (N,).
        method: How bounds are found.

    Returns:
        (N, classes): lower bounds of logits[label] - logits[j]; 0 at j = label.

    Raises:
        DataError: Pixels outside [0, 1].
        UnboundedOperationError: `forward` calls what has no sound rule: it is named, with its
            place. Batch statistics are among that.

    References:
        Gowal et al., "On the Effectiveness of Interval Bound Propagation", 2018 (IBP, with the last
        layer merged into the margins). Zhang et al., "Efficient Neural Network Robustness
        Certification with General Activation Functions", 2018 (CROWN). Zhang et al., "Towards
        Stable and Efficient Training of Verifiably Robust Neural Networks", 2020 (CROWN-IBP). Xu et
        al., "Automatic Perturbation Analysis for Scalable Certified Robustness", 2020 (on graphs).
        We depart in the relaxations of h-swish and of products: see `elementwise` and `steps`.
    """
    check_images(images)
    if images.dtype not in (torch.float32, torch.float64):
        raise DataError(f"bounds are computed in float32 or float64, not {images.dtype}")
    recording = Recording(
        batch=len(images),
        keeps_steps=method != "ibp",
        refine=refined if method == "crown" else None,
    )
    # Autocast would round what is bounded here, each end in its own way.
    with torch.autocast(images.device.type, enabled=False):
        # The layout in which convolutions are fastest, and so are the transposed ones.
        images = images.contiguous(memory_format=torch.channels_last)
        logits = _logits_of(
            forward, Bounded(_ball(images, eps), recording, is_box=True, is_exact=True)
        )
        differences = _differences(labels, logits.shape[1], images)
        margins = lower_bounds(logits, differences, stops_at=_is_fed_by_features)
        if method != "ibp":
            margins = torch.maximum(margins, lower_bounds(logits, differences))
    # Of what cancels exactly there may be a rest.
    return margins.T.scatter(1, labels[:, None], 0.0)  # (classes, N) -> (N, classes)


def _ball(images: Tensor, eps: Eps | Tensor) -> Interval:
    radius = eps if isinstance(eps, float | int) else eps.to(images.dtype).view(-1, 1, 1, 1)
    return Interval.from_ends((images - radius).clamp(min=0.0), (images + radius).clamp(max=1.0))


def _logits_of(forward: Callable[[Any], Any], images: Bounded) -> Bounded:
    output = forward(BoundedTensor(images))
    if not isinstance(output, BoundedTensor):
        raise UnboundedOperationError(
            f"`forward` gave {type(output).__name__} in place of bounded logits",
            hint="give a function that computes logits from the images with torch, and no more",
        )
    if output.ndim != 2:
        raise UnboundedOperationError(
            f"`forward` gave {tuple(output.shape)} in place of (batch, classes)"
        )
    return output.bounded


def _differences(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    """Return the coefficients of logits[label] - logits[j], (j, batch, classes)."""
    identity = torch.eye(classes, dtype=like.dtype, device=like.device)
    return identity[labels][None] - identity[:, None]


def _is_fed_by_features(value: Bounded) -> bool:
    """Tell where intervals are taken: behind it the cost is that of features, per class."""
    assert value.step is not None
    return any(source.ndim > 2 for source in value.step.inputs) or not isinstance(
        value.step, LinearStep
    )
