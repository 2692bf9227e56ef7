"""Where a layer's activations are: the map that cross-layer distillation compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


def channel_energy(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum the squared activations of a layer over its channels.

    Args:
        features: (batch, channels, height, width); any float type.
        mask: What each channel is multiplied by first, (channels,).

    Returns:
        (batch, height, width), in float32 (float64 of float64).
    """
    return observed(features, mask)[1]


def observed(features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return a layer's features, to go on with, and their `channel_energy`.

    To go on with the returned features saves a pass over them in backward: their gradient and the
    energy's come together here, and are made one at once.

    Args:
        features: As of `channel_energy`.
        mask: As of `channel_energy`; the features are returned without it.

    Returns:
        (batch, channels, height, width) and (batch, height, width)
    """
    both: tuple[Tensor, Tensor] = _Observed.apply(features, mask)  # type: ignore[no-untyped-call]
    return both


class _Observed(torch.autograd.Function):
    """Keeps no more for backward than the features, which the next layer keeps anyway.

    All is computed over (batch * height * width, channels), which is a view of features that are
    channels last; plain formulas would make several tensors of their size, and some of those in the
    other layout, at several times the cost.
    """

    @staticmethod
    def forward(context: Any, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        context.set_materialize_grads(False)
        context.save_for_backward(features, mask)
        dtype = torch.promote_types(features.dtype, torch.float32)
        rows = _rows(features)
        if mask is not None:
            rows = rows * mask.to(dtype)
        # Sums are wide either way; for a wider result, a CPU would first copy all rows wider.
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=dtype if rows.is_cuda else None)
        energy = norms.to(dtype).square()
        batch, _, height, width = features.shape
        return features.view_as(features), energy.view(batch, height, width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        context: Any, passed: Tensor | None, energy: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if energy is None:
            return passed, None
        features, mask = context.saved_tensors
        rows = _rows(features)
        doubled = 2.0 * energy.reshape(-1, 1)  # (B, H, W) -> (B * H * W, 1)
        gradient = mask_gradient = None
        if context.needs_input_grad[0]:
            factors = doubled.to(rows.dtype)
            if mask is not None:
                factors = factors * mask.square().to(rows.dtype)
            own = rows * factors if passed is None else torch.addcmul(_rows(passed), rows, factors)
            batch, channels, height, width = features.shape
            gradient = own.view(batch, height, width, channels).permute(0, 3, 1, 2)
        if mask is not None and context.needs_input_grad[1]:
            wide = rows.to(doubled.dtype)
            mask_gradient = (wide.square() * doubled).sum(0).mul_(mask).to(mask.dtype)
        return gradient, mask_gradient


def _rows(features: Tensor) -> Tensor:
    """Map (B, C, H, W) to (B * H * W, C)."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)
