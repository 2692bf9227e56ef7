"""TensorRT on an NVIDIA GPU, with pycuda's buffers and stream.

Not yet run on hardware: what can be tested without a GPU is (docs/decisions/0015-tensorrt.md).
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import lru_cache, partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, final

import onnx

from hwnas.core.errors import DataError, ExportError, TargetError
from hwnas_export.cuda_driver import cuda_driver
from hwnas_export.device_buffers import open_stream, require_pycuda
from hwnas_export.engine_cache import cached_engine
from hwnas_export.gpu_queue import queued_sampler
from hwnas_export.precision import PRECISIONS, precision_of
from hwnas_export.runner import Runner, Sampler
from hwnas_export.tensorrt_api import error_log, trt_module
from hwnas_export.tensorrt_engine import DEFAULT_SETTINGS, EngineSettings, engine_from_onnx
from hwnas_export.tensorrt_plan import check_plan, probe_plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from functools import _lru_cache_wrapper
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from hwnas_export.cuda_driver import CudaGraph
    from hwnas_export.device_buffers import DeviceStream
    from hwnas_export.tensorrt_plan import GivenPlan

_logger = logging.getLogger(__name__)


@final
class TensorRTRunner(Runner):
    """Build an engine from an ONNX model, and run it.

    It is built when the runner is activated, on the GPU that it will run on, from a file that says
    what it computes: an engine from elsewhere is native code that nobody can read. One that is
    given all the same is run only if it hashes to what its sidecar says and is for this GPU.

    Args:
        model: The serialized ONNX model, already in the precision: by `onnx_in_precision`, for int8
            with `symmetric=True`.
        threads: Without meaning on a GPU; there so that all runners are made alike.
        precision: `fp32`, `fp16` or `int8`; must be what the model is in.
        timing_cache: File of kernel timings that the engines of one device share.
        settings: How the engine is built.
        cache: Folder of engines that were built before; without one it is built each time.
        plan: An engine of the model that is run in place of building one.

    Raises:
        TargetError: The precision is none of these.
    """

    def __init__(
        self,
        model: bytes,
        *,
        threads: int = 1,
        precision: str = "fp32",
        timing_cache: Path | None = None,
        settings: EngineSettings = DEFAULT_SETTINGS,
        cache: Path | None = None,
        plan: GivenPlan | None = None,
    ) -> None:
        super().__init__()
        del threads
        if precision not in PRECISIONS:
            targets = ", ".join(f"tensorrt-{known}" for known in PRECISIONS)
            raise TargetError(
                f"there is no target tensorrt-{precision}", hint=f"choose one of {targets}"
            )
        self.name = f"tensorrt-{precision}"
        self._model = model
        self._precision = precision
        self._timing_cache = timing_cache
        self._settings = settings
        self._cache = cache
        self._given = plan

    def _activate_impl(self) -> None:
        _check_precision(self._model, self._precision)
        trt = trt_module()
        require_pycuda()
        cuda_driver()  # TensorRT may crash where there is no GPU, so ask before it is let loose
        plan = self._plan()
        # Given back in reverse order: bindings, engine, runtime, stream, context.
        with ExitStack() as stack:
            self._stream = open_stream()
            stack.callback(self._stream.close)
            stack.callback(self._drop_engine)
            self._log = error_log(trt)
            self._runtime = trt.Runtime(self._log)
            # The default, but a default that must not change: it would run host code of the plan.
            self._runtime.engine_host_code_allowed = False
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise ExportError(f"TensorRT does not take the engine: {self._words()}")
            self._input, self._output = _ends(trt, self._engine)
            self._bindings: dict[tuple[int, ...], _Binding] = {}
            self._resources = stack.enter_context(ExitStack())
            stack.callback(self._stream.synchronize)  # an interrupt may have left work queued
            self._stack = stack.pop_all()

    def _plan(self) -> bytes:
        """Return the engine: the one that was given, or was kept, or a new one."""
        if self._given is not None:
            check_plan(self._given)
            probe_plan(self._given.content)
            return self._given.content
        if self._cache is not None:
            return cached_engine(
                self._model,
                self._settings,
                folder=self._cache,
                timing_cache=self._timing_cache,
            )
        return engine_from_onnx(
            self._model, settings=self._settings, timing_cache=self._timing_cache
        )

    def _close_impl(self) -> None:
        self._stack.close()

    def _input_shape_impl(self) -> tuple[int | None, int, int, int]:
        batch, channels, height, width = self._engine.get_tensor_shape(self._input)
        return (batch if batch >= 0 else None, channels, height, width)

    def _infer_impl(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        binding = self._bindings.get(images.shape)
        if binding is None:
            binding = self._bindings[images.shape] = self._bind(images.shape)
        return binding.compute(images)

    def _call_on_impl(self, images: NDArray[np.float32]) -> Callable[[], object]:
        binding = self._bind(images.shape)
        binding.compute(images)
        return binding.recompute

    def _sampler_on_impl(self, images: NDArray[np.float32]) -> Sampler:
        binding = self._bind(images.shape)
        binding.compute(images)  # a capture must come after a first call
        graph_of = self._graphs_of(binding)
        self._resources.callback(graph_of.cache_clear)
        return queued_sampler(graph_of, self._stream.event)

    def _bind(self, shape: tuple[int, ...]) -> _Binding:
        binding = _Binding(self._engine, self._stream, (self._input, self._output), shape)
        self._resources.callback(binding.free)
        return binding

    def _graphs_of(self, binding: _Binding) -> _lru_cache_wrapper[CudaGraph | _QueuedCalls]:
        """Return what captures so many calls in a row, or only queues them where it cannot."""
        try:
            binding.captured(1)
        except (TargetError, ExportError) as error:
            _logger.warning(
                "%s: timed as queued calls, since they cannot be captured in a CUDA graph, and "
                "small operators will look slower than they are: %s",
                self.name,
                error,
            )
            return lru_cache(partial(_QueuedCalls, binding))
        # Four: a full graph, one for a sample's rest, and two that the sampler may waver between.
        return lru_cache(maxsize=4)(binding.captured)

    def _drop_engine(self) -> None:
        self._bindings = {}
        self._engine = None
        self._runtime = None

    def _words(self) -> str:
        return "\n  ".join(self._log.errors) or "it does not say why"


@final
class _Binding:
    """An execution context of its own with its buffers, for inputs of one shape.

    Of its own, because a context from which a CUDA graph was captured must not be changed any more.
    """

    def __init__(
        self, engine: Any, stream: DeviceStream, ends: tuple[str, str], shape: tuple[int, ...]
    ) -> None:
        self._stream = stream
        input_name, output_name = ends
        context = engine.create_execution_context()
        if context is None:
            raise ExportError("TensorRT gave no execution context: too little memory on the GPU?")
        if not context.set_input_shape(input_name, shape):
            smallest, _, largest = engine.get_tensor_profile_shape(input_name, 0)
            raise DataError(
                f"the engine takes batches of {smallest[0]} to {largest[0]}, not {shape[0]}",
                hint="EngineSettings(batches=...) says what to build for",
            )
        with ExitStack() as stack:
            self._source = stream.buffer(shape)
            stack.callback(self._source.free)
            self._result = stream.buffer(tuple(context.get_tensor_shape(output_name)))
            stack.callback(self._result.free)
            for name, buffer in ((input_name, self._source), (output_name, self._result)):
                if not context.set_tensor_address(name, buffer.address):
                    raise ExportError(f"TensorRT does not take the address of `{name}`")
            self._buffers = stack.pop_all()
        self._context = context
        self._execute, self._handle = context.execute_async_v3, stream.handle

    def compute(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs of other images of the same shape."""
        self._stream.upload(images, self._source)
        return self.recompute()

    def recompute(self) -> NDArray[np.float32]:
        """Return the outputs of the images that are there."""
        self.enqueue()
        return self._stream.download(self._result)

    def enqueue(self) -> None:
        """Queue one computation, of what lies in the buffers, and return at once."""
        if not self._execute(self._handle):
            raise ExportError("TensorRT could not queue the engine's work")

    def captured(self, calls: int) -> CudaGraph:
        """Return computations in a row as one CUDA graph.

        Raises:
            TargetError: The driver cannot capture them.
            ExportError: TensorRT cannot queue them while they are captured, or says so before.
        """
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._handle):
            raise ExportError("TensorRT says that the engine's work cannot be captured")
        return cuda_driver().capture(self._handle, _QueuedCalls(self, calls).replay)

    def free(self) -> None:
        """Give the context and its buffers back; nothing of theirs is queued any more."""
        self._context = self._execute = None
        self._buffers.close()


@final
class _QueuedCalls:
    """Computations in a row, queued one by one."""

    def __init__(self, binding: _Binding, calls: int) -> None:
        self._enqueue = binding.enqueue
        self._calls = calls

    def replay(self) -> None:
        """Queue them."""
        for _ in repeat(None, self._calls):
            self._enqueue()


def _ends(trt: Any, engine: Any) -> tuple[str, str]:
    """Return the names of the one input and the one output."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    if len(inputs) != 1 or len(outputs) != 1:
        raise ExportError(f"a runner has one input and one output, not {inputs} and {outputs}")
    wrong = [name for name in names if engine.get_tensor_dtype(name) != trt.DataType.FLOAT]
    if wrong:
        raise ExportError(
            f"`{wrong[0]}` is not float32",
            hint="`onnx_in_precision` keeps inputs and outputs in float32",
        )
    return inputs[0], outputs[0]


def _check_precision(model: bytes, precision: str) -> None:
    """See that the name under which something is measured is true."""
    try:
        parsed = onnx.load_model_from_string(model)
    # protobuf's error; its class depends on the implementation that is installed.
    except Exception as error:
        raise ExportError(f"TensorRT cannot parse the model: {error}") from error
    own = precision_of(parsed)
    if own != precision:
        raise ExportError(
            f"the model is in {own}, not in {precision}",
            hint=f'put it there first: onnx_in_precision(model, "{precision}", symmetric=True)',
        )
    unsigned = {
        each.name for each in parsed.graph.initializer if each.data_type == onnx.TensorProto.UINT8
    }
    if any(name in unsigned for node in parsed.graph.node for name in node.input[2:]):
        raise ExportError(
            "the model's activations are unsigned and have zero points, which TensorRT refuses",
            hint='put it into int8 for TensorRT: onnx_in_precision(model, "int8", symmetric=True)',
        )
