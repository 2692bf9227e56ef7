"""A breakdown as data: nodes as the runtime made them, and what each takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTiming:
    """What a runtime's profile says of one node: an operator as the runtime fused it.

    Attributes:
        name: The runtime's name of it, made from the names in the model.
        op_type: Its type, as fused, e.g. `FusedConv` or `ReorderInput`.
        kind: The type with what tells its cost, e.g. `Conv 3x3 depthwise`.
        fused: What was fused into it, e.g. `Relu`; empty where the runtime does not tell.
        provider: Which part of the runtime computes it.
        shape_in: Shape of its first input, e.g. `1x16x32x32`; empty where not known.
        shape_out: Shape of its first output; likewise.
        macs: Multiply-accumulates, channels that the runtime pads included; None where not known.
        weights_bytes: Size of its constants, padding included; None where not known.
        profiled_us: Its time in the runtime's profile, typical of many calls.
    """

    name: str
    op_type: str
    kind: str
    fused: str = ""
    provider: str = ""
    shape_in: str = ""
    shape_out: str = ""
    macs: int | None = None
    weights_bytes: int | None = None
    profiled_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLatency:
    """A node, and its part of the latency of a call.

    Attributes:
        index: Its place in the order of execution, from 0.
        node: The node.
        share_percent: Its part of the profile's sum over all nodes.
        latency_us: That part of the latency of a call.
        cumulative_percent: Shares up to this node, in the order of execution.
    """

    index: int
    node: NodeTiming
    share_percent: float
    latency_us: float
    cumulative_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeLatency:
    """All nodes of one kind."""

    kind: str
    nodes: int
    share_percent: float
    latency_us: float
    macs: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowNode:
    """One of the slowest nodes; `cumulative_percent` is its share and those of slower ones."""

    index: int
    name: str
    kind: str
    fused: str
    shape_in: str
    shape_out: str
    latency_us: float
    share_percent: float
    cumulative_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """The latency of a model, and where it goes.

    Attributes:
        model: The model, as it was named.
        target: What it ran on.
        runtime: The runtime and its version.
        inputs: What it was fed: name, type, shape, values.
        threads: Threads within an operator.
        latency_us: Median latency of a call, profiling off.
        low_us: Lower end of the median's 95 % interval.
        high_us: Upper end of it.
        n: Samples behind it.
        profiled_calls: Calls behind the shares.
        profiled_call_us: Median latency of a call while profiled; None where not known.
        profiled_sum_us: Sum of all nodes in the profile. How far it is from `latency_us` is what
            profiling adds, less what a call costs beside its nodes.
        macs: Multiply-accumulates of the nodes that tell theirs; None where none does.
        weights_bytes: Size of the constants of the nodes that tell theirs; likewise.
        remark: What to keep in mind with this runtime's profile; empty for nothing.
        out: The folder that all of this was written to; empty for none.
        by_type: Kinds of nodes, the costliest first.
        slowest: The slowest nodes, the slowest first.
        nodes: All nodes, in the order of execution.
    """

    model: str
    target: str
    runtime: str
    inputs: str
    threads: int
    latency_us: float
    low_us: float
    high_us: float
    n: int
    profiled_calls: int
    profiled_call_us: float | None
    profiled_sum_us: float
    macs: int | None
    weights_bytes: int | None
    remark: str = ""
    out: str = ""
    by_type: tuple[TypeLatency, ...]
    slowest: tuple[SlowNode, ...]
    nodes: tuple[NodeLatency, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledModel:
    """What a runtime measured of a model.

    Attributes:
        runtime: The runtime and its version.
        inputs: What it was fed.
        samples_us: Latency of calls with profiling off, (n,).
        calls: Calls that were profiled.
        call_us: Median latency of a profiled call; None where not known.
        nodes: Its nodes, in the order of execution.
        remark: See `Breakdown`.
    """

    runtime: str
    inputs: str
    samples_us: NDArray[np.float64]
    calls: int
    call_us: float | None
    nodes: Sequence[NodeTiming]
    remark: str = ""


def shape_text(shape: Iterable[int]) -> str:
    """Write a shape.

    >>> shape_text((1, 3, 32, 32)), shape_text(())
    ('1x3x32x32', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"
