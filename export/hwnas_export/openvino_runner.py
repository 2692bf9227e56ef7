"""OpenVINO on the CPU."""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

import numpy as np

from hwnas.core.errors import ExportError, MissingDependencyError, TargetError
from hwnas_export.runner import Runner, Sampler, host_sampler, target_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_TARGETS = ("openvino-cpu", "openvino-cpu-bf16")
_HINTS = {"fp32": "f32", "bf16": "bf16"}
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16"}


@final
class OpenVinoRunner(Runner):
    """Run an ONNX model with OpenVINO's CPU plugin.

    OpenVINO picks a precision by itself where it is given none: bfloat16 on a CPU that has it. Here
    it is always given. A call runs in the calling thread; `start_async` would hand it to another
    and cost tens of microseconds.

    Args:
        model: The serialized ONNX model. Its one input and one output are float32.
        threads: Threads within an operator.
        precision: `fp32`, or `bf16` on a CPU that has it.
    """

    def __init__(self, model: bytes, *, threads: int = 1, precision: str = "fp32") -> None:
        super().__init__()
        self.name = target_name("openvino", "cpu", precision, _TARGETS)
        self._model = model
        self._threads = threads
        self._precision = precision
        # OpenVINO's objects; its types are not at hand where it is not installed.
        self._openvino: Any = None
        self._compiled: Any = None
        self._request: Any = None

    def _activate_impl(self) -> None:
        openvino = import_openvino()
        core = openvino.Core()
        has = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if _CAPABILITIES[self._precision] not in has:
            raise TargetError(
                f"{self.name} needs a CPU that computes in {self._precision}; OpenVINO finds "
                f"{', '.join(has)} on {core.get_property('CPU', 'FULL_DEVICE_NAME')}",
                hint="use openvino-cpu",
            )
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self._precision],
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            self._compiled = core.compile_model(core.read_model(self._model), "CPU", settings)
        except RuntimeError as error:
            raise ExportError(f"OpenVINO rejects the model: {error}") from error
        self._openvino = openvino
        self._request = self._compiled.create_infer_request()

    def _close_impl(self) -> None:
        self._openvino = self._compiled = self._request = None

    def _input_shape_impl(self) -> tuple[int | None, int, int, int]:
        batch, *rest = self._compiled.inputs[0].partial_shape
        channels, height, width = (size.get_length() for size in rest)
        return (None if batch.is_dynamic else batch.get_length(), channels, height, width)

    def _bind(self, request: Any, images: NDArray[np.float32]) -> None:
        request.set_input_tensor(self._openvino.Tensor(images, shared_memory=True))

    def _infer_impl(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        images = np.ascontiguousarray(images)
        self._bind(self._request, images)
        self._request.infer(share_outputs=True)
        # Copied: the next call writes into the same memory.
        return np.array(self._request.get_output_tensor().data, dtype=np.float32)

    def _call_on_impl(self, images: NDArray[np.float32]) -> Callable[[], object]:
        # A request of its own: another binding would replace the input of a shared one.
        request = self._compiled.create_infer_request()
        held = np.ascontiguousarray(images)
        self._bind(request, held)

        # OpenVINO reads the array's memory and does not hold the array: the call does.
        def call(infer: Any = request.infer, _held: object = held) -> object:
            return infer(share_outputs=True)

        return call

    def _sampler_on_impl(self, images: NDArray[np.float32]) -> Sampler:
        return host_sampler(self._call_on_impl(images))


def import_openvino() -> Any:
    """Import OpenVINO without the reporter of usage that comes with it.

    Raises:
        MissingDependencyError: It is not installed, or cannot be loaded.
    """
    try:
        with _no_usage_reports():
            return importlib.import_module("openvino")
    except ImportError as error:
        raise MissingDependencyError(
            f"OpenVINO cannot be imported: {error}", hint='pip install "hwnas[openvino]"'
        ) from error


@contextmanager
def _no_usage_reports() -> Iterator[None]:
    """Hide the package `openvino_telemetry` for a while.

    On its first import OpenVINO would have it write an identifier into the user's home folder and
    send an event, asking nobody. It does without where the package is missing.
    """
    package = "openvino_telemetry"
    if package in sys.modules:  # the program has it already, or has hidden it: its own affair
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # an import then fails
    try:
        yield
    finally:
        del sys.modules[package]
