"""PyTorch, eager, on the CPU: latency of a module, and its operations by torch.profiler.

Nothing is fused here: the nodes are the operations that the module calls, with what they call in
turn inside of them.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from hwnas.core.errors import ConfigError, ExportError
from hwnas.core.threads import torch_threads
from hwnas_profilers.breakdown.inputs import ModelInput, feed_text, random_feed
from hwnas_profilers.breakdown.measure import profiled_calls, timed_us
from hwnas_profilers.breakdown.values import NodeTiming, ProfiledModel, shape_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from hwnas.core.progress import Progress
    from hwnas_profilers.breakdown.model import ModelSource
    from hwnas_profilers.timing import TimingSettings

_CALL = "hwnas.call"
_SCOPE = "hwnas.scope:"
_CALLS_AT_ONCE = 25
"""Calls in one recording: its growing memory disturbs those of the module."""
_EVENTS_PER_NODE = 10
"""An operation calls others, which are recorded too."""


def profile_model(
    source: ModelSource,
    *,
    input_shape: tuple[int, ...] | None,
    threads: int,
    batch: int,
    settings: TimingSettings,
    progress: Progress,
) -> ProfiledModel:
    """Time a module, then profile it. See `measure_breakdown`."""
    if source.module is None:
        raise ConfigError(
            f"{source.name} is an ONNX model, and torch-cpu runs modules of PyTorch",
            hint="use --target onnxruntime-cpu, or name a callable that makes the module",
        )
    module = source.module
    shape = source.shape_of_module(input_shape, batch)
    inputs = [ModelInput(name="input", dtype="float32", shape=shape)]
    feed = random_feed(inputs, [shape], seed=settings.seed)
    tensor = torch.from_numpy(feed["input"])
    with torch_threads(threads), torch.inference_mode():
        try:
            module(tensor)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise ExportError(
                f"{source.name} cannot run on an input of {shape}: {reason}"
            ) from error
        samples_us = timed_us(lambda: module(tensor), settings, progress)
        described = _describe(module, tensor)
        calls = profiled_calls(
            settings,
            nodes=len(described) * _EVENTS_PER_NODE,
            latency_us=float(np.median(samples_us)),
        )
        recorded: list[Any] = []
        with progress.task("profiling", calls) as task:
            while len(recorded) < calls:
                some = min(_CALLS_AT_ONCE, calls - len(recorded))
                recorded += _record(module, tensor, some + 1)[1:]  # the first call takes memory
                task.advance(some)
    return ProfiledModel(
        runtime=f"torch {torch.__version__}",
        inputs=feed_text(feed),
        samples_us=samples_us,
        calls=calls,
        call_us=float(np.median([call.cpu_time_total for call in recorded])),
        nodes=_nodes(source.name, recorded, described),
        remark="PyTorch runs eagerly: nothing is fused, and the time between operations is shared "
        "out among them",
    )


def _record(
    module: nn.Module, tensor: torch.Tensor, calls: int, *, in_full: bool = False
) -> list[Any]:
    """Profile calls; return one event for each, whose children are the operations.

    Args:
        module: The module.
        tensor: Its input.
        calls: How many.
        in_full: Record shapes and work too, which costs time.
    """
    with (
        _quiet_profiler(),
        profile(
            activities=[ProfilerActivity.CPU],
            record_shapes=in_full,
            with_flops=in_full,
            acc_events=True,
        ) as recording,
    ):
        for _ in range(calls):
            with record_function(_CALL):
                module(tensor)
    events = [event for event in recording.events() or () if event.name == _CALL]
    return sorted(events, key=lambda event: event.time_range.start)


@contextlib.contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keep the profiler's C++ library from logging to the user's terminal."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = "99"  # above even what it logs of its own start
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _describe(module: nn.Module, tensor: torch.Tensor) -> list[tuple[str, Any]]:
    """Describe the operations of a call, in order: the module that calls each, and its event.

    Learned from a call of its own: hooks, shapes and counts of work cost time.
    """
    hooks, stack = [], contextlib.ExitStack()
    opened: list[Any] = []

    def enter(name: str) -> None:
        opened.append(record_function(_SCOPE + name))
        opened[-1].__enter__()

    for name, member in module.named_modules():
        hooks.append(member.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        hooks.append(
            member.register_forward_hook(
                lambda *_: opened.pop().__exit__(None, None, None), always_call=True
            )
        )
    with stack:
        for hook in hooks:
            stack.callback(hook.remove)
        (call,) = _record(module, tensor, 1, in_full=True)
    return list(_operations_below(call, ""))


def _operations_below(event: Any, scope: str) -> Iterator[tuple[str, Any]]:
    for child in _children(event):
        if child.name.startswith(_SCOPE):
            yield from _operations_below(child, child.name.removeprefix(_SCOPE))
        else:
            yield scope, child


def _children(event: Any) -> list[Any]:
    return sorted(event.cpu_children, key=lambda child: child.time_range.start)


def _nodes(
    name: str, calls: Sequence[Any], described: Sequence[tuple[str, Any]]
) -> list[NodeTiming]:
    durations: list[list[float]] = [[] for _ in described]
    expected = [event.name for _, event in described]
    for call in calls:
        operations = _children(call)
        if [operation.name for operation in operations] != expected:
            raise ExportError(
                f"{name} does not call the same operations each time: it cannot be broken down"
            )
        for of_node, operation in zip(durations, operations, strict=True):
            of_node.append(operation.cpu_time_total)
    nodes = []
    for (scope, event), of_node in zip(described, durations, strict=True):
        shapes = [tuple(shape) for shape in event.input_shapes or () if shape]
        op_type = event.name.removeprefix("aten::")
        flops = _flops(event)
        nodes.append(
            NodeTiming(
                name=scope or op_type,
                op_type=op_type,
                kind=_kind(op_type, shapes),
                provider="CPU",
                shape_in=shape_text(shapes[0]) if shapes else "",
                macs=flops // 2 if op_type in _MULTIPLYING and flops else None,
                profiled_us=float(np.median(of_node)),
            )
        )
    return nodes


_MULTIPLYING = {"conv1d", "conv2d", "conv3d", "linear", "matmul", "mm", "addmm", "bmm"}


def _flops(event: Any) -> int:
    own = int(event.flops or 0)
    return own or sum(map(_flops, event.cpu_children))


def _kind(op_type: str, shapes: Sequence[tuple[int, ...]]) -> str:
    """Tell convolutions apart, whose second argument is their weights (out, in / groups, *kernel).

    >>> _kind("conv2d", [(1, 24, 8, 8), (24, 1, 3, 3), (24,)])
    'conv2d 3x3 depthwise'
    """
    if not (op_type.startswith("conv") and len(shapes) > 1 and len(shapes[1]) > 2):
        return op_type
    weights = shapes[1]
    channels = shapes[0][1] if len(shapes[0]) == len(weights) else weights[1]
    note = "" if channels == weights[1] else " depthwise" if weights[1] == 1 else " grouped"
    return f"{op_type} {shape_text(weights[2:])}{note}"
