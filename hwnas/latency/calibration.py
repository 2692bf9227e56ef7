"""Measured networks -> the calibration of a latency table, judged on networks that it never saw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.core.errors import DataError
from hwnas.latency.baselines import baseline_predictions
from hwnas.latency.figures import error_figures, noise_floor_percent
from hwnas.latency.fit import fit_latency
from hwnas_profilers.records import CalibrationRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from hwnas_profilers.records import NetworkMeasurement
    from hwnas_profilers.workload import OperatorKey

    Floats = NDArray[np.float64]


def calibration_record(
    *,
    keys: Sequence[OperatorKey],
    isolated_us: Floats,
    prior_us: Floats,
    weights_bytes: Floats,
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
        isolated_us: Their latencies alone, (K,).
        prior_us: The same less their share of seams: `OperatorCosts.prior_us`, (K,).
        weights_bytes: Size of each one's weights, (K,).
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
    fit = fit_latency(keys, prior_us, weights_bytes, counts, measured_us)
    baselines = baseline_predictions(
        counts=counts,
        isolated_us=isolated_us,
        in_network_us=prior_us,
        macs=macs,
        measured_us=measured_us,
        counts_new=holdout_counts,
        macs_new=holdout_macs,
    )
    return CalibrationRecord(
        intercept_us=fit.intercept_us,
        scale=fit.scale,
        per_operator_us=fit.per_operator_us,
        operators_us=tuple(zip(keys, map(float, fit.operators_us), strict=True)),
        curvature_per_us=fit.curvature_per_us,
        noise_percent=fit.noise_percent,
        fit=error_figures(fit.predict(counts), measured_us),
        holdout=error_figures(fit.predict(holdout_counts), holdout_us),
        baselines={
            name: error_figures(predicted_us, holdout_us)
            for name, predicted_us in baselines.items()
        },
        noise_floor_percent=noise_floor_percent(holdout_networks),
        networks=tuple(networks),
        holdout_networks=tuple(holdout_networks),
        seed=seed,
        utc=utc,
        settings=dict(settings or {}),
    )


def _medians_and_macs(networks: Sequence[NetworkMeasurement]) -> tuple[Floats, Floats]:
    medians = np.array([network.statistics.median_us for network in networks], dtype=np.float64)
    return medians, np.array([network.macs for network in networks], dtype=np.float64)
