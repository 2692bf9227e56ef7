"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import numpy as np
import onnxruntime as ort

from hwnas.core.errors import ExportError
from hwnas_export.runner import Runner, Sampler, host_sampler

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


@final
class OnnxRuntimeRunner(Runner):
    """Run an ONNX model with ONNX Runtime's CPU provider.

    Args:
        model: The serialized ONNX model.
        threads: Threads within an operator. One by default: figures of small networks repeat best,
            and a shared machine disturbs them least.
    """

    name = "onnxruntime-cpu"

    def __init__(self, model: bytes, *, threads: int = 1) -> None:
        super().__init__()
        self._model = model
        self._threads = threads
        self._session: ort.InferenceSession | None = None

    def _activate_impl(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # errors only: a warning would reach the user's terminal
        try:
            self._session = ort.InferenceSession(
                self._model, options, providers=["CPUExecutionProvider"]
            )
        # ONNX Runtime raises a class of its own for each of its status codes.
        except Exception as error:
            raise ExportError(f"ONNX Runtime rejects the model: {error}") from error
        self._input = self._session.get_inputs()[0]
        self._outputs = [self._session.get_outputs()[0].name]

    def _close_impl(self) -> None:
        self._session = None

    def _input_shape_impl(self) -> tuple[int | None, int, int, int]:
        batch, channels, height, width = self._input.shape
        return (batch if isinstance(batch, int) else None, channels, height, width)

    def _infer_impl(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        assert self._session is not None
        output = self._session.run(self._outputs, {self._input.name: images})[0]
        return np.asarray(output, dtype=np.float32)

    def _call_on_impl(self, images: NDArray[np.float32]) -> Callable[[], object]:
        assert self._session is not None
        run, outputs, feed = self._session.run, self._outputs, {self._input.name: images}
        return lambda: run(outputs, feed)

    def _sampler_on_impl(self, images: NDArray[np.float32]) -> Sampler:
        return host_sampler(self._call_on_impl(images))
