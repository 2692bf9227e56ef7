"""OpenVINO on the CPU: latency of an ONNX model, and the nodes of OpenVINO's own counters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from hwnas.core.errors import ExportError
from hwnas_export.openvino_runner import import_openvino
from hwnas_profilers.breakdown.inputs import feed_text, fix_shapes, inputs_of, random_feed
from hwnas_profilers.breakdown.measure import profiled_calls, timed_us
from hwnas_profilers.breakdown.model import onnx_model, read_onnx
from hwnas_profilers.breakdown.values import NodeTiming, ProfiledModel, shape_text

if TYPE_CHECKING:
    from hwnas.core.progress import Progress
    from hwnas_profilers.breakdown.model import ModelSource
    from hwnas_profilers.timing import TimingSettings

_NO_WORK = {"Parameter", "Result", "Constant"}
_MERGED = "undef"
"""What OpenVINO gives for the kernel of a node that it merged into another."""


def profile_model(source: ModelSource, **arguments: Any) -> ProfiledModel:
    """Time a model in fp32, then profile it. See `measure_breakdown`."""
    return _profile_model(source, "f32", **arguments)


def profile_model_bf16(source: ModelSource, **arguments: Any) -> ProfiledModel:
    """Time a model in bf16, then profile it. See `measure_breakdown`."""
    return _profile_model(source, "bf16", **arguments)


def _profile_model(
    source: ModelSource,
    precision: str,
    *,
    input_shape: tuple[int, ...] | None,
    threads: int,
    batch: int,
    settings: TimingSettings,
    progress: Progress,
) -> ProfiledModel:
    ov: Any = import_openvino()

    model = onnx_model(source, input_shape, batch)
    proto = onnx.load_from_string(model) if isinstance(model, bytes) else read_onnx(Path(model))
    inputs = inputs_of(proto)
    shapes = fix_shapes(inputs, input_shape=input_shape, batch=batch)
    feed = random_feed(inputs, shapes, seed=settings.seed)
    core = ov.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }

    def request(*, counting: bool) -> tuple[Any, Any]:
        try:
            network = core.read_model(model)
            network.reshape(
                {one.name: list(shape) for one, shape in zip(inputs, shapes, strict=True)}
            )
            compiled = core.compile_model(network, "CPU", options | {"PERF_COUNT": counting})
            made = compiled.create_infer_request()
            made.infer(feed)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ExportError(f"OpenVINO rejects {source.name}: {reason}") from error
        return compiled, made

    _, timed = request(counting=False)
    samples_us = timed_us(lambda: timed.infer(feed, share_inputs=True), settings, progress)
    compiled, counted = request(counting=True)
    calls = profiled_calls(settings, nodes=1, latency_us=float(np.median(samples_us)))
    with progress.task("profiling", calls) as task:
        for _ in range(calls):
            counted.infer(feed, share_inputs=True)
            task.advance()
    shapes_of = {
        node.get_friendly_name(): shape_text(node.get_output_shape(0))
        for node in compiled.get_runtime_model().get_ordered_ops()
        if node.get_output_size() and node.get_output_partial_shape(0).is_static
    }
    nodes = [
        NodeTiming(
            name=record.node_name,
            op_type=record.node_type,
            kind=record.node_type,
            provider=record.exec_type,
            shape_out=shapes_of.get(record.node_name, ""),
            profiled_us=record.real_time.total_seconds() * 1e6,
        )
        for record in counted.profiling_info
        if record.node_type not in _NO_WORK and record.exec_type != _MERGED
    ]
    return ProfiledModel(
        runtime=f"openvino {ov.__version__.partition('-')[0]}",
        inputs=feed_text(feed),
        samples_us=samples_us,
        calls=calls,
        call_us=None,
        nodes=nodes,
        remark="OpenVINO counts whole microseconds of each node's mean: shorter nodes read 0",
    )
