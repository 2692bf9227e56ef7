"""What is attacked: a module, or an array function that can only be asked.

An attack sees a `Subject`: `forward`, cheap and differentiable where it can be, to search with; and
`broken`, the model itself, to judge by.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from hwnas.core.errors import ConfigError, DataError
from hwnas.robustness.attacks.lean import lean_copy
from hwnas.robustness.attacks.losses import fooled
from hwnas.robustness.evaluate import device_of, evaluating

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from hwnas.robustness.attacks.losses import Forward
    from hwnas.robustness.square import Predict

# Enough to tell a copy that computes something else.
_COMPARED = 16


@dataclass(slots=True, kw_only=True)
class Subject:
    """A model under attack.

    Attributes:
        forward: Maps images on `device` to logits: what attacks differentiate and ask.
        original: The same, as the model was given: what decides.
        device: Where tensors live.
        asked: Images that `forward` was asked about.
    """

    forward: Forward
    original: Forward
    device: torch.device
    asked: int = 0

    def tensor(self, images: NDArray[np.float32]) -> Tensor:
        """Return a batch where the model lives, laid out channels last."""
        moved = torch.from_numpy(images).to(self.device)
        return moved.contiguous(memory_format=torch.channels_last)

    def logits(self, images: Tensor) -> Tensor:
        """Ask the original, (N, ...) -> (N, classes)."""
        with torch.no_grad():
            return self.original(images)

    def counted(self, images: Tensor) -> Tensor:
        """Do `forward` and count."""
        self.asked += len(images)
        return self.forward(images)

    def broken(self, points: Tensor, labels: Tensor) -> NDArray[np.bool_]:
        """Return which points the original gets wrong, (N,)."""
        found: NDArray[np.bool_] = fooled(self.logits(points), labels).cpu().numpy()
        return found


@contextmanager
def subject_from(
    model: nn.Module | Predict,
    images: NDArray[np.float32],
    *,
    gradients: bool,
    lean: bool = True,
) -> Iterator[Subject]:
    """Prepare a model to be attacked; a module is given back as it was.

    Args:
        model: A module in any mode, or an array function.
        images: (N, channels, height, width): some of what it will be asked.
        gradients: Whether an attack will ask for gradients.
        lean: Whether it is asked so often that a cheaper copy pays for its making.

    Raises:
        ConfigError: Gradients are asked for and there are none.
        DataError: The model's answer is no (N, classes).
    """
    if not isinstance(model, nn.Module):
        if gradients:
            raise ConfigError(
                "an array function has no gradients to attack by",
                hint='attack it as a black box, with "square", or attack its PyTorch twin',
            )
        ask = _forward_from_predict(model)
        _check_answer(ask(torch.from_numpy(images[:1])))
        yield Subject(forward=ask, original=ask, device=torch.device("cpu"))
        return
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        sample = torch.from_numpy(images[:_COMPARED]).to(device_of(model))
        _check_answer(model(sample[:1]))
        if gradients:
            _check_gradient(model, sample[:1])
        network = stack.enter_context(lean_copy(model, sample)) if lean else model
        yield Subject(forward=network, original=model, device=device_of(model))


@contextmanager
def behind_normalization(
    model: nn.Module | Predict, images: NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    """Move a model's boundary behind its normalization; yield the images as they are there.

    Within, the model takes normalized tensors: its `normalize` passes on what it gets.

    Args:
        model: A module with a submodule `normalize`, which all of our networks have.
        images: (N, channels, height, width), pixels in [0, 1].

    Raises:
        ConfigError: The model has no such part.
    """
    normalize = getattr(model, "normalize", None)
    if not isinstance(normalize, nn.Module):
        raise ConfigError(
            f'protocol "normalized" needs a model that keeps its normalization in `.normalize`; '
            f"{type(model).__name__} has none",
            hint='attack it in pixel units: protocol = "pixel"',
        )
    with torch.no_grad():
        device = device_of(model) if isinstance(model, nn.Module) else torch.device("cpu")
        normalized = normalize(torch.from_numpy(images).to(device)).cpu().numpy()
    hook = normalize.register_forward_hook(_pass_on)
    try:
        yield normalized
    finally:
        hook.remove()


def _pass_on(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return inputs[0]


def _forward_from_predict(predict: Predict) -> Forward:
    def forward(images: Tensor) -> Tensor:
        return torch.from_numpy(predict(np.ascontiguousarray(images.numpy())))

    return forward


def _check_answer(logits: object) -> None:
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 1:
        shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise DataError(f"a model must map one image to logits (1, classes), not to {shape}")


def _check_gradient(model: nn.Module, image: Tensor) -> None:
    with torch.enable_grad():
        variable = image.detach().requires_grad_()
        logits = model(variable)
        if logits.requires_grad:
            (gradient,) = torch.autograd.grad(logits.sum(), variable, allow_unused=True)
            if gradient is not None:
                return
    raise ConfigError(
        "the model's logits have no gradient for its input: no gradient attack can run",
        hint='attack it as a black box, with "square"',
    )
