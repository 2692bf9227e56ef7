"""Sums of isolated operators -> latencies of whole networks: the fit, and how good it is.

An operator timed alone pays a call and a change of layout that it does not pay within a network.
Timing a few whole random networks says how much. The model has three layers, each used only where
the networks support it:

    latency = intercept + sum over the network's operators of (scale * isolated + correction)

Intercept and scale are a least-squares fit of relative errors. The corrections are a ridge
regression whose prior is the isolated measurement: the penalty is on (correction / isolated)^2, so
that no operator is moved far for what a few networks say of it. With far more operators than
networks it is solved in the space of networks (its dual).

The intercept is usually negative: each isolated operator pays the cost of a call, a network only
once. It is a property of the space's networks, whose numbers of operators are alike, and no claim
about networks of none. A scale that is not positive, or an intercept below minus half of the
fastest network, is no such property but a fit gone wrong (networks too alike, or too noisy); then
intercept and scale are replaced by a scale alone.

References:
    The closed form of leave-one-out errors of a linear smoother: G. H. Golub, M. Heath, G. Wahba,
    Generalized cross-validation as a method for choosing a good ridge parameter, Technometrics 21,
    1979. We leave the intercept and scale without penalty, as in generalized least squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from hwnas.core.errors import DataError
from hwnas_profilers.records import CalibrationRecord, ErrorFigures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from hwnas_profilers.records import NetworkMeasurement
    from hwnas_profilers.workload import OperatorKey

    Floats = NDArray[np.float64]

RIDGE_GRID = tuple(float(10.0**exponent) for exponent in np.arange(-3, 3.1, 0.5))
"""Strengths tried, relative to the mean squared size of a network's features."""

_LEAST_INTERCEPT = -0.5
"""Least intercept that is believed, as a share of the fastest network."""

_LEAST_GAIN = 1e-6
"""Relative error below which a difference is rounding, not a gain."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """latency = intercept + counts @ (scale * isolated + corrections).

    Attributes:
        isolated_us: Isolated latency of each operator, (K,).
        intercept_us: Cost that no operator accounts for.
        scale: Factor on isolated latencies.
        corrections_us: Added to each operator, (K,).
        ridge: Relative strength of the pull of the corrections toward zero; None without any.
    """

    isolated_us: Floats
    intercept_us: float
    scale: float
    corrections_us: Floats
    ridge: float | None

    def predict(self, counts: Floats) -> Floats:
        """Return latencies in microseconds, (N,), of networks with these counts, (N, K)."""
        operators_us = self.scale * self.isolated_us + self.corrections_us
        latencies_us: Floats = self.intercept_us + counts @ operators_us
        return latencies_us


def fit_latency(counts: Floats, isolated_us: Floats, measured_us: Floats) -> Fit:
    """Fit intercept and scale, and corrections where they help on networks left out.

    Corrections are kept only if the best strength lowers the mean absolute leave-one-out error by
    more than that difference's standard error: on few networks the best of a grid looks better than
    none by chance. A strength that would make an operator's cost negative is not considered.

    Args:
        counts: How often each network has each operator, (N, K).
        isolated_us: Isolated latency of each operator, (K,), positive.
        measured_us: Measured latency of each network, (N,), positive.

    Raises:
        DataError: There is no network, the shapes do not fit, or a latency is not positive.
    """
    _check(counts, isolated_us, measured_us)
    sums_us = counts @ isolated_us  # (N, K) @ (K,) -> (N,)
    intercept_us, scale = fit_affine(sums_us, measured_us)
    is_affine = intercept_us != 0
    none = Fit(
        isolated_us=isolated_us,
        intercept_us=intercept_us,
        scale=scale,
        corrections_us=np.zeros_like(isolated_us),
        ridge=None,
    )
    if len(measured_us) < 4:  # left out one, an affine fit of two networks has no error to judge by
        return none

    # Every row is divided by its measured latency: squares of relative errors are summed.
    columns = [np.ones_like(sums_us), sums_us] if is_affine else [sums_us]
    unpenalized = np.stack(columns, axis=1) / measured_us[:, None]  # (N, 2) or (N, 1)
    features = counts * isolated_us / measured_us[:, None]  # (N, K)
    gram = features @ features.T  # (N, K) @ (K, N) -> (N, N)
    size = float(np.trace(gram)) / len(measured_us)
    ones = np.ones_like(measured_us)

    identity = np.eye(len(ones))
    none_errors = np.abs(_left_out_errors(_residual_maker(identity, unpenalized), ones))
    best, best_errors = none, none_errors
    for ridge in RIDGE_GRID:
        maker = _residual_maker(identity + gram / (ridge * size), unpenalized)
        errors = np.abs(_left_out_errors(maker, ones))
        if errors.mean() >= best_errors.mean():
            continue
        dual = maker @ ones  # residuals, which are the dual variables too: (N,)
        relative = features.T @ dual / (ridge * size)  # correction / isolated, (K,)
        free = ones - dual - features @ relative  # the part of the fit without penalty
        solution = np.linalg.lstsq(unpenalized, free, rcond=None)[0]
        intercept_us, scale = map(float, (0.0, *solution)[-2:])
        is_physical = bool((scale + relative >= 0).all())
        if is_physical and _is_believable(intercept_us, scale, measured_us):
            best_errors = errors
            best = Fit(
                isolated_us=isolated_us,
                intercept_us=intercept_us,
                scale=scale,
                corrections_us=relative * isolated_us,
                ridge=ridge,
            )
    gains = none_errors - best_errors
    standard_error = float(gains.std(ddof=1)) / np.sqrt(len(gains))
    return best if gains.mean() > max(standard_error, _LEAST_GAIN) else none


def fit_affine(values: Floats, measured_us: Floats) -> tuple[float, float]:
    """Fit latency = intercept + scale * value by least squares of relative errors.

    Args:
        values: Any cost of each network, e.g. its summed latency or its MACs, (N,).
        measured_us: Its measured latency, (N,).

    Returns:
        Intercept in microseconds and scale; intercept 0 where the affine fit is not to be believed
        (see the module), or the values do not differ.
    """
    values, weights = values.astype(np.float64), 1 / measured_us
    if len(values) > 2 and np.ptp(values) > 0:
        # Scaled to one, so that MACs in millions do not make the system ill-conditioned.
        unit = float(values.max())
        columns = np.stack([weights, values / unit * weights], axis=1)
        intercept, slope = np.linalg.lstsq(columns, np.ones_like(values), rcond=None)[0]
        if _is_believable(float(intercept), float(slope), measured_us):
            return float(intercept), float(slope) / unit
    weighted = values * weights
    return 0.0, float(weighted.sum() / (weighted @ weighted))


def error_figures(predicted_us: Floats, measured_us: Floats) -> ErrorFigures:
    """Return how well predictions agree with measurements, both (N,).

    Raises:
        DataError: There is no network.
    """
    if not len(measured_us):
        raise DataError("there is no network to judge a prediction by")
    relative = np.abs(predicted_us - measured_us) / measured_us
    ranked = len(measured_us) > 2 and np.ptp(predicted_us) > 0 and np.ptp(measured_us) > 0
    return ErrorFigures(
        n=len(measured_us),
        mape_percent=float(100 * relative.mean()),
        spearman=float(stats.spearmanr(predicted_us, measured_us).statistic) if ranked else None,
        kendall=float(stats.kendalltau(predicted_us, measured_us).statistic) if ranked else None,
        within_5_percent=float(100 * (relative <= 0.05).mean()),
        within_10_percent=float(100 * (relative <= 0.10).mean()),
    )


def noise_floor_percent(networks: Sequence[NetworkMeasurement]) -> float:
    """Return the mean absolute difference of networks' two measurements, in percent of their mean.

    Each of the two has half of the samples, so this errs on the large side.
    """
    first = np.array([network.first_us for network in networks])
    second = np.array([network.second_us for network in networks])
    return float(100 * np.mean(np.abs(first - second) / ((first + second) / 2)))


def calibration_record(
    *,
    keys: Sequence[OperatorKey],
    isolated_us: Floats,
    counts: Floats,
    networks: Sequence[NetworkMeasurement],
    holdout_counts: Floats,
    holdout_networks: Sequence[NetworkMeasurement],
    seed: int,
    utc: str,
    settings: Mapping[str, Any] | None = None,
) -> CalibrationRecord:
    """Fit on some networks, judge on others, beside simpler predictors.

    Args:
        keys: The operators, in the order of the columns of the counts; K of them.
        isolated_us: Their isolated latencies, (K,).
        counts: Operator counts of the networks of the fit, (N, K).
        networks: Their measurements; N.
        holdout_counts: Operator counts of the held-out networks, (M, K).
        holdout_networks: Their measurements; M, at least one.
        seed: What the networks were drawn with.
        utc: When they were measured.
        settings: The settings that they were measured with.

    Raises:
        DataError: As `fit_latency`, or no network is held out.
    """
    measured_us, macs = _medians_and_macs(networks)
    holdout_us, holdout_macs = _medians_and_macs(holdout_networks)
    if not (len(keys) == len(isolated_us) == holdout_counts.shape[1]):
        raise DataError("operators, their latencies and the counts do not fit each other")
    fit = fit_latency(counts, isolated_us, measured_us)
    sums_us, holdout_sums_us = counts @ isolated_us, holdout_counts @ isolated_us
    sum_intercept_us, sum_scale = fit_affine(sums_us, measured_us)
    macs_intercept_us, macs_scale = fit_affine(macs, measured_us)
    return CalibrationRecord(
        intercept_us=fit.intercept_us,
        scale=fit.scale,
        corrections_us=tuple(
            (key, float(correction))
            for key, correction in zip(keys, fit.corrections_us, strict=True)
            if correction != 0  # an operator that no network of the fit has is not corrected
        ),
        ridge=fit.ridge,
        fit=error_figures(fit.predict(counts), measured_us),
        holdout=error_figures(fit.predict(holdout_counts), holdout_us),
        baselines={
            "sum": error_figures(holdout_sums_us, holdout_us),
            "sum_affine": error_figures(sum_intercept_us + sum_scale * holdout_sums_us, holdout_us),
            "macs_affine": error_figures(macs_intercept_us + macs_scale * holdout_macs, holdout_us),
        },
        noise_floor_percent=noise_floor_percent(holdout_networks),
        networks=tuple(networks),
        holdout_networks=tuple(holdout_networks),
        seed=seed,
        utc=utc,
        settings=dict(settings or {}),
    )


def _residual_maker(covariance: Floats, unpenalized: Floats) -> Floats:
    """Return P with residuals = P @ y, for a fit with free columns and penalized features.

    The penalized least squares are a generalized least squares with this covariance V of y, so
    P = V^-1 - V^-1 X (X^T V^-1 X)^-1 X^T V^-1.
    """
    inverse = np.linalg.inv(covariance)
    weighted = inverse @ unpenalized
    maker = inverse - weighted @ np.linalg.solve(unpenalized.T @ weighted, weighted.T)
    return np.asarray(maker, dtype=np.float64)


def _left_out_errors(residual_maker: Floats, values: Floats) -> Floats:
    """Return each value's error when it is predicted by a fit to the others, (N,)."""
    # A network that alone decides a column has a zero here; rounding must not make it negative.
    own_weight = np.maximum(np.diag(residual_maker), 1e-9)
    errors: Floats = residual_maker @ values / own_weight
    return errors


def _is_believable(intercept_us: float, scale: float, measured_us: Floats) -> bool:
    return scale > 0 and intercept_us > _LEAST_INTERCEPT * float(measured_us.min())


def _medians_and_macs(networks: Sequence[NetworkMeasurement]) -> tuple[Floats, Floats]:
    medians = np.array([network.statistics.median_us for network in networks], dtype=np.float64)
    return medians, np.array([network.macs for network in networks], dtype=np.float64)


def _check(counts: Floats, isolated_us: Floats, measured_us: Floats) -> None:
    if not len(measured_us):
        raise DataError("there is no network to fit a latency to")
    if counts.shape != (len(measured_us), len(isolated_us)):
        raise DataError(
            f"counts have shape {counts.shape}, not ({len(measured_us)} networks, "
            f"{len(isolated_us)} operators)"
        )
    if not (np.isfinite(isolated_us).all() and (isolated_us > 0).all()):
        raise DataError("an isolated latency is not a positive number")
    if not (np.isfinite(measured_us).all() and (measured_us > 0).all()):
        raise DataError("a network's latency is not a positive number")
