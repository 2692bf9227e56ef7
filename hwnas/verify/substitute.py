"""What is differentiated in an engine's place: its fake quantization, or its PyTorch twin.

An engine has no gradients. A quantized one decides otherwise than its twin, so that the twin's
gradients may lead past it; fake quantization computes the engine's own numbers, and passes
gradients straight through the rounding. That it does so is shown on the same images, not taken for
granted.

References:
    Athalye et al., "Obfuscated Gradients Give a False Sense of Security", 2018, section 4.1 (BPDA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hwnas.core.errors import ExportError
from hwnas.robustness.evaluate import device_of, logits_from_module
from hwnas.verify.parity import Parity, parity_of
from hwnas_export.torch_from_onnx import torch_from_onnx

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hwnas.robustness.attacks.losses import Forward
    from hwnas.robustness.square import Predict
    from hwnas.verify.records import Gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Substitute:
    """A module with gradients that stands for an engine.

    Attributes:
        module: The module.
        gradients: What it is.
        parity: It against the engine.
        note: Why it is not the fake quantization, where one was looked for.
    """

    module: nn.Module
    gradients: Gradients
    parity: Parity
    note: str = ""


def substitute_for(
    twin: nn.Module,
    model: bytes | None,
    precision: str,
    images: NDArray[np.float32],
    engine_logits: NDArray[np.float32],
    *,
    batch: int,
) -> Substitute:
    """Choose what is differentiated: of a quantized engine, what is nearest to it.

    Args:
        twin: The network that the engine was made from.
        model: The engine's own ONNX model; None where it is not known.
        precision: The engine's precision.
        images: (N, channels, height, width): what both are compared on.
        engine_logits: (N, classes): the engine's answers to them.
        batch: Images per call.
    """
    by_twin = Substitute(
        module=twin,
        gradients="the PyTorch twin",
        parity=parity_of(logits_from_module(twin, images, batch=batch), engine_logits),
    )
    if precision != "int8":
        return by_twin
    if model is None:
        return _with_note(by_twin, "the engine's ONNX model is not known")
    try:
        module = torch_from_onnx(model)
        logits = logits_from_module(module, images, batch=batch)
    except ExportError as error:
        return _with_note(by_twin, error.message)
    by_engine = Substitute(
        module=module.to(device_of(twin)),
        gradients="fake quantization of the engine",
        parity=parity_of(logits, engine_logits),
    )
    if _distance(by_engine.parity) > _distance(by_twin.parity):
        return _with_note(
            by_twin,
            f"its fake quantization is further from the engine ({_distance(by_engine.parity):.2g} "
            f"in the relative norm) than its twin ({_distance(by_twin.parity):.2g})",
        )
    return by_engine


def through(predict: Predict, module: nn.Module, *, device: torch.device) -> Forward:
    """Return a function with the engine's logits and the gradients of a module.

    The value is the engine's to the last bit: what is added to it is a difference of a tensor and
    itself. An attack so judges every point by the engine, and moves it by the module.

    Args:
        predict: The engine.
        module: What is differentiated, in eval mode.
        device: Where the module lives.
    """

    def forward(points: Tensor) -> Tensor:
        asked = points.detach().cpu().contiguous().numpy()
        logits = torch.from_numpy(predict(asked)).to(device)
        if not torch.is_grad_enabled():
            return logits
        soft: Tensor = module(points)
        return logits + (soft - soft.detach())

    return forward


def _distance(parity: Parity) -> float:
    return float("inf") if parity.relative_l2 is None else parity.relative_l2


def _with_note(substitute: Substitute, note: str) -> Substitute:
    return Substitute(
        module=substitute.module,
        gradients=substitute.gradients,
        parity=substitute.parity,
        note=note,
    )
