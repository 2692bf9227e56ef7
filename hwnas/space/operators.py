"""The operators that all chain spaces are made of: their modules and their costs."""

from __future__ import annotations

import functools
from typing import TypeVar

import torch
from torch import nn

from hwnas.core.errors import ConfigError
from hwnas.space.blocks import FeatureHead, Head, InvertedResidual, Stem, squeeze_width
from hwnas.space.cells.operations import (
    CELL_KINDS,
    LINEAR,
    CellStem,
    cell_module,
    macs_of_cell_operator,
)
from hwnas.space.mbconv.resize import Resize
from hwnas_profilers.workload import Operator, OperatorKey

M = TypeVar("M", bound=nn.Module)

# Variants of blocks: all activations are h-swish.
HSWISH = "hswish"
HSWISH_SE = "hswish-se"

RESIZE = "resize"
"""Kind of what a skipped block runs where its width is not that of the block before."""


def head_variant(features: int) -> str:
    """Name the head whose classifier sees so many features of its own; a plain one has no name.

    >>> head_variant(1984)
    'hswish-1984'
    """
    return f"{HSWISH}-{features}" if features else ""


def operator_of(key: OperatorKey) -> Operator:
    """Return the operator of a key, as something to be measured."""
    return Operator(
        key=key,
        name=str(key),
        build=functools.partial(module_of_operator, key),
        input_shape=(key.batch, *key.in_shape),
    )


def module_of_operator(key: OperatorKey) -> nn.Module:
    """Build the module that a key names, in eval mode and in fp32, `as_trained`.

    The key's precision is not the module's: a runtime compiles fp32 weights to it.

    Raises:
        ConfigError: No operator of our spaces is of that kind or variant.
    """
    return as_trained(_built(key)).eval()


def _built(key: OperatorKey) -> nn.Module:
    module: nn.Module
    if key.kind == "stem" and key.variant == LINEAR:
        module = CellStem(key.in_shape[0], key.out_shape[0])
    elif key.kind == "stem":
        module = Stem(key.in_shape[0], key.out_shape[0], stride=key.stride)
    elif key.kind == "mbconv":
        if key.variant not in (HSWISH, HSWISH_SE):
            raise ConfigError(
                f"no operator of kind `mbconv` and variant `{key.variant}`",
                hint=f"known variants: {HSWISH}, {HSWISH_SE}",
            )
        module = InvertedResidual(
            key.in_shape[0],
            key.out_shape[0],
            hidden=key.hidden,
            kernel=key.kernel,
            stride=key.stride,
            se=key.variant == HSWISH_SE,
        )
    elif key.kind == "head":
        features = _features_of_head(key)
        module = (
            FeatureHead(key.in_shape[0], key.out_shape[0], hidden=key.hidden, features=features)
            if features
            else Head(key.in_shape[0], key.out_shape[0])
        )
    elif key.kind == RESIZE:
        module = Resize(key.out_shape[0])
    elif key.kind in CELL_KINDS:
        module = cell_module(key)
    else:
        known = ", ".join(("stem", "mbconv", RESIZE, "head", *CELL_KINDS))
        raise ConfigError(f"no operator of kind `{key.kind}`", hint=f"known: {known}")
    return module


def _features_of_head(key: OperatorKey) -> int:
    """Read the way back from `head_variant`."""
    if not key.variant:
        return 0
    activation, _, features = key.variant.partition("-")
    if activation != HSWISH or not features.isdecimal() or key.hidden < 1:
        raise ConfigError(
            f"no operator of kind `head`, variant `{key.variant}` and {key.hidden} hidden channels",
            hint=f"known: no variant, or `{head_variant(1984)}` for 1984 features of any number "
            "of hidden channels",
        )
    return int(features)


def as_trained(module: M) -> M:
    """Move batch normalization off its initial state, in place, as training does.

    An untrained one folds to a bias of zero, which the exporter drops; a trained network has its
    biases, in memory and in time, so what is measured in its place must have them too.

    Returns:
        The module.
    """
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0.0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
    return module


def macs_of_operator(key: OperatorKey) -> int:
    """Count an operator's multiply-accumulates per image: convolutions and the classifier.

    Averages, activations and the products of squeeze-and-excitation are not counted.
    """
    inputs, height_in, width_in = key.in_shape
    outputs, height_out, width_out = key.out_shape
    pixels_in, pixels_out = height_in * width_in, height_out * width_out
    if key.kind == RESIZE:
        return 0
    if key.kind in CELL_KINDS:
        return macs_of_cell_operator(key)
    if key.kind == "head":
        features = _features_of_head(key)
        if not features:
            return inputs * outputs
        # Only the expansion comes before the average.
        return inputs * key.hidden * pixels_in + (key.hidden + outputs) * features
    if key.kind == "stem":
        return inputs * outputs * key.kernel**2 * pixels_out
    inner = key.hidden or inputs
    expand = inputs * key.hidden * pixels_in
    depthwise = inner * key.kernel**2 * pixels_out
    project = inner * outputs * pixels_out
    # Its two 1x1 convolutions see one pixel: the mean.
    excite = 2 * inner * squeeze_width(inner) if key.variant == HSWISH_SE else 0
    return expand + depthwise + excite + project


@functools.cache
def weights_of_operator(key: OperatorKey) -> int:
    """Count an operator's weights, with batch normalization folded into the convolutions."""
    with torch.device("meta"):
        return folded_weights(_built(key))


def folded_weights(module: nn.Module) -> int:
    """Count a module's weights, with batch normalization folded into the convolutions."""
    parts = list(module.modules())
    weights = sum(
        parameter.numel()
        for part in parts
        if not isinstance(part, nn.BatchNorm2d)
        for parameter in part.parameters(recurse=False)
    )
    # Folded, each leaves a bias behind.
    return weights + sum(part.num_features for part in parts if isinstance(part, nn.BatchNorm2d))


@functools.cache
def parameters_of_operator(key: OperatorKey) -> int:
    """Count an operator's trained parameters (batch normalization's included)."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in _built(key).parameters())
