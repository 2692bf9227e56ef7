"""Latencies of operators that a table does not hold, estimated from those that it holds.

An estimate is no measurement. It is made where it is asked for alone, carries an interval, says
whether it extrapolates, and is never written into a table.

The logarithm of the latency is regressed on logarithms of an operator's sizes by a Gaussian process
with a linear part, which goes on where the data end; docs/decisions/0019-estimates.md says why this
one. Its interval is made by cross-conformal prediction, which takes nothing of the process on faith
but its sense of where it is unsure: each operator is predicted by a model that did not see it, its
error is divided by what that model thought its own error would be, and the interval for a new
operator is as wide as these ratios were.

How well an operator can be estimated depends on how new it is. One whose input and output shapes
the table has differs from its neighbors in kernel, hidden width or variant alone; it is judged by
operators left out one at a time. One of new shapes is judged by leaving out all operators of a
shape together, which gives far wider intervals, as it must.

References:
    R. F. Barber, E. J. Candes, A. Ramdas, R. J. Tibshirani, Predictive inference with the
    jackknife+, Annals of Statistics 49, 2021: CV+ (section 3). It covers 1 - alpha in practice, and
    1 - 2 alpha at least for exchangeable data. Operators of one space hardly are, so coverage is
    measured too: `Estimator.error`. We scale residuals by the predicted deviation, as in J. Lei et
    al., Distribution-free predictive inference for regression, JASA 113, 2018 (section 5.2).
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # ships no types

from hwnas.core.errors import (
    LatencyTableError,
    LatencyTableMismatch,
    LatencyTableMiss,
)
from hwnas_profilers.estimate_features import OperatorFeatures
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from hwnas_profilers.table import LatencyTable

    Floats: TypeAlias = NDArray[np.float64]

MISSED = 0.1
"""Share of operators whose latency may lie outside of its interval."""
MIN_OPERATORS = 30
"""Below this many measured operators there is no telling how good an estimate is."""
MIN_SHAPES = 5
"""Operators of new shapes need this many shapes to be judged by."""
MAX_OPERATORS = 500
"""Of more, this many are drawn: a Gaussian process takes time with their third power."""
FOLDS = 10
_CHUNK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """An operator's latency as estimated from others.

    Attributes:
        key: The operator.
        median_us: Estimate of its median latency.
        low_us: Lower end of its 90 % interval.
        high_us: Upper end of it.
        extrapolated: Whether it is outside of what the table holds of its kind and variant: then
            the interval promises nothing.
    """

    key: OperatorKey
    median_us: float
    low_us: float
    high_us: float
    extrapolated: bool

    @property
    def width_percent(self) -> float:
        """Width of the interval as a share of the estimate."""
        return 100 * (self.high_us - self.low_us) / self.median_us


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateError:
    """How well left-out operators of the table were estimated.

    Attributes:
        n: Operators.
        mape_percent: Mean absolute percentage error.
        coverage_percent: Share of them that was within its interval, in percent; 90 is meant.
    """

    n: int
    mape_percent: float
    coverage_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateUse:
    """What a result that rests on estimates must say.

    Attributes:
        operators: Operators whose latency is an estimate.
        extrapolated: Those of them that are outside of what the table holds.
        widest_percent: Width of the widest interval as a share of its estimate; None without any.
    """

    operators: int
    extrapolated: int
    widest_percent: float | None


def estimator_from_table(table: LatencyTable, *, seed: int = 0) -> Estimator:
    """Make an estimator from a table's measurements.

    Args:
        table: The table.
        seed: Draws the folds, and which operators count where there are more than 500.

    Raises:
        LatencyTableError: The table holds too few operators.
    """
    if len(table.measurements) < MIN_OPERATORS:
        raise LatencyTableError(
            f"{table.path} holds {len(table.measurements)} operators; estimates take at least "
            f"{MIN_OPERATORS}",
            hint=f"measure what is missing: `{table.profile_command()}`",
        )
    return Estimator(table, seed=seed)


def estimates_used(table: LatencyTable, keys: Iterable[OperatorKey]) -> EstimateUse:
    """Say which of some operators' latencies are estimates, for a result to record."""
    used = [
        table.estimates[key]
        for key in dict.fromkeys(keys)
        if key in table.estimates and key not in table.measurements
    ]
    return EstimateUse(
        operators=len(used),
        extrapolated=sum(each.extrapolated for each in used),
        widest_percent=max((each.width_percent for each in used), default=None),
    )


@final
class Estimator:
    """Estimates from one table; made by `estimator_from_table`."""

    def __init__(self, table: LatencyTable, *, seed: int) -> None:
        self._table = table
        self._seed = seed
        keys = list(table.measurements)
        if len(keys) > MAX_OPERATORS:
            drawn = np.random.default_rng(seed).choice(len(keys), MAX_OPERATORS, replace=False)
            keys = [keys[index] for index in np.sort(drawn)]
        self._shapes = {(key.in_shape, key.out_shape) for key in table.measurements}
        self._keys = keys
        self._features = OperatorFeatures(keys)
        self._ranges = OperatorFeatures(list(table.measurements))
        medians_us = [table.measurements[key].statistics.median_us for key in keys]
        self._logs: Floats = np.log(np.array(medians_us))

    @property
    def error(self) -> EstimateError:
        """Error on operators of shapes that the table has, by cross-validation."""
        return self._of_known_shapes.error()

    @property
    def error_of_new_shapes(self) -> EstimateError:
        """Error on operators of shapes that were left out as a whole.

        Raises:
            LatencyTableError: The table has too few shapes.
        """
        return self._of_new_shapes.error()

    def estimate(self, keys: Sequence[OperatorKey]) -> tuple[Estimate, ...]:
        """Estimate operators' latencies, in the order of the keys.

        Raises:
            LatencyTableMismatch: An operator is of another batch or precision than the table.
            LatencyTableMiss: The table has no operator of its kind, so that nothing is known of it.
            LatencyTableError: It is of new shapes, and the table has too few to judge by.
        """
        self._check(keys)
        known = [key for key in keys if (key.in_shape, key.out_shape) in self._shapes]
        new = [key for key in keys if (key.in_shape, key.out_shape) not in self._shapes]
        found: dict[OperatorKey, Estimate] = {}
        if known:
            found |= self._estimates(known, self._of_known_shapes)
        if new:
            found |= self._estimates(new, self._of_new_shapes)
        return tuple(found[key] for key in keys)

    def _estimates(
        self, keys: Sequence[OperatorKey], fit: _CrossFit
    ) -> dict[OperatorKey, Estimate]:
        middle, low, high = (np.exp(logs) for logs in fit.predict(self._features.of(keys)))
        outside = self._ranges.are_outside(keys)
        return {
            key: Estimate(
                key=key,
                median_us=float(middle[index]),
                low_us=float(low[index]),
                high_us=float(high[index]),
                extrapolated=bool(outside[index]),
            )
            for index, key in enumerate(keys)
        }

    @functools.cached_property
    def _of_known_shapes(self) -> _CrossFit:
        generator = np.random.default_rng(self._seed)
        fold_of = generator.permutation(len(self._keys)) % FOLDS
        return _CrossFit(self._features.of(self._keys), self._logs, fold_of)

    @functools.cached_property
    def _of_new_shapes(self) -> _CrossFit:
        shapes = sorted({(key.in_shape, key.out_shape) for key in self._keys})
        if len(shapes) < MIN_SHAPES:
            raise LatencyTableError(
                f"{self._table.path} holds operators of {len(shapes)} shapes; estimates of "
                f"operators of other shapes take at least {MIN_SHAPES}",
                hint="profile the space that the operators are of into a table of its own",
            )
        generator = np.random.default_rng(self._seed)
        folds = generator.permutation(len(shapes)) % min(FOLDS, len(shapes))
        fold_of_shape = dict(zip(shapes, folds, strict=True))
        fold_of = np.array([fold_of_shape[key.in_shape, key.out_shape] for key in self._keys])
        return _CrossFit(self._features.of(self._keys), self._logs, fold_of)

    def _check(self, keys: Sequence[OperatorKey]) -> None:
        header = self._table.header
        kinds = {key.kind for key in self._table.measurements}
        for key in keys:
            if (key.batch, key.dtype) != (header.batch, header.dtype):
                raise LatencyTableMismatch(
                    f"{key} cannot be estimated from {self._table.path}, which is of batch "
                    f"{header.batch} and {header.dtype}",
                    hint="profile that batch and precision into a table of its own",
                )
            if key.kind not in kinds:
                raise LatencyTableMiss(
                    f"{key} cannot be estimated: {self._table.path} has no operator of kind "
                    f"`{key.kind}`, only {', '.join(sorted(kinds))}",
                    hint=f"measure it: `{self._table.profile_command()}`",
                )


class _CrossFit:
    """One model per fold, none of which saw its fold, and how far each was off on it.

    Args:
        features: Of each operator, (N, F).
        logs: Logarithm of its latency, (N,).
        fold_of: Its fold, counted from 0, (N,).
    """

    def __init__(self, features: Floats, logs: Floats, fold_of: NDArray[np.int64]) -> None:
        self._fold_of = fold_of
        self._models: list[Any] = []
        self._scores: Floats = np.empty_like(logs)
        self._off: Floats = np.empty_like(logs)
        # Matrices this small gain nothing by threads, and threads that wait for a busy core make it
        # twenty times slower; one thread also gives the same last digits on any number of cores.
        with threadpool_limits(1):
            for fold in range(int(fold_of.max()) + 1):
                inside = fold_of == fold
                model = _fitted(features[~inside], logs[~inside])
                mean, deviation = model.predict(features[inside], return_std=True)
                self._models.append(model)
                self._off[inside] = mean - logs[inside]
                self._scores[inside] = np.abs(self._off[inside]) / deviation

    def predict(self, features: Floats) -> tuple[Floats, Floats, Floats]:
        """Return estimates and both ends of their intervals, as logarithms, (M,) each."""
        parts = [
            self._predict(features[start : start + _CHUNK])
            for start in range(0, len(features), _CHUNK)
        ]
        middle, low, high = (np.concatenate(each) for each in zip(*parts, strict=True))
        return middle, low, high

    def _predict(self, features: Floats) -> tuple[Floats, Floats, Floats]:
        with threadpool_limits(1):
            answers = [model.predict(features, return_std=True) for model in self._models]
        means = np.array([mean for mean, _ in answers])  # (folds, M)
        deviations = np.array([deviation for _, deviation in answers])
        margins = self._scores[:, None] * deviations[self._fold_of]  # (N, M)
        centers = means[self._fold_of]
        n = len(self._scores)
        rank = math.floor(MISSED * (n + 1))  # at least 1, as n is at least MIN_OPERATORS
        low = np.partition(centers - margins, rank - 1, axis=0)[rank - 1]
        high = np.partition(centers + margins, n - rank, axis=0)[n - rank]
        middle = means.mean(axis=0)
        # The models may disagree by more than all of their errors.
        return middle, np.minimum(low, middle), np.maximum(high, middle)

    def error(self) -> EstimateError:
        """Judge each operator by what the other folds say of errors."""
        covered = np.empty(len(self._scores), dtype=bool)
        for fold in range(len(self._models)):
            inside = self._fold_of == fold
            others = np.sort(self._scores[~inside])
            rank = min(math.ceil((1 - MISSED) * (len(others) + 1)), len(others))
            covered[inside] = self._scores[inside] <= others[rank - 1]
        return EstimateError(
            n=len(covered),
            mape_percent=float(100 * np.abs(np.expm1(self._off)).mean()),
            coverage_percent=float(100 * covered.mean()),
        )


def _fitted(features: Floats, logs: Floats) -> Any:
    """Fit a Gaussian process: smooth, plus linear, plus noise."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    smooth = ConstantKernel(1.0) * RBF(3.0, (0.1, 100.0))
    linear = ConstantKernel(0.1) * DotProduct(1.0, (1e-3, 1e3))
    noise = WhiteKernel(1e-3, (1e-7, 1.0))
    process = GaussianProcessRegressor(smooth + linear + noise, normalize_y=True)
    model = make_pipeline(StandardScaler(), process)
    with warnings.catch_warnings():
        # A part of the kernel that the data have no use for ends at its bound, as it should.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, logs)
    return model
