"""ONNX -> TensorRT engines, by TensorRT or by TensorRT for RTX.

The network is strongly typed: each operator computes in the type that the ONNX file gives it, so
the precision is `hwnas_export.precision`'s doing, in every version. TF32 is off, since it would
make `fp32` mean something else on newer GPUs.

An engine is native code for one device and version, and its bytes differ from build to build: send
ONNX files to other machines, not engines, and deserialize none that you did not build.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwnas.core.errors import ConfigError, ExportError, TargetError, nearest
from hwnas_export.cuda_driver import cuda_driver
from hwnas_export.tensorrt_api import error_log, is_rtx, trt_module
from hwnas_export.tensorrt_timing_cache import read_timing_cache, write_timing_cache

if TYPE_CHECKING:
    from pathlib import Path

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How an engine is built.

    Attributes:
        optimization_level: 0 to 5: how long TensorRT looks for faster kernels. 3 is its own
            default.
        batches: Smallest, most frequent and largest batch, for a model that leaves it open; kernels
            are chosen for the second.
        compute_capabilities: GPUs to build for, e.g. ("8.6", "8.9"), on a machine that need not
            have one. TensorRT for RTX alone can. Empty for the GPU that is here, or, without one,
            for those that TensorRT for RTX takes by default (8.0 and newer).
        workspace_mib: Most memory that a kernel may take to work in; None for all that there is.

    Raises:
        ConfigError: One of them is out of range.
    """

    optimization_level: int = 3
    batches: tuple[int, int, int] = (1, 8, 64)
    compute_capabilities: tuple[str, ...] = ()
    workspace_mib: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.optimization_level <= 5:
            raise ConfigError(
                f"the optimization level is one of 0 to 5, not {self.optimization_level}"
            )
        if not 1 <= self.batches[0] <= self.batches[1] <= self.batches[2]:
            raise ConfigError(
                f"batches must be positive and in order, not {self.batches}",
                hint="name the smallest, the most frequent and the largest",
            )
        for each in self.compute_capabilities:
            if not re.fullmatch(r"\d{1,2}\.\d", each):
                raise ConfigError(
                    f"`{each}` is no compute capability",
                    hint='write it like "8.9"; NVIDIA lists them: developer.nvidia.com/cuda-gpus',
                )
        if len(set(self.compute_capabilities)) != len(self.compute_capabilities):
            raise ConfigError(f"a compute capability is named twice: {self.compute_capabilities}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ConfigError(f"a workspace of {self.workspace_mib} MiB holds nothing")


DEFAULT_SETTINGS = EngineSettings()


def engine_from_onnx(
    model: bytes,
    *,
    settings: EngineSettings = DEFAULT_SETTINGS,
    timing_cache: Path | None = None,
) -> bytes:
    """Build an engine.

    Args:
        model: The serialized ONNX model, in the precision that the engine is to have.
        settings: How to build it.
        timing_cache: File of kernel timings, read before and written after; made where there is
            none. TensorRT for RTX, which chooses kernels on the user's device, leaves it alone.

    Returns:
        The serialized engine.

    Raises:
        MissingDependencyError: TensorRT is not installed.
        TargetError: There is no GPU; TensorRT for RTX needs none.
        ExportError: The model is not one that TensorRT can build: its own words are in it.
        InputFileError: The timing cache cannot be read or written.
    """
    trt = trt_module()
    if not is_rtx(trt):
        cuda_driver()
    log = error_log(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # what its bindings make of a builder that could not be made
        raise TargetError(f"TensorRT cannot start here: {_words(log)}") from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        raise ExportError(f"TensorRT cannot parse the model: {_parser_errors(parser)}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.builder_optimization_level = settings.optimization_level
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    _add_profile(builder, network, config, settings.batches)
    if settings.compute_capabilities:
        _set_compute_capabilities(trt, config, settings.compute_capabilities)
    tuned = timing_cache is not None and not is_rtx(trt)
    owner, before = "", b""
    if timing_cache is not None and tuned:
        owner = timing_cache_owner(trt.__version__)
        before = read_timing_cache(timing_cache, owner)
        _use_timing_cache(config, before, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        limit = settings.workspace_mib
        raise ExportError(
            f"TensorRT cannot build the model: {_words(log)}",
            hint=f"its kernels may take {limit} MiB to work in: allow more" if limit else "",
        )
    if timing_cache is not None and tuned:
        _keep_timing_cache(config, before, timing_cache, owner)
    return bytes(plan)


def timing_cache_owner(version: str) -> str:
    """Return what a timing cache belongs to: TensorRT's version and the GPU that is here."""
    device = cuda_driver().device()
    major, minor = device.compute_capability
    return f"TensorRT {version} on {device.name} (compute capability {major}.{minor})"


def _add_profile(builder: Any, network: Any, config: Any, batches: tuple[int, int, int]) -> None:
    """Say what batches to expect, where the model leaves them open."""
    profile = None
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        batch, *rest = tuple(tensor.shape)
        if min(rest, default=1) < 0:
            raise ExportError(
                f"input `{tensor.name}` leaves more than its batch open: {(batch, *rest)}"
            )
        if batch >= 0:
            continue
        profile = profile or builder.create_optimization_profile()
        profile.set_shape(tensor.name, *((size, *rest) for size in batches))
    if profile is not None and config.add_optimization_profile(profile) < 0:
        raise ExportError(f"TensorRT refuses the batches {batches}")


def _set_compute_capabilities(trt: Any, config: Any, capabilities: tuple[str, ...]) -> None:
    """Build for GPUs that need not be here."""
    kinds = getattr(trt, "ComputeCapability", None)
    if kinds is None:
        raise ExportError(
            "TensorRT builds for the GPU at hand alone",
            hint="build on the device itself, or with TensorRT for RTX: pip install tensorrt-rtx",
        )
    members = kinds.__members__.items()
    known = {f"{name[2:-1]}.{name[-1]}": kind for name, kind in members if name.startswith("SM")}
    unknown = [each for each in capabilities if each not in known]
    if unknown:
        raise ExportError(
            f"TensorRT for RTX does not build for compute capability {', '.join(unknown)}",
            hint=f"did you mean {', '.join(nearest(unknown[0], known)) or 'another'}? "
            f"it knows: {', '.join(known)}",
        )
    config.num_compute_capabilities = len(capabilities)
    for index, each in enumerate(capabilities):
        if not config.set_compute_capability(known[each], index):
            raise ExportError(f"TensorRT for RTX refuses compute capability {each}")


def _use_timing_cache(config: Any, content: bytes, path: Path) -> None:
    cache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, False):
        return
    # Of the same GPU and version as far as we can tell, but not as far as TensorRT can.
    _logger.warning("TensorRT does not take the timing cache %s: not used, and overwritten", path)
    config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep_timing_cache(config: Any, before: bytes, path: Path, owner: str) -> None:
    """Write the cache, together with what another process wrote meanwhile."""
    cache = config.get_timing_cache()
    latest = read_timing_cache(path, owner)
    if latest and latest != before:
        cache.combine(config.create_timing_cache(latest), False)
    content = bytes(cache.serialize())
    if content != latest:
        write_timing_cache(path, owner, content)


def _parser_errors(parser: Any) -> str:
    """Return all that the parser has to say: what, at which node, and where in its source."""
    lines = []
    for index in range(parser.num_errors):
        finding = parser.get_error(index)
        kind = finding.node_operator()
        node = f"node {finding.node()} `{finding.node_name()}` ({kind}): " if kind else ""
        where = f"{finding.func()}, {finding.file()}:{finding.line()}, {finding.code()}"
        lines.append(f"{node}{finding.desc()} [{where}]")
    return "\n  ".join(lines) or "it does not say why"


def _words(log: Any) -> str:
    """Return the errors that TensorRT logged, without the repeated ones."""
    return "\n  ".join(dict.fromkeys(log.errors)) or "it does not say why"
