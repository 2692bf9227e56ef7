"""The same network with less work: what attacks differentiate and query.

An attack asks one network thousands of times and changes nothing in it. So it asks a copy: weights
that record no gradient, tensors laid out channels last, and each batch normalization folded into
the convolution before it. The copy computes the same function up to rounding; its logits and
gradients are compared before it is used. What counts as broken is decided by the original.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hwnas.space.memory_format import channels_last

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Relative to the largest logit, and to the gradient's length. Folding changes float32 values by
# some 1e-6; a gradient more where a rounded value crosses an activation's kink; a wrong copy by
# far more than either.
_LOGIT_ROUNDING = 1e-4
_GRADIENT_ROUNDING = 1e-2


@contextmanager
def lean_copy(model: nn.Module, images: Tensor) -> Iterator[nn.Module]:
    """Yield the cheapest network that gives the model's logits: a copy, or the model itself.

    Args:
        model: In eval mode. It is left as it is: where nothing can be copied, the model itself is
            yielded with its weights frozen, and they get back what they had.
        images: (n, channels, height, width): what the copy must agree on.
    """
    wanted = _logits_and_gradient(model, images)
    for make in (_folded, _plain):
        network = make(model)
        if network is not None and _agrees(network, images, wanted):
            yield network
            return
    with _frozen(model):
        yield model


def _plain(model: nn.Module) -> nn.Module | None:
    """Return a frozen copy laid out channels last; None where a model cannot be copied."""
    try:
        return channels_last(copy.deepcopy(model).requires_grad_(False))
    except Exception:  # a module may hold anything, and refuse a copy in any way
        return None


def _folded(model: nn.Module) -> nn.Module | None:
    """Return a frozen copy with folded normalizations; None where a model cannot be traced."""
    plain = _plain(model)
    if plain is None:
        return None
    try:
        traced = fx.symbolic_trace(_OfImages(plain))
    except Exception:  # any branch on the data, or whatever else a forward does
        return None
    fold_batch_norms(traced)
    return channels_last(traced.eval().requires_grad_(False))


@final
class _OfImages(nn.Module):
    """A model asked for images alone: a trace would take what it may be given besides as given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits


def fold_batch_norms(traced: fx.GraphModule) -> None:
    """Fold each batch normalization, in place, into the convolution that it alone follows.

    Args:
        traced: In eval mode.
    """
    modules = dict(traced.named_modules())
    shared = _used_more_than_once(traced)
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], _NORMALIZATIONS):
            continue
        source = node.args[0]
        if not (
            isinstance(source, fx.Node)
            and source.op == "call_module"
            and isinstance(modules[str(source.target)], _CONVOLUTIONS)
            and len(source.users) == 1
            and not {source.target, node.target} & shared
            and modules[node.target].running_mean is not None
        ):
            continue
        folded = fuse_conv_bn_eval(modules[str(source.target)], modules[node.target])
        parent, _, name = str(source.target).rpartition(".")
        setattr(traced.get_submodule(parent), name, folded)
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.recompile()


def _used_more_than_once(traced: fx.GraphModule) -> set[str]:
    """Return the modules that a network calls in several places: one place's fold is not all's."""
    called = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    return {name for name in called if called.count(name) > 1}


def _agrees(network: nn.Module, images: Tensor, wanted: tuple[Tensor, Tensor | None]) -> bool:
    try:
        logits, gradient = _logits_and_gradient(network, images)
    except Exception:  # a trace may have kept what held for the tracer alone
        return False
    if logits.shape != wanted[0].shape or (gradient is None) != (wanted[1] is None):
        return False
    largest = float(wanted[0].abs().nan_to_num(posinf=0.0, neginf=0.0).max())
    if not torch.allclose(
        logits, wanted[0], rtol=0.0, atol=_LOGIT_ROUNDING * largest, equal_nan=True
    ):
        return False
    if gradient is None or wanted[1] is None or not wanted[1].isfinite().all():
        return True
    # A trace forgets what is no operator, such as `torch.no_grad()`: logits alone would not show.
    return bool((gradient - wanted[1]).norm() <= _GRADIENT_ROUNDING * wanted[1].norm())


def _logits_and_gradient(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return logits, and the gradient of a sum that weighs each differently, where it has one."""
    with torch.enable_grad():
        variable = images.detach().requires_grad_()
        logits = network(variable)
        if not logits.requires_grad:
            return logits, None
        # Weights that sum to no constant: softmax-like outputs would have no gradient by a sum.
        weights = torch.arange(1, logits.shape[-1] + 1, device=logits.device)
        total = (logits * weights).sum()
        (gradient,) = torch.autograd.grad(total, variable, allow_unused=True)
    return logits.detach(), gradient


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Hold the weights without gradients; each gets back what it had."""
    before = [(weight, weight.requires_grad) for weight in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for weight, required in before:
            weight.requires_grad_(required)
