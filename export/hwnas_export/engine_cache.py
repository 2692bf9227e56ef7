"""A folder of TensorRT engines that were built before, so that the same one is not built again.

The key is what an engine follows from: the ONNX model, the settings, the GPU with its driver, and
TensorRT's kind and version. Never the engine itself, whose bytes differ from build to build. An
entry is a plan and a sidecar that says all of that and the plan's hash, which is checked before the
plan is given to anyone: to deserialize a plan is to run native code.
"""

from __future__ import annotations

import fcntl
import logging
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hwnas.core.artifacts import sha256_of, write_atomically
from hwnas.core.decoding import decode_json, encode_json
from hwnas.core.errors import ConfigError, InputFileError, TargetError
from hwnas_export.cuda_driver import cuda_driver

# Not for type checking alone: msgspec evaluates the annotations when it decodes.
from hwnas_export.tensorrt_api import is_rtx, tensorrt_version, trt_module
from hwnas_export.tensorrt_engine import EngineSettings, engine_from_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_logger = logging.getLogger(__name__)
_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedEngine:
    """The sidecar of a kept engine.

    Attributes:
        model_sha256: Hash of the ONNX model.
        settings: How it was built.
        device: What it was built on, or for.
        tensorrt: TensorRT's kind and version.
        plan_sha256: Hash of the plan.
        schema: Version of this layout.
    """

    model_sha256: str
    settings: EngineSettings
    device: str
    tensorrt: str
    plan_sha256: str = ""
    schema: int = _SCHEMA


def cached_engine(
    model: bytes,
    settings: EngineSettings,
    *,
    folder: Path,
    timing_cache: Path | None = None,
) -> bytes:
    """Return an engine from a folder, or build it and keep it there.

    Processes that want the same engine at once wait for the one that builds it.

    Args:
        model: As `engine_from_onnx`.
        settings: How it is, or was, built.
        folder: The cache; made where there is none. It may be deleted at any time.
        timing_cache: As `engine_from_onnx`; no part of the key, as it only hastens the build.

    Returns:
        The serialized engine. A kept one whose hash is another than its sidecar's, or whose sidecar
        is of another model, device or version than its name, is built anew, with a warning.

    Raises:
        MissingDependencyError: TensorRT is not installed.
        TargetError: There is no GPU; TensorRT for RTX needs none.
        ExportError: The model is not one that TensorRT can build.
        InputFileError: The folder cannot be read or written.
    """
    wanted = CachedEngine(
        model_sha256=sha256_of(model),
        settings=settings,
        device=engine_device(settings),
        tensorrt=tensorrt_version(),
    )
    key = sha256_of(encode_json(wanted))
    plan_file, sidecar = folder / f"{key}.plan", folder / f"{key}.json"
    with _alone(folder / f"{key}.lock"):
        plan = _kept(plan_file, sidecar, wanted)
        if plan is None:
            plan = engine_from_onnx(model, settings=settings, timing_cache=timing_cache)
            write_atomically(plan_file, plan)
            # Last: without it there is no entry, and with it the plan is there.
            entry = replace(wanted, plan_sha256=sha256_of(plan))
            write_atomically(sidecar, encode_json(entry, indent=2))
    return plan


def engine_device(settings: EngineSettings) -> str:
    """Return what an engine with these settings is built on, or, ahead of time, for.

    Raises:
        MissingDependencyError: TensorRT is not installed.
        TargetError: There is no GPU, and TensorRT cannot build without.
    """
    rtx = is_rtx(trt_module())
    if rtx and settings.compute_capabilities:
        return f"compute capability {', '.join(sorted(settings.compute_capabilities))}"
    try:
        device = cuda_driver().device()
    except TargetError:
        if not rtx:
            raise
        return "compute capabilities that TensorRT for RTX takes by default"
    major, minor = device.compute_capability
    return (
        f"{device.name}, compute capability {major}.{minor}, driver for CUDA {device.driver_cuda}"
    )


def _kept(plan_file: Path, sidecar: Path, wanted: CachedEngine) -> bytes | None:
    """Return the plan of an entry; None where there is none that can be relied on."""
    content = _content(sidecar)
    if content is None:
        return None
    try:
        entry = decode_json(content, CachedEngine, source=str(sidecar))
    except ConfigError as error:
        _logger.warning("%s: the engine is built anew", error.message)
        return None
    if replace(entry, plan_sha256="") != wanted:
        _logger.warning("%s is of another engine than its name: it is built anew", sidecar)
        return None
    plan = _content(plan_file)
    if plan is None:
        _logger.warning("%s is missing: the engine is built anew", plan_file)
        return None
    if sha256_of(plan) != entry.plan_sha256:
        _logger.warning("%s is not what its sidecar describes: it is built anew", plan_file)
        return None
    return plan


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes waiting until this one is done with an entry."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise InputFileError(
            f"{path.parent} cannot be written: {error.strerror}",
            hint="name a folder that can: it holds engines that were built before",
        ) from error
    with file:
        with suppress(OSError):  # not every file system has locks: then two may build at once
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
