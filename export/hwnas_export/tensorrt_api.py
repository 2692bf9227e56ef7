"""TensorRT's Python module, of whichever kind is installed, and the names of it that hwnas uses.

TensorRT and TensorRT for RTX share the shape of their API, so one code path serves both. Versions
10.3 to 11 are served by using only what all of them have: the network is strongly typed, and the
precision lies in the ONNX file. Nothing here touches a device.
"""

from __future__ import annotations

import importlib
import logging
import re
from typing import TYPE_CHECKING, Any

from hwnas.core.errors import MissingDependencyError, TargetError

if TYPE_CHECKING:
    from types import ModuleType

TRT_NAMES = (
    "Builder",
    "Builder.build_serialized_network",
    "Builder.create_builder_config",
    "Builder.create_network",
    "Builder.create_optimization_profile",
    "BuilderFlag.TF32",
    "DataType.FLOAT",
    "IBuilderConfig.add_optimization_profile",
    "IBuilderConfig.builder_optimization_level",
    "IBuilderConfig.clear_flag",
    "IBuilderConfig.create_timing_cache",
    "IBuilderConfig.get_timing_cache",
    "IBuilderConfig.set_memory_pool_limit",
    "IBuilderConfig.set_timing_cache",
    "ICudaEngine.create_execution_context",
    "ICudaEngine.get_tensor_dtype",
    "ICudaEngine.get_tensor_mode",
    "ICudaEngine.get_tensor_name",
    "ICudaEngine.get_tensor_profile_shape",
    "ICudaEngine.get_tensor_shape",
    "ICudaEngine.num_io_tensors",
    "IExecutionContext.execute_async_v3",
    "IExecutionContext.get_tensor_shape",
    "IExecutionContext.set_input_shape",
    "IExecutionContext.set_tensor_address",
    "ILogger",
    "ILogger.Severity.ERROR",
    "INetworkDefinition.get_input",
    "INetworkDefinition.num_inputs",
    "IOptimizationProfile.set_shape",
    "ITensor.name",
    "ITensor.shape",
    "ITimingCache.combine",
    "ITimingCache.serialize",
    "MemoryPoolType.WORKSPACE",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "OnnxParser",
    "OnnxParser.get_error",
    "OnnxParser.num_errors",
    "OnnxParser.parse",
    "ParserError.code",
    "ParserError.desc",
    "ParserError.file",
    "ParserError.func",
    "ParserError.line",
    "ParserError.node",
    "ParserError.node_name",
    "ParserError.node_operator",
    "Runtime",
    "Runtime.deserialize_cuda_engine",
    "Runtime.engine_host_code_allowed",
    "TensorIOMode.INPUT",
    "__version__",
)
"""All that hwnas uses of TensorRT: a test holds this list to the code and to the bindings."""

TRT_OPTIONAL_NAMES = (
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IExecutionContext.is_stream_capturable",
)
"""Used where they exist: TensorRT for RTX has them, TensorRT does not."""

_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""Where the API is looked for; the last is what the bindings' own wheel installs."""

_OLDEST, _TOO_NEW = (10, 3), (12,)
"""Versions of `tensorrt` that are served; `tensorrt_rtx` counts from 1 and is served from 1.4."""

_OLDEST_RTX = (1, 4)

_INSTALL = 'install it: pip install "hwnas[tensorrt]", or "hwnas[tensorrt-rtx]" for RTX GPUs'

_logger = logging.getLogger(__name__)


def trt_module() -> ModuleType:
    """Return TensorRT's module, or else the one of TensorRT for RTX.

    Raises:
        MissingDependencyError: Neither is installed, or it is of a version that is not served.
        TargetError: It is installed, but its libraries cannot be loaded.
    """
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == name:
                continue
            raise _unloadable(name, error) from error
        except (ImportError, OSError) as error:
            raise _unloadable(name, error) from error
        _check_version(module)
        return module
    raise MissingDependencyError("TensorRT is not installed", hint=_INSTALL)


def is_rtx(trt: ModuleType) -> bool:
    """Tell whether a module is TensorRT for RTX, which can build engines without a GPU."""
    return "tensorrt_rtx" in trt.__name__


def tensorrt_version() -> str:
    """Return kind and version of the TensorRT that is used, e.g. `tensorrt 11.4.0.106`.

    Raises:
        MissingDependencyError: None is installed.
        TargetError: It cannot be loaded.
    """
    trt = trt_module()
    return f"{'tensorrt_rtx' if is_rtx(trt) else 'tensorrt'} {trt.__version__}"


def error_log(trt: Any) -> Any:
    """Return a logger for TensorRT that keeps its errors, in a list `errors`.

    Everything goes to Python's logging as well, at the level debug: the errors come back in an
    exception, and the rest is of use only to someone who looks for trouble.
    """

    class ErrorLog(trt.ILogger):  # type: ignore[misc]  # a class that only a run knows
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:  # the graver, the smaller
                self.errors.append(message)
            _logger.debug("%s: %s", severity, message)

    return ErrorLog()


def _unloadable(name: str, error: Exception) -> TargetError:
    package = name.removesuffix("_bindings").replace("_", "-")
    return TargetError(
        f"{name} is installed, but cannot be loaded: {error}",
        hint="its libraries must be of the same version, and on a board they come with the system: "
        f"pip install --force-reinstall {package}",
    )


def _check_version(module: ModuleType) -> None:
    version = tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:2])
    served = version >= _OLDEST_RTX if is_rtx(module) else _OLDEST <= version < _TOO_NEW
    if not served:
        raise MissingDependencyError(
            f"{module.__name__} {module.__version__} is installed, but hwnas needs "
            "tensorrt>=10.3,<12 or tensorrt_rtx>=1.4",
            hint=_INSTALL,
        )
