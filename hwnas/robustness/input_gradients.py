"""Whether a model has gradients for its input at all, and whether it takes some of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hwnas.robustness.evaluate import device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn


def cross_entropy_of_prediction(logits: Tensor) -> Tensor:
    """Return the cross-entropy of each row's own prediction: (N, classes) -> (N,)."""
    return functional.cross_entropy(logits, logits.argmax(1), reduction="none")


def margin_of_prediction(logits: Tensor) -> Tensor:
    """Return each row's top logit less its second: (N, classes) -> (N,)."""
    top = logits.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def zero_gradient_share(
    module: nn.Module,
    images: NDArray[np.float32],
    loss: Callable[[Tensor], Tensor],
    *,
    batch: int,
) -> float:
    """Return the share of images for which a loss has no gradient at all.

    Args:
        module: Maps images to logits; in eval mode.
        images: float32, (N, channels, height, width).
        loss: Maps logits (N, classes) to one loss per image (N,).
        batch: Images per call.
    """
    device, zeros = device_of(module), 0
    for start in range(0, len(images), batch):
        pixels = torch.from_numpy(images[start : start + batch]).to(device).requires_grad_()
        with torch.enable_grad():
            value = loss(module(pixels).float()).sum()
            gradient = None
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value, pixels, allow_unused=True)
        if gradient is None:
            zeros += len(pixels)
        else:
            zeros += int((gradient.flatten(1).abs().amax(1) == 0).sum())
    return zeros / len(images)


def computes_gradients(module: nn.Module, images: NDArray[np.float32]) -> bool:
    """Say whether a module computes gradients when it is called, by whatever name it asks for them.

    Args:
        module: Maps images to logits; in eval mode.
        images: float32, (N, channels, height, width): a few.
    """
    with _GradientCalls() as calls, torch.enable_grad():
        module(torch.from_numpy(images).to(device_of(module)))
        seen: bool = calls.seen
    return seen


class _GradientCalls(TorchFunctionMode):
    """Notes calls that compute gradients, and lets them pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.seen |= func in (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward)
        return func(*args, **(kwargs or {}))
