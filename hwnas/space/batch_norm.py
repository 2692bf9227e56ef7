"""Batch normalization over the whole batch, however many processes share it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

M = TypeVar("M", bound=nn.Module)


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization over the batches of all processes of a training together.

    torch has such a layer for GPUs alone; this one runs on whatever the process group does, gloo on
    a CPU included. One all-reduce brings the statistics of all parts together; gradients take the
    same way back.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalize (batch, channels, height, width); the batch may be of any size, 0 included."""
        return batch_norm(self, features)


def synchronized(module: M) -> M:
    """Make every batch normalization of a module a synchronized one, in place.

    Parameters, buffers and their names stay as they are.
    """
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SynchronizedBatchNorm2d
    return module


def batch_norm(
    norm: nn.BatchNorm2d,
    features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    openness: Tensor | None = None,
) -> Tensor:
    """Apply a batch normalization, with another scale and shift than its own where given.

    A supernet folds its masks into them.

    Args:
        norm: The layer; in training mode its running statistics are updated.
        features: (batch, channels, height, width).
        weight: (channels,); None takes the layer's.
        bias: (channels,); None takes the layer's.
        openness: How much this batch counts for the running statistics of a channel, (channels,) in
            [0, 1]: a channel that the sampled network does not have must not move its own. None
            counts all in full.
    """
    weight = norm.weight if weight is None else weight
    bias = norm.bias if bias is None else bias
    if norm.training and isinstance(norm, SynchronizedBatchNorm2d):
        return _synchronized_batch_norm(norm, features, weight, bias, openness)
    assert norm.running_mean is not None
    assert norm.momentum is not None  # its other meaning, a cumulative average, is used nowhere
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if norm.training and openness is not None:
        # With a momentum of 1 these become the statistics of the batch.
        mean, variance = torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_mean)
        normalized = functional.batch_norm(
            features, mean, variance, weight, bias, training=True, momentum=1.0, eps=norm.eps
        )
        _update(norm, mean, variance, openness)
        return normalized
    return functional.batch_norm(
        features,
        norm.running_mean,
        norm.running_var,
        weight,
        bias,
        training=norm.training,
        momentum=norm.momentum,
        eps=norm.eps,
    )


@torch.no_grad()
def _update(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, openness: Tensor | None) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    share = norm.momentum if openness is None else norm.momentum * openness
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)


def _synchronized_batch_norm(
    norm: nn.BatchNorm2d,
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    openness: Tensor | None,
) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    wide = features if features.dtype == torch.float64 else features.float()
    # Each process's own mean and squared deviations merge without cancellation (Chan et al., 1979);
    # sums of squares would not.
    own = max(1, wide.numel() // wide.shape[1])
    own_mean = wide.sum((0, 2, 3)) / own  # (C,)
    own_squares = (wide - own_mean[:, None, None]).square().sum((0, 2, 3))
    own_count = wide.new_full((1,), wide.numel() / wide.shape[1])
    parts = _of_all_processes(torch.cat([own_mean, own_squares, own_count]))  # (processes, 2 C + 1)
    channels = wide.shape[1]
    means, squares, counts = parts[:, :channels], parts[:, channels:-1], parts[:, -1:]
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    variance = (squares + counts * (means - mean).square()).sum(0) / count
    norm.num_batches_tracked.add_(1)
    _update(norm, mean, variance * count / (count - 1).clamp(min=1.0), openness)
    scale = torch.rsqrt(variance + norm.eps)
    if weight is not None:
        scale = weight * scale
    normalized: Tensor = (wide - mean[:, None, None]) * scale[:, None, None]
    if bias is not None:
        normalized = normalized + bias[:, None, None]
    return normalized.to(features.dtype)


def _of_all_processes(own: Tensor) -> Tensor:
    """Gather (n,) of every process into (processes, n)."""
    if not torch.distributed.is_initialized():
        return own[None]
    rows = own.new_zeros(torch.distributed.get_world_size(), len(own))
    rank = torch.distributed.get_rank()
    mine = torch.cat([rows[:rank], own[None], rows[rank + 1 :]])
    gathered: Tensor = _AllReduce.apply(mine)  # type: ignore[no-untyped-call]
    return gathered


class _AllReduce(torch.autograd.Function):
    """The sum over processes; so is the gradient, as each process's part enters every loss."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        summed = tensor.clone()
        torch.distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        torch.distributed.all_reduce(summed)
        return summed
