"""PyTorch itself, eager: the twin that an engine is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch

from hwnas_export.runner import Runner, Sampler, host_sampler

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


@final
class TorchRunner(Runner):
    """Run a module eagerly on the CPU, in eval mode.

    Args:
        module: The module. Its mode is left as it was found, on `close`.
        input_shape: (batch, channels, height, width); a batch of None is free.
    """

    name = "torch-cpu"

    def __init__(self, module: nn.Module, input_shape: tuple[int | None, int, int, int]) -> None:
        super().__init__()
        self._module = module
        self._shape = input_shape

    def _activate_impl(self) -> None:
        self._was_training = self._module.training
        self._module.eval()

    def _close_impl(self) -> None:
        self._module.train(self._was_training)

    def _input_shape_impl(self) -> tuple[int | None, int, int, int]:
        return self._shape

    def _infer_impl(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            output: NDArray[np.float32] = self._module(torch.from_numpy(images)).numpy()
        return output

    def _call_on_impl(self, images: NDArray[np.float32]) -> Callable[[], object]:
        module, tensor = self._module, torch.from_numpy(images)

        @torch.inference_mode()
        def call() -> object:
            return module(tensor)

        return call

    def _sampler_on_impl(self, images: NDArray[np.float32]) -> Sampler:
        return host_sampler(self._call_on_impl(images))
