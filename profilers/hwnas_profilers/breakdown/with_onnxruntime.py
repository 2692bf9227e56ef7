"""ONNX Runtime on the CPU: latency of any ONNX model, and the nodes of its own profile."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort

from hwnas.core.errors import ExportError
from hwnas_profilers.breakdown.graph import RuntimeGraph
from hwnas_profilers.breakdown.inputs import feed_text, fix_shapes, inputs_of, random_feed
from hwnas_profilers.breakdown.measure import profiled_calls, timed_us
from hwnas_profilers.breakdown.model import onnx_model, read_onnx
from hwnas_profilers.breakdown.values import NodeTiming, ProfiledModel, shape_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hwnas.core.progress import Progress
    from hwnas_profilers.breakdown.graph import Shape
    from hwnas_profilers.breakdown.model import ModelSource
    from hwnas_profilers.timing import TimingSettings

    Feed = dict[str, NDArray[np.generic]]

_KERNEL = "_kernel_time"
_CALL = "model_run"
_PADDED = "com.microsoft.nchwc"
"""Domain of operators on blocks of channels."""

_NESTING = {"If", "Loop", "Scan", "SequenceMap"}
"""Operators that run graphs of their own: their time holds that of the nodes inside."""


class _Arguments(msgspec.Struct):
    op_name: str = ""
    provider: str = ""
    node_index: str = ""
    input_type_shape: list[dict[str, list[int]]] = []
    output_type_shape: list[dict[str, list[int]]] = []


class _Event(msgspec.Struct):
    """One record of ONNX Runtime's profile; times in whole microseconds, cut off."""

    name: str
    cat: str = ""
    ts: int = 0
    dur: int = 0
    args: _Arguments = msgspec.field(default_factory=_Arguments)


def profile_model(
    source: ModelSource,
    *,
    input_shape: tuple[int, ...] | None,
    threads: int,
    batch: int,
    settings: TimingSettings,
    progress: Progress,
) -> ProfiledModel:
    """Time a model, then profile it. See `measure_breakdown`."""
    model = onnx_model(source, input_shape, batch)
    proto = onnx.load_from_string(model) if isinstance(model, bytes) else read_onnx(Path(model))
    inputs = inputs_of(proto)
    shapes = fix_shapes(inputs, input_shape=input_shape, batch=batch)
    feed = random_feed(inputs, shapes, seed=settings.seed)
    samples_us = _time(model, feed, source.name, threads, settings, progress)
    with tempfile.TemporaryDirectory(prefix="hwnas-profile-") as folder:
        events, graph = _profile(
            model,
            feed,
            source.name,
            Path(folder),
            threads=threads,
            calls=profiled_calls(
                settings, nodes=len(proto.graph.node), latency_us=float(np.median(samples_us))
            ),
            # The first call also takes memory and plans its use.
            dropped=max(1, settings.warmup_calls),
            progress=progress,
        )
    calls = _calls(events)[max(1, settings.warmup_calls) :]
    is_padded = any(node.domain == _PADDED for node in graph.nodes)
    return ProfiledModel(
        runtime=f"onnxruntime {ort.__version__}",
        inputs=feed_text(feed),
        samples_us=samples_us,
        calls=len(calls),
        call_us=median_of_truncated([_duration_of(call) for call in calls]),
        nodes=_nodes(calls, graph),
        remark="shapes and MACs are as run: ONNX Runtime pads channels to whole blocks"
        if is_padded
        else "",
    )


def median_of_truncated(durations: Sequence[int]) -> float:
    """Return the median of times that were cut off to whole units.

    A time of d stands for one from d up to d + 1. The median's own class is divided in proportion,
    as for any grouped data, so that the times of short nodes do not all read 0, 1 or 2.

    >>> median_of_truncated([1, 1, 2, 2])
    2.0
    >>> median_of_truncated([0, 0, 0, 0])
    0.5
    """
    values = np.asarray(durations)
    middle = int(np.sort(values)[(len(values) - 1) // 2])
    below = int((values < middle).sum())
    within = int((values == middle).sum())
    return middle + (len(values) / 2 - below) / within


def _session(
    model: str | bytes, name: str, threads: int, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """Compile a model with the settings that `OnnxRuntimeRunner` deploys with."""
    options = options or ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # fatal only: what is wrong is raised too
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime raises a class of its own for each of its status codes.
    except Exception as error:
        reason = _reason(error)
        newer = "a newer onnxruntime may take it: pip install --upgrade onnxruntime"
        raise ExportError(
            f"ONNX Runtime rejects {name}: {reason}",
            hint=f"export it with an older opset; {newer}" if "opset" in reason.lower() else "",
        ) from error


def _run(session: ort.InferenceSession, feed: Feed, name: str) -> None:
    try:
        session.run(None, feed)
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime cannot run {name} on made-up inputs: {_reason(error)}",
            hint="a model whose inputs must have certain values cannot be broken down",
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())


def _time(
    model: str | bytes,
    feed: Feed,
    name: str,
    threads: int,
    settings: TimingSettings,
    progress: Progress,
) -> NDArray[np.float64]:
    """Time calls with profiling off. The session is gone afterwards, and its threads with it."""
    session = _session(model, name, threads)
    _run(session, feed, name)
    run = session.run
    return timed_us(lambda: run(None, feed), settings, progress)


def _profile(
    model: str | bytes,
    feed: Feed,
    name: str,
    folder: Path,
    *,
    threads: int,
    calls: int,
    dropped: int,
    progress: Progress,
) -> tuple[list[_Event], RuntimeGraph]:
    """Profile calls, and save the graph that they ran."""
    optimized = folder / "optimized.onnx"
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(optimized)
    # Large weights go to a file of their own: a model must stay under 2 GiB, and is read for its
    # shapes only.
    prefix = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{prefix}_file_name", "weights.bin")
    options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "1024")
    session = _session(model, name, threads, options)
    with progress.task("profiling", calls) as task:
        for turn in range(dropped + calls):
            session.run(None, feed)
            if turn >= dropped:
                task.advance()
    written = Path(session.end_profiling())
    try:
        events = msgspec.json.decode(written.read_bytes(), type=list[_Event])
    except (OSError, msgspec.DecodeError, UnicodeError) as error:
        raise ExportError(f"ONNX Runtime's profile of {name} cannot be read: {error}") from error
    return events, RuntimeGraph(onnx.load(optimized, load_external_data=False))


def _calls(events: Sequence[_Event]) -> list[list[_Event]]:
    """Split a profile into calls: the nodes of each in order, and the call itself last.

    An event is written when it ends, so the nodes of an inner graph stand before the one whose
    graph it is, though they began later.
    """
    calls: list[list[_Event]] = []
    nodes: list[_Event] = []
    for event in events:
        if event.cat == "Session" and event.name == _CALL:
            calls.append([*nodes, event])
            nodes = []
        elif event.cat == "Node" and event.name.endswith(_KERNEL):
            if event.args.op_name in _NESTING:
                while nodes and nodes[-1].ts >= event.ts:
                    nodes.pop()
            nodes.append(event)
    return calls


def _duration_of(call: Sequence[_Event]) -> int:
    return call[-1].dur


def _nodes(calls: Sequence[Sequence[_Event]], graph: RuntimeGraph) -> list[NodeTiming]:
    """Sum up each node over all calls."""
    durations: dict[tuple[str, str], list[int]] = defaultdict(list)
    firsts: dict[tuple[str, str], _Event] = {}
    for call in calls:
        for event in call[:-1]:
            key = event.name, event.args.node_index
            durations[key].append(event.dur)
            firsts.setdefault(key, event)
    names = [event.name.removesuffix(_KERNEL) for event in firsts.values()]
    executed = [
        (name, event.args.op_name) for name, event in zip(names, firsts.values(), strict=True)
    ]
    nodes = []
    # A node that is not in every call, as of a branch within a branch, counts for the share of
    # calls that it is in.
    for name, (key, event), proto in zip(
        names, firsts.items(), graph.nodes_in_order(executed), strict=True
    ):
        shapes_in = _shapes(event.args.input_type_shape)
        shapes_out = _shapes(event.args.output_type_shape)
        facts = graph.facts(proto, shapes_in, shapes_out) if proto is not None else None
        nodes.append(
            NodeTiming(
                name=name,
                op_type=event.args.op_name,
                kind=facts.kind if facts else event.args.op_name,
                fused=facts.fused if facts else "",
                provider=event.args.provider.removesuffix("ExecutionProvider"),
                shape_in=shape_text(shapes_in[0]) if shapes_in else "",
                shape_out=shape_text(shapes_out[0]) if shapes_out else "",
                macs=facts.macs if facts else None,
                weights_bytes=facts.weights_bytes if facts else None,
                profiled_us=median_of_truncated(durations[key]) * len(durations[key]) / len(calls),
            )
        )
    return nodes


def _shapes(recorded: Sequence[dict[str, Any]]) -> list[Shape]:
    return [tuple(shape) for entry in recorded for shape in entry.values()]
