"""PyTorch itself: on the CPU the twin that an engine is compared with, on a GPU a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, final

import torch

from hwnas_export.folding import folded_copy
from hwnas_export.runner import Runner, Sampler, host_sampler, target_name

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hwnas_export.cuda_graph import GraphRoom

_TARGETS = ("torch-cpu", "torch-cpu-bf16", "torch-cuda", "torch-cuda-fp16", "torch-cuda-bf16")
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@final
class TorchRunner(Runner):
    """Run a module in eval mode, eagerly on the CPU and as captured CUDA graphs on a GPU.

    `torch-cpu` runs the module itself. All others run a copy in the form that one would deploy:
    batch normalization folded, weights cast, layout channels-last. The input of `call_on` and of
    `sampler_on` is cast, moved and laid out when it is bound, as an operator in the middle of a
    network finds it; what is timed is the module alone. How a GPU is timed is told in `cuda_graph`.

    On a CPU without bfloat16 arithmetic PyTorch computes `torch-cpu-bf16` all the same, slowly.

    Args:
        module: The module. It is not changed, save that `torch-cpu` holds it in eval mode while
            active; each part's own mode is put back on `close`.
        input_shape: (batch, channels, height, width); a batch of None is free.
        device: Where to run.
        precision: `fp32`, `bf16`, or on a GPU `fp16`. On a GPU, fp32 is without TF32.
    """

    def __init__(
        self,
        module: nn.Module,
        input_shape: tuple[int | None, int, int, int],
        *,
        device: Literal["cpu", "cuda"] = "cpu",
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.name = target_name("torch", device, precision, _TARGETS)
        self._module = module
        self._shape = input_shape
        self._device = device
        self._dtype = _DTYPES[precision]
        self._running: nn.Module | None = None
        self._modes: list[tuple[nn.Module, bool]] = []
        self._room: GraphRoom | None = None

    def _activate_impl(self) -> None:
        if self._device == "cuda":
            from hwnas_export.cuda_graph import check_cuda, shared_room

            check_cuda(self.name, self._dtype)
            self._room = shared_room()
        if self.name == "torch-cpu":
            self._modes = [(part, part.training) for part in self._module.modules()]
            self._running = self._module.eval()
        else:
            copy = folded_copy(self._module).to(device=self._device, dtype=self._dtype)
            # A documented argument that torch's types leave out.
            self._running = copy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _close_impl(self) -> None:
        for part, mode in self._modes:
            part.training = mode
        self._modes = []
        self._running = None
        if self._room is not None:
            self._room = None
            torch.cuda.empty_cache()

    def _input_shape_impl(self) -> tuple[int | None, int, int, int]:
        return self._shape

    def _bound(self, images: NDArray[np.float32]) -> Tensor:
        tensor = torch.from_numpy(images)
        if self.name == "torch-cpu":
            return tensor
        return tensor.to(device=self._device, dtype=self._dtype, memory_format=torch.channels_last)

    def _work_on(self, images: NDArray[np.float32]) -> Callable[[], Tensor]:
        module, tensor = self._running, self._bound(images)
        assert module is not None

        @torch.inference_mode()
        def work() -> Tensor:
            output: Tensor = module(tensor)
            return output

        return work

    def _infer_impl(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        work = self._work_on(images)
        output = work() if self._room is None else self._room.run(work)
        result: NDArray[np.float32] = output.float().cpu().contiguous().numpy()
        return result

    def _call_on_impl(self, images: NDArray[np.float32]) -> Callable[[], object]:
        work = self._work_on(images)
        return work if self._room is None else self._room.call(work)

    def _sampler_on_impl(self, images: NDArray[np.float32]) -> Sampler:
        work = self._work_on(images)
        return host_sampler(work) if self._room is None else self._room.sampler(work)
