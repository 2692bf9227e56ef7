"""ONNX Runtime, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, final

import numpy as np
import onnxruntime as ort

from hwnas.core.errors import ExportError
from hwnas_export.onnxruntime_session import check_session, session_options
from hwnas_export.runner import Runner, Sampler, host_sampler, target_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from hwnas_export.cuda_session import CudaSession

_TARGETS = (
    "onnxruntime-cpu",
    "onnxruntime-cpu-int8",
    "onnxruntime-cpu-fp16",
    "onnxruntime-cuda",
    "onnxruntime-cuda-fp16",
)


@final
class OnnxRuntimeRunner(Runner):
    """Run an ONNX model with ONNX Runtime.

    How a GPU is driven and timed is told in `cuda_session`.

    Args:
        model: The serialized ONNX model. Its one input and one output are float32.
        threads: Threads within an operator. One by default: figures of small networks repeat best,
            and a shared machine disturbs them least.
        device: Where to run.
        precision: The precision that the model holds inside. It is part of the name alone: the
            model is run as it is. On a CPU, ONNX Runtime has hardly an operator in fp16: it casts
            around the others, so that fp16 halves the file and saves no time there.
        session: Settings of the session, see `SESSION_SETTINGS`; empty for the usual ones, with
            which latency tables are measured.

    Raises:
        TargetError: There is no such target.
        ConfigError: A setting of the session is unknown.
    """

    def __init__(
        self,
        model: bytes,
        *,
        threads: int = 1,
        device: Literal["cpu", "cuda"] = "cpu",
        precision: str = "fp32",
        session: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.name = target_name("onnxruntime", device, precision, _TARGETS)
        self._settings = dict(session or {})
        check_session(self._settings)
        self._model = model
        self._threads = threads
        self._device = device
        self._session: ort.InferenceSession | None = None
        self._cuda: CudaSession | None = None

    @property
    def cpu_operators(self) -> tuple[str, ...]:
        """Operators that ONNX Runtime left to the CPU though a GPU was asked for, by node name.

        Empty on the CPU. Empty too before ONNX Runtime 1.24, which does not tell.
        """
        return () if self._cuda is None else self._cuda.cpu_operators

    def _activate_impl(self) -> None:
        if self._device == "cuda":
            from hwnas_export.cuda_session import CudaSession

            cuda = CudaSession(self._open_session)
            session = cuda.session
        else:
            cuda, session = None, self._open_session(("CPUExecutionProvider", {}))
        self._input, output = session.get_inputs()[0], session.get_outputs()[0]
        for role, value in (("input", self._input), ("output", output)):
            if value.type != "tensor(float)":
                raise ExportError(
                    f"the model's {role} {value.name} is {value.type}, not tensor(float)",
                    hint="keep inputs and outputs in float32 when a model is converted",
                )
        self._outputs = [output.name]
        self._session, self._cuda = session, cuda

    def _open_session(self, provider: tuple[str, Mapping[str, str]]) -> ort.InferenceSession:
        options = session_options(self._threads, self._settings)
        options.log_severity_level = 3  # errors only: a warning would reach the user's terminal
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            # Without `enable_fallback=0` a provider that fails is replaced by the CPU's.
            return ort.InferenceSession(
                self._model, options, providers=[provider], enable_fallback=0
            )
        # ONNX Runtime raises a class of its own for each of its status codes.
        except Exception as error:
            raise ExportError(f"ONNX Runtime rejects the model: {error}") from error

    def _close_impl(self) -> None:
        self._session = self._cuda = None

    def _input_shape_impl(self) -> tuple[int | None, int, int, int]:
        batch, channels, height, width = self._input.shape
        return (batch if isinstance(batch, int) else None, channels, height, width)

    def _infer_impl(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        assert self._session is not None
        options = None if self._cuda is None else self._cuda.uncaptured
        output = self._session.run(self._outputs, {self._input.name: images}, options)[0]
        return np.asarray(output, dtype=np.float32)

    def _call_on_impl(self, images: NDArray[np.float32]) -> Callable[[], object]:
        assert self._session is not None
        if self._cuda is not None:
            return self._cuda.bind(images).call
        run, outputs, feed = self._session.run, self._outputs, {self._input.name: images}
        return lambda: run(outputs, feed)

    def _sampler_on_impl(self, images: NDArray[np.float32]) -> Sampler:
        if self._cuda is not None:
            return self._cuda.bind(images).sample
        return host_sampler(self._call_on_impl(images))
