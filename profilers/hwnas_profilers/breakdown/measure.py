"""Where the time of any model goes: its latency, split over the operators that the runtime made.

Two measurements, as neither can do the other's work. The latency of a call is timed with profiling
off, as everything in hwnas is. The runtime's own profile says how the time is spread over the
operators *after* its fusions; but a profiled call is slower (up to 2.3 times was seen for ONNX
Runtime), so it serves for shares only. A node's latency is its share of the latency of a call.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from typing import TYPE_CHECKING

from hwnas.core.errors import ExportError, TargetError
from hwnas.core.progress import SILENT
from hwnas_export.runner import host_sampler
from hwnas_profilers.breakdown.values import Breakdown, NodeLatency, SlowNode, TypeLatency
from hwnas_profilers.statistics import summarize
from hwnas_profilers.targets import require_target
from hwnas_profilers.timing import time_interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from hwnas.core.progress import Progress
    from hwnas_profilers.breakdown.model import ModelSource
    from hwnas_profilers.breakdown.values import ProfiledModel
    from hwnas_profilers.timing import TimingSettings

SLOWEST = 10
"""Nodes that a breakdown lists as its slowest."""

_MAX_PROFILED_RECORDS = 100_000
_MAX_PROFILED_SECONDS = 10.0
_MIN_PROFILED_CALLS = 20


_PROFILES = {
    "onnxruntime-cpu": "hwnas_profilers.breakdown.with_onnxruntime:profile_model",
    "torch-cpu": "hwnas_profilers.breakdown.with_torch:profile_model",
    "openvino-cpu": "hwnas_profilers.breakdown.with_openvino:profile_model",
    "openvino-cpu-bf16": "hwnas_profilers.breakdown.with_openvino:profile_model_bf16",
}

_LAUNCHES = "on a GPU its profile tells when operators were launched, not how long they ran"
_NVIDIA_TOOL = "ask the runtime: trtexec --onnx=MODEL --dumpProfile --separateProfileRun"
_REFUSED = {
    "onnxruntime-cpu-int8": (
        "a model is run as it is, and quantizing it is a step of its own",
        "quantize it (onnxruntime.quantization.quantize_static), then break that model down on "
        "onnxruntime-cpu",
    ),
    "onnxruntime-cpu-fp16": (
        "a model is run as it is, and converting it is a step of its own",
        "convert it (onnxconverter_common.float16), then break that model down on onnxruntime-cpu",
    ),
    "onnxruntime-cuda": (_LAUNCHES, ""),
    "onnxruntime-cuda-fp16": (_LAUNCHES, ""),
    "torch-cpu-bf16": (
        "a model is run as it is, and converting it is a step of its own",
        "let the callable return a module of fp32 and use torch-cpu",
    ),
    "torch-cuda": (_LAUNCHES, "use torch.profiler with ProfilerActivity.CUDA"),
    "torch-cuda-fp16": (_LAUNCHES, "use torch.profiler with ProfilerActivity.CUDA"),
    "torch-cuda-bf16": (_LAUNCHES, "use torch.profiler with ProfilerActivity.CUDA"),
    "tensorrt-fp32": ("its layers are not read by this version of hwnas", _NVIDIA_TOOL),
    "tensorrt-fp16": ("its layers are not read by this version of hwnas", _NVIDIA_TOOL),
    "tensorrt-int8": ("its layers are not read by this version of hwnas", _NVIDIA_TOOL),
}
"""Why a target gives no breakdown, and what does instead."""


def require_breakdown_target(target: str) -> None:
    """Make sure that a target can be used here, and gives times of single nodes.

    Raises:
        TargetError: It cannot, or does not.
    """
    instead = f"a breakdown can be had on {', '.join(_PROFILES)}"
    if target in _REFUSED:
        reason, way_out = _REFUSED[target]
        raise TargetError(
            f"target `{target}` gives no breakdown: {reason}",
            hint=f"{way_out}; {instead}" if way_out else instead,
        )
    require_target(target)
    if "://" in target:
        raise TargetError(
            f"target `{target}` gives no breakdown: it is taken on the machine that runs hwnas",
            hint="install hwnas on the board and run the command there",
        )
    if target not in _PROFILES:
        raise TargetError(f"target `{target}` gives no times of single operators", hint=instead)


def measure_breakdown(
    source: ModelSource,
    target: str,
    *,
    input_shape: tuple[int, ...] | None = None,
    threads: int = 1,
    batch: int = 1,
    settings: TimingSettings,
    progress: Progress = SILENT,
) -> Breakdown:
    """Time a model, and split its latency over its nodes.

    Args:
        source: The model.
        target: Where to run it.
        input_shape: Shape of its input, where the model leaves it open.
        threads: Threads within an operator.
        batch: Images per call, where the model leaves it open.
        settings: How long to time. As many calls are profiled as it takes samples at most, fewer
            of a model of very many nodes or a very slow one, never fewer than 20.
        progress: Where to report.

    Raises:
        TargetError: The target cannot be used here, or gives no times of single nodes.
        ConfigError: The model's inputs are open or cannot be made up, or do not fit what was given.
        ExportError: The runtime rejects the model.
    """
    require_breakdown_target(target)
    module, _, function = _PROFILES[target].partition(":")
    profile_model = getattr(importlib.import_module(module), function)
    found: ProfiledModel = profile_model(
        source,
        input_shape=input_shape,
        threads=threads,
        batch=batch,
        settings=settings,
        progress=progress,
    )
    breakdown = breakdown_from_profile(found, model=source.name, target=target, threads=threads)
    excess = breakdown.profiled_sum_us / breakdown.latency_us - 1
    progress.say(
        f"{source.name}: a call takes {breakdown.latency_us:.4g} us; in the profile its nodes sum "
        f"to {breakdown.profiled_sum_us:.4g} us ({100 * excess:+.0f} %), which gives the shares"
    )
    return breakdown


def breakdown_from_profile(
    found: ProfiledModel, *, model: str, target: str, threads: int
) -> Breakdown:
    """Split the latency of a call by the nodes' shares of the profile.

    Raises:
        ExportError: The profile names no node, or no time.
    """
    total = sum(node.profiled_us for node in found.nodes)
    if not total > 0:
        raise ExportError(f"the profile of {model} on {target} tells no node's time")
    statistics = summarize(found.samples_us)
    nodes, cumulative = [], 0.0
    for index, node in enumerate(found.nodes):
        share = node.profiled_us / total
        cumulative += share
        nodes.append(
            NodeLatency(
                index=index,
                node=node,
                share_percent=100 * share,
                latency_us=share * statistics.median_us,
                cumulative_percent=100 * cumulative,
            )
        )
    return Breakdown(
        model=model,
        target=target,
        runtime=found.runtime,
        inputs=found.inputs,
        threads=threads,
        latency_us=statistics.median_us,
        low_us=statistics.low_us,
        high_us=statistics.high_us,
        n=statistics.n,
        profiled_calls=found.calls,
        profiled_call_us=found.call_us,
        profiled_sum_us=total,
        macs=_sum_of_known(node.macs for node in found.nodes),
        weights_bytes=_sum_of_known(node.weights_bytes for node in found.nodes),
        remark=found.remark,
        by_type=_by_type(nodes),
        slowest=_slowest(nodes),
        nodes=tuple(nodes),
    )


def timed_us(
    call: Callable[[], object], settings: TimingSettings, progress: Progress
) -> NDArray[np.float64]:
    """Time a call as everything in hwnas is timed; microseconds per call, (n,)."""
    (timed,) = time_interleaved([host_sampler(call)], settings, progress=progress)
    return timed.samples_us


def profiled_calls(settings: TimingSettings, *, nodes: int, latency_us: float) -> int:
    """Return how many calls to profile: a profile of everything would fill the memory.

    Args:
        settings: As many as it takes samples at most, if that is not too much.
        nodes: Records that each call makes.
        latency_us: Latency of a call.
    """
    by_memory = _MAX_PROFILED_RECORDS // max(nodes, 1)
    by_time = _MAX_PROFILED_SECONDS * 1e6 / max(latency_us, 1e-3)
    return max(_MIN_PROFILED_CALLS, min(settings.max_samples, by_memory, int(by_time)))


def _by_type(rows: Sequence[NodeLatency]) -> tuple[TypeLatency, ...]:
    groups: dict[str, list[NodeLatency]] = defaultdict(list)
    for row in rows:
        groups[row.node.kind].append(row)
    kinds = (
        TypeLatency(
            kind=kind,
            nodes=len(members),
            share_percent=sum(row.share_percent for row in members),
            latency_us=sum(row.latency_us for row in members),
            macs=_sum_of_known(row.node.macs for row in members),
        )
        for kind, members in groups.items()
    )
    return tuple(sorted(kinds, key=lambda kind: -kind.latency_us))


def _slowest(rows: Sequence[NodeLatency]) -> tuple[SlowNode, ...]:
    slowest, cumulative = [], 0.0
    for row in sorted(rows, key=lambda row: -row.latency_us)[:SLOWEST]:
        cumulative += row.share_percent
        slowest.append(
            SlowNode(
                index=row.index,
                name=row.node.name,
                kind=row.node.kind,
                fused=row.node.fused,
                shape_in=row.node.shape_in,
                shape_out=row.node.shape_out,
                latency_us=row.latency_us,
                share_percent=row.share_percent,
                cumulative_percent=cumulative,
            )
        )
    return tuple(slowest)


def _sum_of_known(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
