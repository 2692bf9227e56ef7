"""Rules for layers with weights and for pooling: ONNX node -> PyTorch operation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas_export.torch_from_onnx_node import Node, Operation

_CONVOLUTIONS: dict[int, Any] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}


def conv(node: Node) -> Operation:
    """Convolution of any group, stride and dilation, in one to three dimensions."""
    group = node.take("group", 1)
    strides, dilations = node.take("strides"), node.take("dilations")
    pads, auto_pad = node.take("pads"), node.take("auto_pad", "NOTSET")
    node.take("kernel_shape")  # the weight's own

    def run(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = images.ndim - 2
        steps, spread = strides or [1] * rank, dilations or [1] * rank
        begins, ends = _pads(images, weight.shape[2:], steps, spread, pads, auto_pad)
        padding: list[int] = begins
        if begins != ends:
            images, padding = _padded(images, begins, ends, 0.0), [0] * rank
        convolved: Tensor = _CONVOLUTIONS[rank](
            images, weight, bias, stride=steps, padding=padding, dilation=spread, groups=group
        )
        return convolved

    return run


def gemm(node: Node) -> Operation:
    """Matrix product plus a bias, each scaled."""
    alpha, beta = node.take("alpha", 1.0), node.take("beta", 1.0)
    flip_a, flip_b = node.take("transA", 0), node.take("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = (a.T if flip_a else a), (b.T if flip_b else b)
        product = a @ b if alpha == 1.0 else alpha * (a @ b)
        if c is None:
            return product
        return product + (c if beta == 1.0 else beta * c)

    return run


def batch_normalization(node: Node) -> Operation:
    """Batch normalization by the statistics in the file."""
    epsilon = node.take("epsilon", 1e-5)
    node.expect("training_mode", 0)
    node.take("momentum")
    _one_output(node)

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)

    return run


def layer_normalization(node: Node) -> Operation:
    """Normalization of each sample over its last axes."""
    axis, epsilon = node.take("axis", -1), node.take("epsilon", 1e-5)
    node.expect("stash_type", 1)
    _one_output(node)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)

    return run


def instance_normalization(node: Node) -> Operation:
    """Normalization of each channel of each sample."""
    epsilon = node.take("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)

    return run


def local_response(node: Node) -> Operation:
    """Local response normalization across channels."""
    alpha, beta = node.take("alpha", 1e-4), node.take("beta", 0.75)
    bias, size = node.take("bias", 1.0), node.take("size")
    return lambda x: functional.local_response_norm(x, size, alpha, beta, bias)


def global_average_pool(_: Node) -> Operation:
    """Mean over all places."""
    return lambda x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def global_max_pool(_: Node) -> Operation:
    """Maximum over all places."""
    return lambda x: x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


def max_pool(node: Node) -> Operation:
    """Maximum of each window; places outside the image never win."""
    window = _Window(node)
    node.expect("storage_order", 0, 1)  # of the indices, which are not computed
    _one_output(node)

    def run(x: Tensor) -> Tensor:
        begins, ends, beyond = window.pads(x)
        filled = _padded(x, begins, [a + b for a, b in zip(ends, beyond, strict=True)], -math.inf)
        return functional.max_pool2d(
            filled, window.kernel, window.strides, dilation=window.dilations
        )

    return run


def average_pool(node: Node) -> Operation:
    """Mean of each window, with or without the padding that lies in it."""
    window = _Window(node)
    counts_pads = bool(node.take("count_include_pad", 0))
    size = math.prod(window.kernel)

    def sums(x: Tensor) -> Tensor:
        if window.dilations == [1, 1]:
            return functional.avg_pool2d(x, window.kernel, window.strides, divisor_override=1)
        ones = x.new_ones(x.shape[1], 1, *window.kernel)
        return functional.conv2d(
            x, ones, stride=window.strides, dilation=window.dilations, groups=x.shape[1]
        )

    def run(x: Tensor) -> Tensor:
        begins, ends, beyond = window.pads(x)
        total = sums(_padded(_padded(x, begins, ends, 0.0), [0, 0], beyond, 0.0))
        if not any(beyond) and (counts_pads or not any(begins + ends)):
            return total / size
        # What a window holds of the image, and of its padding where that counts; never of what the
        # last window of `ceil_mode` reaches beyond both.
        held = _padded(x.new_ones(1, 1, *x.shape[2:]), begins, ends, float(counts_pads))
        return total / sums(_padded(held, [0, 0], beyond, 0.0))

    return run


class _Window:
    """What pooling nodes say of their windows."""

    def __init__(self, node: Node) -> None:
        self.kernel: list[int] = list(node.take("kernel_shape"))
        if len(self.kernel) != 2:
            raise node.error(f"pooling has a rule in two dimensions, not in {len(self.kernel)}")
        self.strides: list[int] = list(node.take("strides", [1, 1]))
        self.dilations: list[int] = list(node.take("dilations", [1, 1]))
        self._pads: list[int] | None = node.take("pads")
        self._auto_pad: str = node.take("auto_pad", "NOTSET")
        self._ceil: bool = bool(node.take("ceil_mode", 0))

    def pads(self, x: Tensor) -> tuple[list[int], list[int], list[int]]:
        """Return the padding before and behind each axis, and what `ceil_mode` reaches beyond."""
        begins, ends = _pads(
            x, self.kernel, self.strides, self.dilations, self._pads, self._auto_pad
        )
        beyond = [0, 0]
        if self._ceil and self._auto_pad == "NOTSET":
            for axis in range(2):
                reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
                size, stride = x.shape[2 + axis] + begins[axis] + ends[axis], self.strides[axis]
                windows = math.ceil((size - reach) / stride) + 1
                # A window that would begin behind the image is left out.
                if (windows - 1) * stride >= x.shape[2 + axis] + begins[axis]:
                    windows -= 1
                beyond[axis] = max(0, (windows - 1) * stride + reach - size)
        return begins, ends, beyond


def _pads(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> tuple[list[int], list[int]]:
    """Return the padding before and behind each spatial axis."""
    rank = x.ndim - 2
    if auto_pad == "NOTSET":
        pads = list(pads or [0] * (2 * rank))
        return list(pads[:rank]), list(pads[rank:])
    begins, ends = [0] * rank, [0] * rank
    if auto_pad == "VALID":
        return begins, ends
    for axis in range(rank):
        reach, size = dilations[axis] * (kernel[axis] - 1) + 1, x.shape[2 + axis]
        steps = math.ceil(size / strides[axis])
        total = max(0, (steps - 1) * strides[axis] + reach - size)
        small, large = total // 2, total - total // 2
        upper = auto_pad == "SAME_UPPER"
        begins[axis], ends[axis] = (small, large) if upper else (large, small)
    return begins, ends


def _padded(x: Tensor, begins: Sequence[int], ends: Sequence[int], value: float) -> Tensor:
    if not any((*begins, *ends)):
        return x
    # torch lists the last axis first.
    pairs = [each for pair in zip(reversed(begins), reversed(ends), strict=True) for each in pair]
    return functional.pad(x, pairs, value=value)


def _one_output(node: Node) -> None:
    if sum(map(bool, node.outputs)) > 1:
        raise node.error("there is a rule for its first output alone")
