"""What a regression sees of an operator: its sizes, as logarithms, and what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hwnas_profilers.workload import OperatorKey

    Floats: TypeAlias = NDArray[np.float64]

_ROUNDING = 1e-9


@final
class OperatorFeatures:
    """Features of operators, in terms of those that are known.

    An operator's key says no more than its shapes, kernel, stride and hidden width, and what it is
    called. How many multiply-accumulates that makes depends on its kind, which this package does
    not know; so each way to spend them is a feature of its own (a dense convolution, an expansion,
    a depthwise convolution, a projection), and the regression finds which of them count. Bytes are
    numbers of elements here: a table has one precision, which only shifts their logarithms. So has
    it one batch.

    Args:
        known: The operators that a table holds.
    """

    def __init__(self, known: Sequence[OperatorKey]) -> None:
        self._kinds = sorted({key.kind for key in known})
        self._variants = sorted({key.variant for key in known})
        self._ranges: dict[tuple[str, str], tuple[Floats, Floats]] = {}
        sizes = np.array([_sizes(key) for key in known])
        names = [(key.kind, key.variant) for key in known]
        for name in dict.fromkeys(names):
            own = sizes[[each == name for each in names]]
            self._ranges[name] = own.min(axis=0), own.max(axis=0)

    def of(self, keys: Sequence[OperatorKey]) -> Floats:
        """Return the features of operators, (N, F)."""
        return np.array(
            [
                [
                    *_sizes(key),
                    *(key.kind == kind for kind in self._kinds),
                    *(key.variant == variant for variant in self._variants),
                    key.hidden == 0,
                ]
                for key in keys
            ],
            dtype=np.float64,
        )

    def are_outside(self, keys: Sequence[OperatorKey]) -> NDArray[np.bool_]:
        """Say which operators are outside of the ranges of what is known, (N,).

        Each size is compared with those of the known operators of the same kind and variant; where
        there is none, all of it is outside.
        """
        outside = []
        for key in keys:
            if (key.kind, key.variant) not in self._ranges:
                outside.append(True)
                continue
            low, high = self._ranges[key.kind, key.variant]
            sizes = np.array(_sizes(key))
            beyond = (sizes < low - _ROUNDING) | (sizes > high + _ROUNDING)
            outside.append(bool(beyond.any()))
        return np.array(outside)


def _sizes(key: OperatorKey) -> list[float]:
    """Return an operator's sizes; what can be zero or large as log(1 + size)."""
    inputs, height_in, width_in = key.in_shape
    outputs, height_out, width_out = key.out_shape
    pixels_in, pixels_out = height_in * width_in, height_out * width_out
    inner = key.hidden or inputs
    area = max(key.kernel, 1) ** 2
    counts = (
        inputs,
        outputs,
        key.hidden,
        key.hidden / inputs,
        inner,
        pixels_in,
        pixels_out,
        # Multiply-accumulates, by way of spending them.
        inputs * outputs * area * pixels_out,
        inputs * key.hidden * pixels_in,
        inner * area * pixels_out,
        inner * outputs * pixels_out,
        # Elements of tensors: in, out, between; then of weights.
        inputs * pixels_in,
        outputs * pixels_out,
        inner * pixels_in,
        inner * pixels_out,
        inputs * key.hidden + inner * area + inner * outputs,
    )
    return [*np.log1p(np.array(counts, dtype=np.float64)).tolist(), key.kernel, key.stride]
