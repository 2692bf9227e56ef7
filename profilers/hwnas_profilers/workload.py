"""What is measured: an operator's identity, and the operator with how to build it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorKey:
    """Identity of an operator: a block as the runtime compiles it, fused.

    Attributes:
        kind: The block's name, e.g. `mbconv`.
        in_shape: Input (channels, height, width).
        out_shape: Output (channels, height, width); (classes, 1, 1) for a head.
        kernel: Side of its spatial kernel; 0 where it has none.
        stride: Spatial stride.
        hidden: Channels of the hidden expansion; 0 where it has none.
        variant: What else tells two operators apart, e.g. the activation.
        batch: Images per call.
        dtype: Precision of the arithmetic: `fp32`.

    >>> print(OperatorKey(kind="mbconv", in_shape=(16, 8, 8), out_shape=(24, 4, 4), kernel=3,
    ...                   stride=2, hidden=96, variant="hswish"))
    mbconv-hswish 16x8x8->24x4x4 k3 s2 h96 b1 fp32
    """

    kind: str
    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    kernel: int = 0
    stride: int = 1
    hidden: int = 0
    variant: str = ""
    batch: int = 1
    dtype: str = "fp32"

    def __str__(self) -> str:
        name = f"{self.kind}-{self.variant}" if self.variant else self.kind
        shapes = f"{'x'.join(map(str, self.in_shape))}->{'x'.join(map(str, self.out_shape))}"
        return (
            f"{name} {shapes} k{self.kernel} s{self.stride} h{self.hidden} "
            f"b{self.batch} {self.dtype}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Something that a profiler can compile and time: an operator or a whole network.

    Attributes:
        name: What it is called in progress and errors.
        build: Makes the module, in eval mode; called only when it is to be measured.
        input_shape: (batch, channels, height, width).
    """

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator(Workload):
    """A workload that belongs into a latency table under its key."""

    key: OperatorKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain(Workload):
    """Operators one after the other, compiled as one: a pair of neighbors, or a whole network.

    Its parts are exported once each, however many chains they are in: see `models`.

    Attributes:
        parts: The operators, in order.
    """

    parts: tuple[Operator, ...]


def chain_of(parts: Sequence[Operator], name: str = "") -> Chain:
    """Put operators one after the other; the output of each is the input of the next.

    Args:
        parts: The operators, at least one.
        name: What the chain is called; by default its parts' names.
    """

    def build() -> nn.Module:
        from torch import nn

        return nn.Sequential(*(part.build() for part in parts)).eval()

    return Chain(
        name=name or " then ".join(part.name for part in parts),
        build=build,
        input_shape=parts[0].input_shape,
        parts=tuple(parts),
    )


def nearest_keys(
    key: OperatorKey, candidates: Iterable[OperatorKey], *, count: int = 3
) -> list[OperatorKey]:
    """Return the most similar keys, the best first: same kind, then fewest and smallest changes."""

    def distance(other: OperatorKey) -> tuple[int, int, float]:
        sizes = zip(
            (*key.in_shape, *key.out_shape, key.kernel, key.stride, key.hidden, key.batch),
            (*other.in_shape, *other.out_shape, other.kernel, other.stride, other.hidden,
             other.batch),
            strict=True,
        )  # fmt: skip
        names = (key.kind != other.kind) * 4 + (key.dtype != other.dtype) * 2
        changed, relative = 0, 0.0
        for mine, theirs in sizes:
            changed += mine != theirs
            relative += abs(mine - theirs) / max(mine, theirs, 1)
        return names + (key.variant != other.variant), changed, relative

    return sorted(candidates, key=distance)[:count]
