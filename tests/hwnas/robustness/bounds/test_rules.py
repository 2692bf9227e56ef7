"""Each rule against the function it stands for: what it bounds holds, by intervals and backward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from hwnas.core.errors import UnboundedOperationError
from hwnas.robustness.bounds import margin_lower_bounds
from hwnas.robustness.bounds.backward import lower_bounds
from hwnas.robustness.bounds.bounded import Bounded, Recording
from hwnas.robustness.bounds.interval import Interval
from hwnas.robustness.bounds.tensor import BoundedTensor
from hwnas.robustness.threat import Eps

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

BATCH, CHANNELS, SIZE = 2, 4, 6
_RANDOM = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_RANDOM, dtype=torch.float64)


GATES, PLANE, EACH = normal(CHANNELS, 1, 1), normal(SIZE, SIZE), normal(BATCH, CHANNELS, 1, 1)
MASK = normal(BATCH, CHANNELS, SIZE, SIZE) > 0
DENSE, WIDE = normal(3, CHANNELS, 3, 3), normal(5, CHANNELS, 5, 5)
DEPTHWISE, GROUPED = normal(CHANNELS, 1, 3, 3), normal(6, 2, 3, 3)
MATRIX, BIAS = normal(3, SIZE), normal(3)
MEAN, VARIANCE = normal(CHANNELS), normal(CHANNELS).abs() + 0.1
SCALE, SHIFT = normal(CHANNELS), normal(CHANNELS)


def depthwise(x: Any, stride: int = 1) -> Any:
    return functional.conv2d(x, DEPTHWISE, stride=stride, padding=1, groups=CHANNELS)


def in_place(x: Any) -> Any:
    y = x * 2.0
    z = functional.relu_(y)
    y += x
    return y + z  # one tensor, changed twice


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "add": lambda x: x + GATES,
    "add of a plane": lambda x: PLANE + x,
    "add with alpha": lambda x: torch.add(x, x.relu(), alpha=-0.5),
    "add itself": lambda x: x + x,
    "subtract": lambda x: x - EACH,
    "subtract from": lambda x: 1.0 - x,
    "subtract a tensor from": lambda x: GATES - x,
    "subtract itself": lambda x: x - x,
    "negate": lambda x: -x,
    "multiply": lambda x: x * GATES,
    "multiply by each image's own": lambda x: EACH * x,
    "divide": lambda x: x / (GATES.abs() + 0.1),
    "divide by a negative": lambda x: x / -3,
    "multiply itself": lambda x: x * x,
    "multiply two": lambda x: x.relu() * (x - 0.5),
    "multiply by excitation": lambda x: x * torch.sigmoid(x.mean(dim=(2, 3), keepdim=True)),
    "multiply by one of all": lambda x: x * x.mean(dim=(1, 2, 3), keepdim=True),
    "addcmul": lambda x: torch.addcmul(x, x.relu(), GATES, value=-2.0),
    "addcmul to a constant": lambda x: torch.addcmul(GATES, x, PLANE),
    "where": lambda x: torch.where(MASK, x, -2.0 * x),
    "where or a constant": lambda x: torch.where(MASK, PLANE, x),
    "convolution": lambda x: functional.conv2d(x, DENSE, BIAS, padding=1),
    "strided convolution": lambda x: functional.conv2d(x, DENSE, stride=2, padding=1),
    "convolution of unequal sides": lambda x: functional.conv2d(
        x, DENSE, stride=(2, 1), padding=(0, 2), dilation=(2, 1)
    ),
    "convolution with a rest": lambda x: functional.conv2d(x, WIDE, stride=3, padding=1),
    "convolution of the same size": lambda x: functional.conv2d(x, DENSE, padding="same"),
    "depthwise convolution": depthwise,
    "strided depthwise convolution": lambda x: depthwise(x, stride=2),
    "grouped convolution": lambda x: functional.conv2d(x, GROUPED, groups=2, dilation=2),
    "linear": lambda x: functional.linear(x, MATRIX, BIAS),
    "matmul": lambda x: x @ MATRIX.T,
    "matmul from the left": lambda x: MATRIX @ x,
    "batch norm": lambda x: functional.batch_norm(x, MEAN, VARIANCE, SCALE, SHIFT),
    "plain batch norm": lambda x: functional.batch_norm(x, MEAN, VARIANCE),
    "sum": lambda x: x.sum(dim=1),
    "mean": lambda x: x.mean(dim=(2, 3)),
    "mean of each image": lambda x: x.mean(dim=(1, 2, 3)) - 1.0,
    "mean with dimensions kept": lambda x: torch.mean(x, (1, 3), keepdim=True),
    "average pooling": lambda x: functional.avg_pool2d(x, 3, 2, 1),
    "average pooling without the border": lambda x: functional.avg_pool2d(
        x, 3, 1, 1, count_include_pad=False
    ),
    "adaptive average pooling": lambda x: functional.adaptive_avg_pool2d(x, (2, 4)),
    "max pooling": lambda x: functional.max_pool2d(x, 3, 2, 1),
    "max pooling in steps of one": lambda x: functional.max_pool2d(x, 2, 1),
    "interpolation": lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "padding": lambda x: functional.pad(x, (1, 0, 0, 2, 0, 3)),
    "padding with a value": lambda x: functional.pad(x, (1, 1), value=-2.0),
    "reflection": lambda x: functional.pad(x, (1, 1, 2, 2), mode="reflect"),
    "cat": lambda x: torch.cat([x, x.relu(), GATES.expand(BATCH, -1, SIZE, SIZE)], dim=1),
    "stack": lambda x: torch.stack([x, -x], dim=1),
    "slices": lambda x: x[:, 1:3, ::2, None, 1:],
    "last columns": lambda x: x[..., -2:],
    "permute": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "transpose": lambda x: x.transpose(1, 3),
    "chunk": lambda x: x.chunk(2, dim=1)[1],
    "split": lambda x: torch.split(x, [1, 3], 1)[1],
    "narrow": lambda x: x.narrow(2, 1, 3),
    "shuffled channels": lambda x: x.view(BATCH, 2, 2, SIZE, SIZE).transpose(1, 2).reshape(x.shape),
    "channel shuffle": lambda x: functional.channel_shuffle(x, 2),
    "pixel shuffle": lambda x: functional.pixel_shuffle(x, 2),
    "flatten": lambda x: x.flatten(1),
    "view by size": lambda x: x.view(x.size(0), -1),
    "expand": lambda x: x.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1),
    "expand as": lambda x: x.mean(dim=(2, 3), keepdim=True).expand_as(x),
    "squeeze": lambda x: x.mean(dim=1, keepdim=True).squeeze(1).unsqueeze(3),
    "clone": lambda x: x.clone().detach().to(x.dtype),
    "dropout in eval mode": lambda x: functional.dropout(x, training=False),
    "relu": torch.relu,
    "relu6": functional.relu6,
    "leaky relu": functional.leaky_relu,
    "abs": abs,
    "hardtanh": functional.hardtanh,
    "clamp": lambda x: x.clamp(-0.3, 0.4),
    "clamp above": lambda x: torch.clamp_max(x, 0.2),
    "clamp below": lambda x: x.clamp(min=-0.2),
    "hardswish": lambda x: functional.hardswish(3 * x),
    "hardsigmoid": lambda x: functional.hardsigmoid(4 * x),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "in place": in_place,
    "zeros of its shape": lambda x: x + torch.zeros_like(x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**16), radius=st.sampled_from([0.0, 1e-4, 0.1, 1.0]))
def test_rules_hold_every_point(name: str, seed: int, radius: float) -> None:
    function = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (BATCH, CHANNELS, SIZE, SIZE)
    center, widths = draw(*shape), radius * draw(*shape).abs()
    image = Bounded(Interval.from_center(center, widths), Recording(batch=BATCH))
    output = function(BoundedTensor(image))
    noise = torch.cat([draw(8, *shape).sign(), draw(8, *shape).clamp(-1, 1)])
    values = torch.stack([function(center + each * widths) for each in noise])
    interval = output.bounded.interval
    assert output.shape == values.shape[1:]
    assert (values >= interval.lower - 1e-9).all()
    assert (values <= interval.upper + 1e-9).all()
    coefficients = draw(3, *output.shape)
    bounds = lower_bounds(output.bounded, coefficients)
    products = values[:, None] * coefficients
    found = products.flatten(2).view(*products.shape[:3], -1).sum(3)  # (points, functions, batch)
    assert (found >= bounds - 1e-9).all()
    if radius == 0:
        torch.testing.assert_close(bounds, found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["subtract itself", "add itself", "in place"])
def test_what_cancels_is_not_counted_twice(name: str) -> None:
    shape = (BATCH, CHANNELS, SIZE, SIZE)
    center = normal(*shape) + 5.0  # every ReLU is open, so that all is linear
    image = Bounded(Interval.from_center(center, torch.ones_like(center)), Recording(batch=BATCH))
    output = FUNCTIONS[name](BoundedTensor(image))
    coefficients = torch.ones(1, *shape, dtype=torch.float64)
    slope = {"subtract itself": 0.0, "add itself": 2.0, "in place": 6.0}[name]
    expected = slope * (center - 1).flatten(1).sum(1)
    torch.testing.assert_close(lower_bounds(output.bounded, coefficients)[0], expected)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return torch.ops.aten.mul.Tensor(value, 2.0)  # type: ignore[no-any-return]


def bounds_of(forward: Callable[[Any], Any], images: Tensor) -> Tensor:
    labels = torch.zeros(len(images), dtype=torch.long)
    return margin_lower_bounds(forward, images, labels, eps=Eps(0.1))


def _doubled(x: Any) -> Any:
    return _Doubled.apply(x)  # type: ignore[no-untyped-call]


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no rule": (lambda x: torch.softmax(x, 1), "softmax"),
    "group norm": (lambda x: nn.GroupNorm(2, CHANNELS)(x), "group_norm"),
    "statistics of the batch": (nn.BatchNorm2d(CHANNELS), "eval mode"),
    "no statistics": (nn.BatchNorm2d(CHANNELS, track_running_stats=False).eval(), "eval mode"),
    "dropout": (nn.Dropout(), "random"),
    "a condition": (lambda x: x if x.sum() > 0 else -x, "sum"),
    "a comparison": (lambda x: x * (x > 0), "gt"),
    "a value": (lambda x: x * x.amax(), "amax"),
    "division": (lambda x: 1.0 / (x + 2.0), "division by a bounded"),
    "bounded weights": (lambda x: functional.conv2d(x, x), "weights"),
    "bounded matrices": (lambda x: x @ x.transpose(2, 3), "two bounded matrices"),
    "sum over images": (lambda x: x - x.mean(dim=0, keepdim=True), "sums over the images"),
    "sum of all": (lambda x: x / x.sum(), "sums over the images"),
    "picked images": (lambda x: x[:1], "images"),
    "reversed images": (lambda x: x[[1, 0]], "images"),
    "folded batch": (lambda x: x.flatten(0, 1), "mixes"),
    "swapped batch": (lambda x: x.transpose(0, 1), "batch"),
    "permuted batch": (lambda x: x.permute(1, 0, 2, 3), "batch"),
    "joined batch": (lambda x: torch.cat([x, x]), "images"),
    "mixed by broadcasting": (lambda x: x.mean(dim=(1, 2, 3)) * x, "broadcasting"),
    "mixed by a matrix": (lambda x: torch.eye(2) @ x.flatten(1).float(), "float"),
    "unbatched convolution": (
        lambda x: functional.conv2d(x.mean(dim=1), normal(BATCH, BATCH, 1, 1)),
        "takes the batch for",
    ),
    "a vector and a matrix": (lambda x: x.mean(dim=(1, 2, 3)) @ normal(BATCH, BATCH), "the batch"),
    "a linear layer of a vector": (
        lambda x: functional.linear(x.mean(dim=(1, 2, 3)), normal(BATCH, BATCH)),
        "takes the batch for",
    ),
    "shuffled rows": (lambda x: functional.channel_shuffle(x.mean(dim=1), 2), "the batch"),
    "the last of a vector": (lambda x: x.mean(dim=(1, 2, 3))[..., [1, 0]], "images"),
    "indices apart": (lambda x: x[:, [0, 1], :, [0, 1]].flatten(1), "move the batch"),
    "a mask of images": (
        lambda x: x[
            ...,
            torch.eye(BATCH * CHANNELS * SIZE * SIZE)[0].bool().view(BATCH, CHANNELS, SIZE, SIZE),
        ],
        "picks images",
    ),
    "data": (lambda x: x.data, "`data`"),
    "rounded": (lambda x: x.half(), "rounds"),
    "written into a view": (lambda x: (x + 1).flatten(1).add_(1.0), "views"),
    "written into a constant": (lambda x: torch.zeros(1).add_(x), "constants"),
    "written into a slice": (lambda x: x.__setitem__(0, 1.0), "__setitem__"),
    "another argument": (lambda x: torch.sum(x, 1, out=torch.zeros(1)), "arguments"),
    "numbers": (lambda x: x.tolist(), "tolist"),
    "below python": (lambda x: torch.ops.aten.relu(x), "relu"),
    "autograd function": (_doubled, "mul"),
    "crossed limits": (lambda x: x.clamp(1.0, 0.0), "crossed"),
    "indices of a maximum": (
        lambda x: functional.max_pool2d(x, 2, return_indices=True)[0],
        "max_pool2d_with_indices",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_sound_bound_is_refused_by_name(name: str) -> None:
    function, said = REFUSED[name]
    image = torch.rand(BATCH, CHANNELS, SIZE, SIZE, dtype=torch.float64)
    with pytest.raises(UnboundedOperationError, match=said) as caught:
        bounds_of(function, image)
    assert caught.value.hint


def test_an_error_says_where() -> None:
    class Strange(nn.Module):
        def forward(self, features: Any) -> Any:
            return features.cumsum(1)

    network = nn.Sequential(nn.ReLU(), Strange())
    with pytest.raises(UnboundedOperationError, match=r"`cumsum`.*in Strange, test_rules.py:\d+"):
        bounds_of(network, torch.rand(1, 1, 2, 2))
