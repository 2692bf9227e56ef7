"""DSRNA's Jacobian bound: how fast logits can change near an image, differentiable once more.

(1/K) sum_k |f_k(x + d) - f_k(x)| <= (1/K) sum_k ||grad_x f_k||_q ||d||_p to first order, with
1/p + 1/q = 1. It is a local surrogate, not a certificate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hwnas.robustness.threat import Norm


class JacobianNorms(NamedTuple):
    """Dual norms of rows of a Jacobian.

    Attributes:
        logits: (N, classes), with their graph.
        norms: (N, rows): of each image, ||grad_x f_k||_q of each of its rows k, in logits per pixel
            unit; with a graph to what `forward` computes with.
    """

    logits: Tensor
    norms: Tensor


def jacobian_norms(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    norm: Norm = "linf",
    rows: Tensor | None = None,
    batched: bool | None = None,
) -> JacobianNorms:
    """Compute the dual norms of rows of the Jacobian of logits in pixels.

    Each row takes one pass backward, which is differentiated again where gradients are enabled.

    Args:
        forward: Maps (N, channels, height, width) to logits (N, classes), each image on its own: in
            eval mode, as batch statistics would let an image's logits depend on the others.
        images: (N, channels, height, width), N at least 1, floats.
        norm: Of the perturbation: `linf` has q = 1, `l2` has q = 2.
        rows: (N, rows), int64: classes whose rows are taken for each image; None takes all.
        batched: Run all passes backward as one, by vmap; None does on a GPU. On a CPU it took 1.5
            times as long as one after the other (10 rows, 16 images, `rnas-cl-s7`).

    Returns:
        Logits and norms.

    References:
        Hosseini, Yang, Xie, "DSRNA: Differentiable Search of Robust Neural Architectures", CVPR
        2021 (arXiv 2012.06122).
    """
    wanted = torch.is_grad_enabled()
    with torch.enable_grad(), _TwiceDifferentiable():
        point = images.detach().requires_grad_()
        logits = forward(point)
        if rows is None:
            rows = torch.arange(logits.shape[1], device=logits.device).expand(len(images), -1)
        # Images do not meet in the forward pass: the sum's gradient holds that of each.
        asked = logits.gather(1, rows).sum(0)  # (N, classes) -> (rows,)
        if images.is_cuda if batched is None else batched:
            each_once = torch.eye(len(asked), dtype=asked.dtype, device=asked.device)
            (gradients,) = torch.autograd.grad(
                asked, point, each_once, create_graph=wanted, is_grads_batched=True
            )
        else:
            gradients = torch.stack(
                [
                    torch.autograd.grad(one, point, create_graph=wanted, retain_graph=True)[0]
                    for one in asked
                ]
            )
        flat = gradients.flatten(2)  # (rows, N, pixels)
        norms = flat.abs().sum(2) if norm == "linf" else torch.linalg.vector_norm(flat, dim=2)
    return JacobianNorms(logits if wanted else logits.detach(), norms.T)


def jacobian_bound(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    norm: Norm = "linf",
    rows: Tensor | None = None,
) -> Tensor:
    """Compute R_Jac = -E_x (1/K) sum_k ||grad_x f_k(x)||_q / s, s being the scale of the logits.

    Args:
        forward: As of `jacobian_norms`.
        images: As of `jacobian_norms`.
        norm: As of `jacobian_norms`.
        rows: As of `jacobian_norms`; with rows that are drawn evenly, the mean is unbiased but for
            the scale, which does not depend on them.

    Returns:
        A scalar of at most 0, per pixel unit; the higher, the more robust. It is the same for
        `forward` times any positive factor.

    References:
        Hosseini et al., DSRNA. We depart in the division by `logit_scale`: a search that maximizes
        the plain bound shrinks logits, which moves no decision of the network.
    """
    logits, norms = jacobian_norms(forward, images, norm=norm, rows=rows)
    return -norms.mean() / logit_scale(logits)


def logit_scale(logits: Tensor) -> Tensor:
    """Return the root mean square of the logits around each image's own mean, a scalar.

    It scales as the logits do and does not see what all logits of an image have in common, as no
    prediction does. The graph is kept.

    Args:
        logits: (N, classes)
    """
    return scale_of_square(centered_squares(logits).mean())


def centered_squares(logits: Tensor) -> Tensor:
    """Return each image's mean square of logits around their mean, (N, classes) -> (N,)."""
    return (logits - logits.mean(1, keepdim=True)).square().mean(1)


def scale_of_square(square: Tensor) -> Tensor:
    """Return the root of a mean square; where all logits are alike it has no gradient."""
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()


def even_rows(count: int, classes: int, rows: int, generator: torch.Generator) -> Tensor:
    """Draw rows of the Jacobian for each image, evenly and without repetition.

    Args:
        count: Images.
        classes: Rows that there are.
        rows: How many to draw, at most `classes`.
        generator: Source of the draw, on the CPU.

    Returns:
        (count, rows), int64
    """
    noise = torch.rand(count, classes, generator=generator, dtype=torch.float64)
    return noise.argsort(dim=1)[:, :rows]


@final
class _TwiceDifferentiable(TorchFunctionMode):
    """Writes out what torch can differentiate only once: hard-sigmoid."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is functional.hardsigmoid:
            features = args[0] if args else kwargs["input"]
            return (features / 6.0 + 0.5).clamp(0.0, 1.0)
        return function(*args, **(kwargs or {}))
