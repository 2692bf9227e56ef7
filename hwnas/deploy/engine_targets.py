"""Targets as engines are made for them: from which model, beside which other target."""

from __future__ import annotations

from hwnas.core.environment import package_version
from hwnas.core.errors import TargetError
from hwnas_profilers.targets import RUNTIMES, parse_target, require_target


def model_precision(target: str) -> str:
    """Return the precision of the ONNX model that a target takes.

    >>> model_precision("onnxruntime-cpu-int8"), model_precision("openvino-cpu-bf16")
    ('int8', 'fp32')
    """
    precision = RUNTIMES[target].precision
    return "fp32" if precision == "bf16" else precision


def fp32_target(target: str) -> str:
    """Return the target of the same runtime and device in FP32.

    >>> fp32_target("tensorrt-int8")
    'tensorrt-fp32'
    """
    own = RUNTIMES[target]
    return next(
        name
        for name, runtime in RUNTIMES.items()
        if (runtime.runner, runtime.device, runtime.precision) == (own.runner, own.device, "fp32")
    )


def check_buildable(target: str) -> bool:
    """Check that an engine can be made here, and tell whether it can run here too.

    Raises:
        TargetError: The target is unknown, not of this machine, takes no ONNX model, or cannot be
            used here.
        MissingDependencyError: It is TensorRT's, and TensorRT is not installed.
    """
    parsed = parse_target(target)
    if parsed.runtime.takes != "onnx" or parsed.destination:
        raise TargetError(
            f"no engine can be made for target `{target}`",
            hint="engines are made for ONNX runtimes of this machine: "
            + ", ".join(name for name, runtime in RUNTIMES.items() if runtime.takes == "onnx"),
        )
    try:
        require_target(target)
    except TargetError as error:
        if not is_tensorrt(target):
            raise
        from hwnas_export.tensorrt_api import is_rtx, trt_module

        if not is_rtx(trt_module()):
            raise TargetError(
                error.message,
                hint=f"{error.hint}; or build ahead of time: pip install tensorrt-rtx",
            ) from error
        return False
    return True


def has_sessions(target: str) -> bool:
    """Say whether a target's settings are chosen: a GPU's are fixed by how it is driven."""
    runtime = RUNTIMES[target]
    return runtime.runner.endswith(":OnnxRuntimeRunner") and runtime.device == "cpu"


def is_tensorrt(target: str) -> bool:
    """Say whether a target runs plans."""
    return RUNTIMES[target].runner.endswith(":TensorRTRunner")


def runtime_packages(target: str) -> dict[str, str]:
    """Return the versions of what a target needs; of TensorRT its own word on kind and version.

    Raises:
        MissingDependencyError: TensorRT is not installed.
    """
    if is_tensorrt(target):
        from hwnas_export.tensorrt_api import tensorrt_version

        name, _, version = tensorrt_version().partition(" ")
        found = {name: version, "pycuda": package_version("pycuda")}
    else:
        names = (name for each in RUNTIMES[target].packages for name in each.split("|"))
        found = {name: package_version(name) for name in names}
    return {name: version for name, version in found.items() if version}
