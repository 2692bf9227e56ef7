from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hwnas.core.decoding import decode_json, encode_json
from hwnas.core.errors import DataError
from hwnas.latency.calibration import calibration_record
from hwnas.latency.figures import error_figures
from hwnas_profilers.records import CalibrationRecord, NetworkMeasurement, Statistics
from hwnas_profilers.workload import OperatorKey

Floats = NDArray[np.float64]

LAYERS, OPTIONS = 8, 3
KEYS = [
    OperatorKey(
        kind="conv",
        in_shape=(8, 32 >> layer // 3, 32 >> layer // 3),
        out_shape=(8, 32 >> layer // 3, 32 >> layer // 3),
        kernel=3 + 2 * option,
        variant=f"layer {layer}",
    )
    for layer in range(LAYERS)
    for option in range(OPTIONS)
]


def network(median_us: float, macs: int, *, spread: float) -> NetworkMeasurement:
    return NetworkMeasurement(
        choices=(0,),
        macs=macs,
        statistics=Statistics(
            n=20,
            median_us=median_us,
            low_us=median_us,
            high_us=median_us,
            min_us=median_us,
            p10_us=median_us,
            p90_us=median_us,
        ),
        first_us=median_us * (1 - spread),
        second_us=median_us * (1 + spread),
    )


class World:
    """Isolated operators pay a call each, and some err by themselves."""

    def __init__(self, seed: int = 0, *, own: float = 0.05, noise: float = 0.002) -> None:
        self.generator = np.random.default_rng(seed)
        self.prior_us = self.generator.lognormal(3.0, 0.6, len(KEYS))
        self.isolated_us = self.prior_us + 3.0
        self.true_us = self.prior_us * (1 + own * self.generator.standard_normal(len(KEYS)))
        self.macs = self.generator.integers(1_000, 100_000, len(KEYS)).astype(np.float64)
        self.noise = noise

    def draw(self, networks: int) -> tuple[Floats, list[NetworkMeasurement]]:
        chosen = self.generator.integers(0, OPTIONS, (networks, LAYERS))
        counts = np.zeros((networks, LAYERS, OPTIONS))
        np.put_along_axis(counts, chosen[:, :, None], 1.0, axis=2)
        flat = counts.reshape(networks, LAYERS * OPTIONS)
        factors = np.exp(self.noise * self.generator.standard_normal(networks))
        measured = [
            network(float(us), int(macs), spread=0.001)
            for us, macs in zip(flat @ self.true_us * factors, flat @ self.macs, strict=True)
        ]
        return flat, measured

    def record(self, networks: int, holdout: int) -> tuple[CalibrationRecord, Floats]:
        counts, measured = self.draw(networks)
        held, held_measured = self.draw(holdout)
        record = calibration_record(
            keys=KEYS,
            isolated_us=self.isolated_us,
            prior_us=self.prior_us,
            weights_bytes=np.ones(len(KEYS)),
            counts=counts,
            networks=measured,
            holdout_counts=held,
            holdout_networks=held_measured,
            seed=3,
            utc="2026-01-01T00:00:00+00:00",
            settings={"relative_width": 0.02},
        )
        return record, held


def test_a_record_is_better_than_all_its_baselines_on_the_networks_held_out() -> None:
    record, _ = World().record(40, 24)
    assert set(record.baselines) == {
        "sum",
        "seams",
        "sum_affine",
        "sum_count_affine",
        "macs_affine",
    }
    assert record.holdout.n == record.baselines["sum"].n == 24
    for baseline in record.baselines.values():
        assert record.holdout.mape_percent < baseline.mape_percent
    assert record.baselines["seams"].mape_percent < record.baselines["sum"].mape_percent
    assert record.fit.n == 40
    assert record.fit.mape_percent <= record.holdout.mape_percent
    assert record.noise_floor_percent == pytest.approx(0.2)
    assert (record.seed, record.settings) == (3, {"relative_width": 0.02})


def test_the_operators_of_a_record_predict_what_it_says_of_the_networks_held_out() -> None:
    record, held = World().record(24, 24)
    assert [key for key, _ in record.operators_us] == KEYS
    operators_us = np.array([us for _, us in record.operators_us])
    measured_us = np.array([each.statistics.median_us for each in record.holdout_networks])
    predicted_us = record.intercept_us + held @ operators_us
    assert error_figures(predicted_us, measured_us) == record.holdout


def test_a_record_survives_the_round_trip() -> None:
    record, _ = World().record(12, 6)
    assert decode_json(encode_json(record), CalibrationRecord, source="test") == record


def test_the_networks_held_out_have_no_part_in_the_fit() -> None:
    records = []
    for shift in (1.0, 2.0):
        world = World(seed=1)
        counts, measured = world.draw(12)
        held, held_measured = world.draw(6)
        records.append(
            calibration_record(
                keys=KEYS,
                isolated_us=world.isolated_us,
                prior_us=world.prior_us,
                weights_bytes=np.ones(len(KEYS)),
                counts=counts,
                networks=measured,
                holdout_counts=held,
                holdout_networks=[
                    network(shift * each.statistics.median_us, each.macs, spread=0)
                    for each in held_measured
                ],
                seed=0,
                utc="",
            )
        )
    assert records[0].operators_us == records[1].operators_us
    assert records[1].holdout.mape_percent > 40 > records[0].holdout.mape_percent


def test_a_record_needs_held_out_networks_and_fitting_counts() -> None:
    with pytest.raises(DataError, match="no network to judge"):
        World().record(12, 0)
    with pytest.raises(DataError, match="no network to fit"):
        World().record(0, 12)
    with pytest.raises(DataError, match="do not fit each other"):
        calibration_record(
            keys=[],
            isolated_us=np.ones(2),
            prior_us=np.ones(2),
            weights_bytes=np.ones(2),
            counts=np.ones((1, 2)),
            networks=[network(1, 1, spread=0)],
            holdout_counts=np.ones((1, 2)),
            holdout_networks=[network(1, 1, spread=0)],
            seed=0,
            utc="",
        )
