"""Short names of operators, as pictures have room for: only what tells them apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.space.operators import HSWISH, HSWISH_SE
from hwnas.space.user.space import KIND

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hwnas_profilers.workload import OperatorKey

_VARIANTS = {HSWISH: "", HSWISH_SE: "SE"}


def channels(key: OperatorKey) -> str:
    """Write an operator's channels."""
    return f"{key.in_shape[0]} → {key.out_shape[0]}"


def operator_labels(keys: Iterable[OperatorKey]) -> dict[OperatorKey, str]:
    """Write of each operator what differs among those of its kind, besides channels and size.

    >>> from hwnas_profilers.workload import OperatorKey
    >>> shapes = {"kind": "mbconv", "in_shape": (24, 8, 8), "out_shape": (24, 8, 8)}
    >>> keys = [OperatorKey(**shapes, kernel=k, hidden=144, variant="hswish-se") for k in (3, 5)]
    >>> [operator_labels(keys)[key] for key in keys]
    ['k3', 'k5']
    """
    described = {key: _features(key) for key in keys}
    found: dict[tuple[str, str], set[str]] = {}
    for key, features in described.items():
        for name, text in features.items():
            found.setdefault((kind_of(key), name), set()).add(text)
    return {
        key: " ".join(
            text for name, text in features.items() if text and len(found[kind_of(key), name]) > 1
        )
        for key, features in described.items()
    }


def kind_of(key: OperatorKey) -> str:
    """Name an operator's kind; of a user's own network, the part that it begins with.

    >>> from hwnas_profilers.workload import OperatorKey
    >>> shapes = {"kind": "user", "in_shape": (8, 8, 8), "out_shape": (8, 8, 8)}
    >>> [kind_of(OperatorKey(**shapes, variant=each)) for each in ("begin", "part2.conv3-8")]
    ['begin', 'part2']
    """
    if key.kind != KIND:
        return key.kind
    return key.variant.partition(".")[0]


def shortened(name: str, letters: int = 32) -> str:
    """Cut a long name, as its beginning tells most.

    >>> shortened("conv3-batchnorm-relu", 8)
    'conv3-b…'
    """
    return name if len(name) <= letters else f"{name[: max(1, letters - 1)]}…"


def _features(key: OperatorKey) -> Mapping[str, str]:
    # Hidden widths are rounded, so the expansion is near a whole number, not at one.
    expansion = round(key.hidden / key.in_shape[0]) if key.hidden else 1
    features = {"kernel": f"k{key.kernel}"} if key.kernel else {}
    if key.kind == "mbconv":
        features["expansion"] = f"e{expansion}"
    variant = key.variant.partition(".")[2] if key.kind == KIND else key.variant
    return {**features, "variant": _VARIANTS.get(variant, variant)}
