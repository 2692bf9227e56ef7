"""Targets: what can be profiled here, what cannot and why, and the runners of those that can.

Looking is cheap and safe: packages are found without importing them, and no device is touched.
"""

from __future__ import annotations

import ctypes.util
import functools
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.environment import package_version
from hwnas.core.errors import ExportError, TargetError, nearest
from hwnas.core.threads import torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import onnx

    from hwnas_export.runner import Runner
    from hwnas_profilers.workload import Workload

_EXPORT_CHUNK = 16
"""Modules exported in one trace: most of its gain, at a small share of the memory of all."""

_NOT_YET = "this version of hwnas cannot profile it yet"
_NO_DRIVER = "no NVIDIA driver here (libcuda is not found)"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStatus:
    """Whether a target can be used here.

    Attributes:
        name: The target, or a package that targets need.
        usable: Whether hwnas can profile on it here and now.
        implemented: Whether this version of hwnas could at all.
        version: Version of the package behind it; empty where it is not installed.
        reason: Why it is not usable; empty where it is.
        fix: What would make it usable; empty where nothing is needed, or nothing would.
    """

    name: str
    usable: bool
    implemented: bool
    version: str
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """How a target is looked for, and run.

    Attributes:
        package: Distribution that it needs; empty for none.
        install: How to get it.
        needs_nvidia: Whether it needs an NVIDIA driver.
        needs_program: Program that it needs; empty for none.
        wrong_build: What the version of a build without CUDA holds; empty where all will do.
        runners: Compiles workloads; None where hwnas does not run it yet.
    """

    package: str = ""
    install: str = ""
    needs_nvidia: bool = False
    needs_program: str = ""
    wrong_build: str = ""
    runners: Callable[[Sequence[Workload], int], Iterator[Runner]] | None = None


def target_statuses() -> tuple[TargetStatus, ...]:
    """Return the status of every target that hwnas knows of, the usable ones first."""
    return tuple(_status(name, target) for name, target in _TARGETS.items())


def target_names() -> tuple[str, ...]:
    """Return the names of the targets that this version of hwnas can profile."""
    return tuple(name for name, target in _TARGETS.items() if target.runners is not None)


def require_target(name: str) -> TargetStatus:
    """Return a target's status, once it is sure to be usable.

    Raises:
        TargetError: It is unknown, or cannot be used here.
    """
    scheme = name.partition("://")[0]  # `ssh://board/tensorrt` names a board and what it runs
    if scheme not in _TARGETS:
        similar = nearest(name, _TARGETS)
        known = f"known: {', '.join(target_names())}"
        hint = f"did you mean `{similar[0]}`? {known}" if similar else known
        raise TargetError(f"there is no target `{name}`", hint=hint)
    status = _status(name, _TARGETS[scheme])
    if not status.usable:
        raise TargetError(f"target `{name}` cannot be used here: {status.reason}", hint=status.fix)
    return status


def runners_for(target: str, workloads: Sequence[Workload], *, threads: int) -> Iterator[Runner]:
    """Compile workloads for a target, one after the other.

    Args:
        target: Name of the target.
        workloads: What to compile; each is built only when its turn comes.
        threads: Threads within an operator. For `torch-cpu`, where the number belongs to the whole
            process, it holds inside of `threads_of` only.

    Returns:
        One runner per workload, in order, not yet active.

    Raises:
        TargetError: The target is unknown, or cannot be used here.
        ExportError: A workload cannot be compiled; raised when its turn comes.
    """
    require_target(target)
    runners = _TARGETS[target].runners
    assert runners is not None  # usable
    return runners(workloads, threads)


@contextmanager
def threads_of(target: str, threads: int) -> Iterator[None]:
    """Hold a process-wide number of threads while a target runs, and give the old one back."""
    if target != "torch-cpu":  # ONNX Runtime's belongs to the compiled session
        yield
        return
    with torch_threads(threads):
        yield


def _onnxruntime_runners(workloads: Sequence[Workload], threads: int) -> Iterator[Runner]:
    from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner

    for begin in range(0, len(workloads), _EXPORT_CHUNK):
        for model in _onnx_from_workloads(workloads[begin : begin + _EXPORT_CHUNK]):
            yield OnnxRuntimeRunner(model.SerializeToString(), threads=threads)


def _onnx_from_workloads(workloads: Sequence[Workload]) -> list[onnx.ModelProto]:
    from hwnas_export.onnx_export import onnx_from_module, onnx_from_modules

    modules = [workload.build() for workload in workloads]
    try:
        return onnx_from_modules(modules, [workload.input_shape for workload in workloads])
    except ExportError:
        # The error of the joined export does not say whose it is. Alone, each says so.
        models = []
        for workload, module in zip(workloads, modules, strict=True):
            try:
                models.append(onnx_from_module(module, workload.input_shape))
            except ExportError as error:
                raise ExportError(f"{workload.name}: {error.message}", hint=error.hint) from error
        return models


def _torch_runners(workloads: Sequence[Workload], threads: int) -> Iterator[Runner]:
    from hwnas_export.torch_runner import TorchRunner

    del threads  # see `threads_of`
    for workload in workloads:
        yield TorchRunner(workload.build(), workload.input_shape)


def _status(name: str, target: _Target) -> TargetStatus:
    version = package_version(target.package) if target.package else ""
    reasons, fixes = [], []
    if target.runners is None:
        reasons.append(_NOT_YET)
    if target.package and not version:
        reasons.append(f"the package {target.package} is not installed")
        fixes.append(f"install it: {target.install}")
    elif target.wrong_build and target.wrong_build in version:
        reasons.append(f"{target.package} {version} is a build without CUDA")
        fixes.append(f"install another build: {target.install}")
    if target.needs_nvidia and not _has_nvidia_driver():
        reasons.append(_NO_DRIVER)
        fixes.append("use a machine with an NVIDIA GPU and driver")
    if target.needs_program and shutil.which(target.needs_program) is None:
        reasons.append(f"the program `{target.needs_program}` is not installed")
        fixes.append(f"install `{target.needs_program}` with the system's package manager")
    if target.runners is None:
        # Whatever is installed, it stays unusable until hwnas learns it: do not send people off.
        later = f"; a later version will need: {'; '.join(fixes)}" if fixes else ""
        fixes = [f"profile on {' or '.join(target_names())} for now{later}"]
    return TargetStatus(
        name=name,
        usable=not reasons,
        implemented=target.runners is not None,
        version=version,
        reason="; ".join(reasons),
        fix="; ".join(fixes),
    )


@functools.cache
def _has_nvidia_driver() -> bool:
    return any(ctypes.util.find_library(name) for name in ("cuda", "nvcuda"))


_TARGETS: dict[str, _Target] = {
    "onnxruntime-cpu": _Target(
        package="onnxruntime", install="pip install onnxruntime", runners=_onnxruntime_runners
    ),
    "torch-cpu": _Target(package="torch", install="pip install torch", runners=_torch_runners),
    "onnxruntime-cuda": _Target(
        package="onnxruntime-gpu", install="pip install onnxruntime-gpu", needs_nvidia=True
    ),
    "torch-cuda": _Target(
        package="torch",
        install="a CUDA build of torch, see https://pytorch.org/get-started/locally",
        needs_nvidia=True,
        wrong_build="+cpu",
    ),
    "tensorrt": _Target(
        package="tensorrt", install='pip install "hwnas[tensorrt]"', needs_nvidia=True
    ),
    "tensorrt-rtx": _Target(
        package="tensorrt-rtx", install="pip install tensorrt-rtx", needs_nvidia=True
    ),
    "pycuda": _Target(package="pycuda", install='pip install "hwnas[tensorrt]"', needs_nvidia=True),
    "openvino-cpu": _Target(package="openvino", install="pip install openvino"),
    "ssh": _Target(needs_program="ssh"),
}
