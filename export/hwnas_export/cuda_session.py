"""ONNX Runtime on an NVIDIA GPU: no silent fallback, buffers on the device, captured graphs.

Written for ONNX Runtime 1.20 to 1.31; see https://onnxruntime.ai/docs/execution-providers/ for the
CUDA provider, its options and what a CUDA graph asks of a model.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import time
from typing import TYPE_CHECKING, final

import numpy as np
import onnxruntime as ort

from hwnas.core.errors import ExportError, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Provider = tuple[str, Mapping[str, str]]
    OpenSession = Callable[[Provider], ort.InferenceSession]

_PROVIDER = "CUDAExecutionProvider"
_UNCAPTURED = -1  # the graph number by which ONNX Runtime neither captures nor replays
_log = logging.getLogger(__name__)


@final
class CudaSession:
    """A session that really runs on the GPU, and the bindings made in it.

    TF32 is off: fp32 means fp32. A CUDA graph is captured for each binding where ONNX Runtime
    allows it, which it does unless an operator that computes is left to the CPU.

    Args:
        open_session: Opens a session of the model on a provider, given with its options.

    Raises:
        TargetError: ONNX Runtime has no CUDA provider, or could not load it and took another.
        ExportError: ONNX Runtime rejects the model.
    """

    def __init__(self, open_session: OpenSession) -> None:
        _check_available()
        _preload_libraries()
        options = {"device_id": "0", "use_tf32": "0"}
        try:
            self.session = open_session((_PROVIDER, options | {"enable_cuda_graph": "1"}))
        except ExportError as refusal:
            # Either the model is bad, and is refused again, or it cannot be captured as a graph.
            self.session = open_session((_PROVIDER, options))
            _log.warning("calls are launched one operator at a time: %s", refusal)
        check_taken(self.session)
        self.cpu_operators = operators_on_cpu(self.session)
        if self.cpu_operators:
            _log.warning("ONNX Runtime left to the CPU: %s", ", ".join(self.cpu_operators))
        self.uncaptured = run_options(_UNCAPTURED)
        # Zero is ONNX Runtime's own; a graph replays one binding's addresses, so each has a number.
        self._graph_numbers = itertools.count(1)

    def bind(self, images: NDArray[np.float32]) -> DeviceBinding:
        """Put an input on the GPU, make room for its output and compute it once.

        Raises:
            ExportError: It cannot be computed there.
        """
        number = next(self._graph_numbers)
        try:
            return DeviceBinding(self.session, images, graph=number, device="cuda")
        # ONNX Runtime raises a class of its own for each of its status codes.
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot run the model on the GPU: {error}") from error


@final
class DeviceBinding:
    """One input and one output that stay on a device while calls are made.

    Calls are timed by the host's clock. ONNX Runtime queues work on a stream of its own and offers
    no events on it: events of another stream would not see that work. By default it also waits for
    its stream at the end of each call, so one call's launch is never hidden behind the one before,
    and a deployed call pays it too. It is part of the latency that is measured here; copies between
    host and device are not.

    Args:
        session: The session.
        images: float32, (batch, channels, height, width); copied to the device once.
        graph: Number of the CUDA graph that is captured for this binding.
        device: ONNX Runtime's name of the device.
    """

    def __init__(
        self, session: ort.InferenceSession, images: NDArray[np.float32], *, graph: int, device: str
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._options = run_options(graph)
        source, result = session.get_inputs()[0].name, session.get_outputs()[0].name
        value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(images), device, 0)
        self._binding.bind_ortvalue_input(source, value)
        # A first call, for which ONNX Runtime makes room itself, tells the shape of the output.
        self._binding.bind_output(result, device, 0)
        session.run_with_iobinding(self._binding, run_options(_UNCAPTURED))
        shape = self._binding.get_outputs()[0].shape()
        self._output = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, 0)
        self._binding.clear_binding_outputs()
        self._binding.bind_ortvalue_output(result, self._output)
        self._held = value  # a binding owns no memory
        self.call()  # captures the graph, so that no sample times that

    def call(self) -> ort.OrtValue:
        """Compute the output, wait for it and return it where it lies."""
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
        return self._output

    def sample(self, calls: int, clock: Callable[[], int] = time.perf_counter_ns) -> float:
        """Make calls in a row, wait for the last, and return the nanoseconds they took together."""
        run, binding, options = self._session.run_with_iobinding, self._binding, self._options
        begin = clock()
        for _ in itertools.repeat(None, calls):
            run(binding, options)
        binding.synchronize_outputs()
        return clock() - begin


def run_options(graph: int) -> ort.RunOptions:
    """Return options for calls that capture and replay the CUDA graph of that number."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def check_taken(session: ort.InferenceSession) -> None:
    """Check that a session asked to run on CUDA does.

    Raises:
        TargetError: It does not: ONNX Runtime only prints a message when it falls back.
    """
    providers = session.get_providers()
    if _PROVIDER not in providers:
        built_for = getattr(ort, "cuda_version", "")
        needs = f"this build needs CUDA {built_for} and its cuDNN" if built_for else "install CUDA"
        raise TargetError(
            f"ONNX Runtime could not load its CUDA provider and took {', '.join(providers)}",
            hint=f"{needs}; `nvidia-smi` shows the driver, and "
            "`python -c 'import onnxruntime; onnxruntime.preload_dlls()'` the missing libraries",
        )


def operators_on_cpu(session: ort.InferenceSession) -> tuple[str, ...]:
    """Return the names of the operators that run on the CPU; () where ONNX Runtime does not tell.

    The session must have been opened with `session.record_ep_graph_assignment_info`.
    """
    report = getattr(session, "get_provider_graph_assignment_info", None)  # from 1.24 on
    if report is None:
        return ()
    parts = (part for part in report() if part.ep_name == "CPUExecutionProvider")
    return tuple(node.name for part in parts for node in part.get_nodes())


def _check_available() -> None:
    available = ort.get_available_providers()
    if _PROVIDER not in available:
        raise TargetError(
            f"this ONNX Runtime {ort.__version__} is built without CUDA: "
            f"it offers {', '.join(available)}",
            hint="pip uninstall onnxruntime && pip install onnxruntime-gpu",
        )


def _preload_libraries() -> None:
    """Load CUDA's libraries from where torch's packages put them, which no search path names."""
    preload = getattr(ort, "preload_dlls", None)  # from 1.21 on
    if preload is not None:
        # It prints what it misses; results alone belong on stdout.
        with contextlib.redirect_stdout(io.StringIO()) as said:
            preload()
        if said.getvalue():
            _log.info("onnxruntime.preload_dlls: %s", said.getvalue().strip())
