"""Parity: how far an engine's logits are from its reference's, on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.errors import DataError
from hwnas.robustness.evaluate import predictions_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COUNTED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Twin against engine. A figure is None where it cannot be computed: the engine gave NaN.

    Attributes:
        n: Images.
        max_abs_diff: Largest difference of any logit.
        relative_l2: Norm of the difference over the norm of the twin's logits.
        agreement: Share of images with the same prediction.
        margin_drift_p99: 99th percentile of the change of the margin between the two top logits.
        nonfinite: Images for which the engine gave NaN or infinity.
        distinct_logits_twin: Different values among the twin's logits.
        distinct_logits_engine: Different values among the engine's. Far fewer than the twin's says
            that the output is quantized, which blinds attacks that follow scores.
        tie_rate: Share of images whose two top logits the engine gives as equal.
        margin_drift: `margin_drift_p99` over the median of the twin's margins.
    """

    n: int
    max_abs_diff: float | None
    relative_l2: float | None
    agreement: float
    margin_drift_p99: float | None
    nonfinite: int
    distinct_logits_twin: int
    distinct_logits_engine: int
    tie_rate: float
    margin_drift: float | None = None

    @property
    def distinct_share(self) -> float:
        """The engine's different values over the twin's, of which the first 1,000 count.

        So many tell a quantized output from one that is not; that half precision has fewer values
        than a large data set has logits is no matter.
        """
        return self.distinct_logits_engine / min(self.distinct_logits_twin, _COUNTED)


def parity_of(twin: NDArray[np.float32], engine: NDArray[np.float32]) -> Parity:
    """Compare logits.

    Args:
        twin: (N, classes), all finite.
        engine: (N, classes)

    Raises:
        DataError: The shapes differ, or the twin's own logits are not finite.
    """
    if twin.shape != engine.shape:
        raise DataError(
            f"the engine gives logits of shape {engine.shape}, its twin of {twin.shape}",
            hint="the engine was made from another network: export it again",
        )
    if not np.isfinite(twin).all():
        raise DataError(
            "the PyTorch twin itself gives NaN or infinity",
            hint="its weights are damaged or its training diverged: train it again",
        )
    finite = np.isfinite(engine).all(axis=1)
    comparable = bool(finite.all())
    twin_64, engine_64 = twin.astype(np.float64), engine.astype(np.float64)
    top_engine = np.sort(engine_64[finite], axis=1)[:, -2:]
    ties = int(np.count_nonzero(top_engine[:, 0] == top_engine[:, 1]))
    difference = engine_64 - twin_64 if comparable else None
    margins = _margins(twin_64)
    drift: float | None = None
    if comparable:
        drift = float(np.percentile(np.abs(_margins(engine_64) - margins), 99))
    return Parity(
        n=len(twin),
        max_abs_diff=None if difference is None else float(np.abs(difference).max()),
        relative_l2=None if difference is None else _relative_l2(difference, twin_64),
        agreement=float(np.mean(predictions_of(twin) == predictions_of(engine))),
        margin_drift_p99=drift,
        nonfinite=int(np.count_nonzero(~finite)),
        distinct_logits_twin=len(np.unique(twin)),
        distinct_logits_engine=len(np.unique(engine)),
        tie_rate=ties / len(twin),
        margin_drift=None if drift is None else _relative(drift, float(np.median(margins))),
    )


def _relative_l2(difference: NDArray[np.float64], twin: NDArray[np.float64]) -> float | None:
    return _relative(float(np.linalg.norm(difference)), float(np.linalg.norm(twin)))


def _relative(part: float, whole: float) -> float | None:
    if whole == 0:
        return 0.0 if part == 0 else None
    return part / whole


def _margins(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each row's top logit less its second: (N, classes) -> (N,)."""
    ordered = np.sort(logits, axis=1)
    margins: NDArray[np.float64] = ordered[:, -1] - ordered[:, -2]
    return margins
