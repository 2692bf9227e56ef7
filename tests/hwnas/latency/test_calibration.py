from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from hwnas.core.decoding import decode_json, encode_json
from hwnas.core.errors import DataError
from hwnas.latency.calibration import (
    calibration_record,
    error_figures,
    fit_affine,
    fit_latency,
    noise_floor_percent,
)
from hwnas_profilers.records import CalibrationRecord, NetworkMeasurement, Statistics
from hwnas_profilers.workload import OperatorKey

Floats = NDArray[np.float64]

LAYERS, OPTIONS = 12, 4
OPERATORS = LAYERS * OPTIONS


@dataclass(frozen=True)
class World:
    """A machine whose truth is known: latency = (a + counts @ (b * isolated + own)) * noise."""

    generator: np.random.Generator
    isolated_us: Floats
    own_us: Floats
    intercept_us: float = -40.0
    scale: float = 0.9
    noise: float = 0.0

    def draw(self, networks: int) -> tuple[Floats, Floats]:
        """Draw networks that take one option per layer: (N, K), and measure them: (N,)."""
        chosen = self.generator.integers(0, OPTIONS, (networks, LAYERS))
        counts = np.zeros((networks, LAYERS, OPTIONS))
        np.put_along_axis(counts, chosen[:, :, None], 1.0, axis=2)
        flat = counts.reshape(networks, OPERATORS)
        true_us = self.intercept_us + flat @ (self.scale * self.isolated_us + self.own_us)
        return flat, true_us * np.exp(self.noise * self.generator.standard_normal(networks))


def make_world(seed: int = 0, *, own: float = 0.0, **truth: float) -> World:
    generator = np.random.default_rng(seed)
    isolated_us = generator.lognormal(3.0, 0.6, OPERATORS)
    own_us = own * isolated_us * generator.standard_normal(OPERATORS)
    return World(generator, isolated_us, own_us, **truth)


def holdout_mape(world: World, networks: int) -> tuple[float, float, float | None]:
    """Return the held-out error of the fit and of its affine part alone, and the ridge."""
    counts, measured_us = world.draw(networks)
    held, held_us = world.draw(200)
    fit = fit_latency(counts, world.isolated_us, measured_us)
    intercept_us, scale = fit_affine(counts @ world.isolated_us, measured_us)
    affine_us = intercept_us + scale * (held @ world.isolated_us)
    return (
        error_figures(fit.predict(held), held_us).mape_percent,
        error_figures(affine_us, held_us).mape_percent,
        fit.ridge,
    )


def test_intercept_and_scale_are_recovered_without_noise() -> None:
    world = make_world()
    counts, measured_us = world.draw(12)
    fit = fit_latency(counts, world.isolated_us, measured_us)
    assert fit.intercept_us == pytest.approx(world.intercept_us, rel=1e-6)
    assert fit.scale == pytest.approx(world.scale, rel=1e-6)
    np.testing.assert_allclose(fit.predict(counts), measured_us, rtol=1e-9)


def test_intercept_and_scale_are_nearly_recovered_from_noise() -> None:
    fits = []
    for seed in range(20):
        world = make_world(seed, noise=0.01)
        counts, measured_us = world.draw(24)
        fit = fit_latency(counts, world.isolated_us, measured_us)
        fits.append((fit.intercept_us, fit.scale))
    intercept_us, scale = np.median(fits, axis=0)
    assert intercept_us == pytest.approx(-40, abs=10)
    assert scale == pytest.approx(0.9, rel=0.05)


def test_corrections_lower_the_held_out_error_where_operators_err_by_themselves() -> None:
    results = [holdout_mape(make_world(seed, own=0.2, noise=0.005), 60) for seed in range(5)]
    for fitted, affine, ridge in results:
        assert ridge is not None
        assert fitted < 0.6 * affine


def test_corrections_find_the_operator_that_errs() -> None:
    world = make_world(noise=0.001)
    world.own_us[5] = 0.8 * world.isolated_us[5]
    counts, measured_us = world.draw(60)
    fit = fit_latency(counts, world.isolated_us, measured_us)
    relative = fit.corrections_us / world.isolated_us
    assert int(np.argmax(np.abs(relative))) == 5
    assert 0 < relative[5] < 0.9  # toward the truth, pulled back by the prior


def test_corrections_are_mostly_dropped_where_there_is_only_noise() -> None:
    results = [holdout_mape(make_world(seed, noise=0.01), 24) for seed in range(30)]
    assert np.mean([ridge is not None for _, _, ridge in results]) < 0.35
    fitted, affine = np.mean([result[:2] for result in results], axis=0)
    assert fitted < 1.1 * affine


def test_corrections_never_make_an_operator_cost_less_than_nothing() -> None:
    for seed in range(20):
        world = make_world(seed, own=0.6, noise=0.1)
        world.own_us.clip(-0.85 * world.isolated_us, None, out=world.own_us)
        counts, measured_us = world.draw(16)
        fit = fit_latency(counts, world.isolated_us, measured_us)
        assert (fit.scale * fit.isolated_us + fit.corrections_us >= 0).all()


def test_left_out_errors_in_closed_form_are_those_of_real_refits() -> None:
    # The affine part alone: leave each network out, fit the others, predict it.
    from hwnas.latency.calibration import _left_out_errors, _residual_maker

    world = make_world(noise=0.05)
    counts, measured_us = world.draw(10)
    features = counts * world.isolated_us / measured_us[:, None]
    free = np.stack([1 / measured_us, (counts @ world.isolated_us) / measured_us], axis=1)
    ridge = 0.3
    covariance = np.eye(10) + features @ features.T / ridge
    closed = _left_out_errors(_residual_maker(covariance, free), np.ones(10))
    for left_out in range(10):
        kept = np.arange(10) != left_out
        # The same problem as plain least squares, its penalty written as rows.
        penalty = np.hstack([np.zeros((OPERATORS, 2)), np.sqrt(ridge) * np.eye(OPERATORS)])
        rows = np.vstack([np.hstack([free[kept], features[kept]]), penalty])
        wanted = np.concatenate([np.ones(9), np.zeros(OPERATORS)])
        solution = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        predicted = np.concatenate([free[left_out], features[left_out]]) @ solution
        assert closed[left_out] == pytest.approx(1 - predicted, rel=1e-6)


@pytest.mark.parametrize("networks", [1, 2, 3])
def test_a_few_networks_give_a_fit_without_corrections(networks: int) -> None:
    world = make_world(noise=0.01)
    counts, measured_us = world.draw(networks)
    fit = fit_latency(counts, world.isolated_us, measured_us)
    assert fit.ridge is None
    assert (fit.intercept_us == 0) == (networks < 3)
    assert error_figures(fit.predict(counts), measured_us).mape_percent < 10


@pytest.mark.parametrize(
    ("values", "measured"),
    [
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]),  # slower with less work
        ([10.0, 11.0, 12.0], [1.0, 2.0, 3.0]),  # an intercept below minus the fastest network
        ([5.0, 5.0, 5.0], [1.0, 1.1, 0.9]),  # nothing to tell them apart
    ],
)
def test_a_fit_that_is_not_to_be_believed_becomes_a_scale(
    values: list[float], measured: list[float]
) -> None:
    intercept_us, scale = fit_affine(np.array(values), np.array(measured))
    assert intercept_us == 0
    assert scale > 0


def test_corrections_may_stand_on_a_scale_alone() -> None:
    world = make_world(intercept_us=-800.0, scale=3.0, own=0.5, noise=0.001)
    counts, measured_us = world.draw(40)
    measured_us = np.abs(measured_us) / measured_us.max() * 100
    fit = fit_latency(counts, world.isolated_us, measured_us)
    assert fit.scale > 0
    assert fit.predict(counts).shape == (40,)


def test_networks_that_are_all_alike_are_survived() -> None:
    isolated_us = np.array([10.0, 20.0])
    counts = np.ones((5, 2))
    fit = fit_latency(counts, isolated_us, np.array([30.0, 31.0, 29.0, 30.0, 30.0]))
    assert fit.intercept_us == 0
    assert fit.predict(counts)[0] == pytest.approx(30, rel=0.02)


def test_a_prediction_that_is_right_has_no_error() -> None:
    measured = np.array([1.0, 2.0, 4.0])
    figures = error_figures(measured, measured)
    assert figures.mape_percent == 0
    assert figures.spearman == pytest.approx(1)
    assert figures.kendall == pytest.approx(1)
    assert figures.within_5_percent == 100


def test_figures_are_what_they_are_called() -> None:
    measured = np.array([100.0, 200.0, 300.0, 400.0])
    figures = error_figures(np.array([104.0, 184.0, 360.0, 300.0]), measured)
    assert figures.n == 4
    assert figures.mape_percent == pytest.approx((4 + 8 + 20 + 25) / 4)
    assert figures.within_5_percent == 25
    assert figures.within_10_percent == 50
    assert figures.kendall == pytest.approx(2 / 3)
    assert figures.spearman == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("predicted", "measured"), [([1.0, 2.0], [1.0, 2.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])]
)
def test_a_rank_that_is_undefined_is_none(predicted: list[float], measured: list[float]) -> None:
    figures = error_figures(np.array(predicted), np.array(measured))
    assert figures.spearman is None
    assert figures.kendall is None


def network(median_us: float, macs: int, *, spread: float = 0.0) -> NetworkMeasurement:
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


def test_the_noise_floor_is_the_difference_of_both_halves() -> None:
    networks = [network(100, 1, spread=0.01), network(1_000, 1, spread=0.02)]
    assert noise_floor_percent(networks) == pytest.approx(3)


def record_of(world: World, networks: int, holdout: int) -> CalibrationRecord:
    keys = [
        OperatorKey(kind="conv", in_shape=(3, 8, 8), out_shape=(index, 8, 8))
        for index in range(OPERATORS)
    ]
    macs = world.generator.integers(1_000, 100_000, OPERATORS).astype(np.float64)
    counts, measured_us = world.draw(networks)
    held, held_us = world.draw(holdout)
    return calibration_record(
        keys=keys,
        isolated_us=world.isolated_us,
        counts=counts,
        networks=[
            network(float(us), int(m), spread=0.001)
            for us, m in zip(measured_us, counts @ macs, strict=True)
        ],
        holdout_counts=held,
        holdout_networks=[
            network(float(us), int(m), spread=0.001)
            for us, m in zip(held_us, held @ macs, strict=True)
        ],
        seed=3,
        utc="2026-01-01T00:00:00+00:00",
        settings={"relative_width": 0.02},
    )


def test_a_record_beats_its_baselines_and_survives_the_round_trip() -> None:
    record = record_of(make_world(own=0.1, noise=0.002), 60, 24)
    assert record.ridge is not None
    assert set(record.baselines) == {"sum", "sum_affine", "macs_affine"}
    assert record.holdout.n == record.baselines["sum"].n == 24
    for baseline in record.baselines.values():
        assert record.holdout.mape_percent < baseline.mape_percent
    assert record.fit.n == 60
    assert record.noise_floor_percent == pytest.approx(0.2)
    assert decode_json(encode_json(record), CalibrationRecord, source="test") == record


def test_a_record_without_corrections_lists_none() -> None:
    record = record_of(make_world(), 12, 24)
    assert record.ridge is None
    assert record.corrections_us == ()
    assert record.holdout.mape_percent == pytest.approx(0, abs=1e-6)
    assert record.baselines["sum"].mape_percent > 1


def test_an_operator_that_no_network_has_is_not_corrected() -> None:
    record = record_of(make_world(own=0.3), 5, 5)
    world = make_world(own=0.3)
    counts, measured_us = world.draw(40)
    counts[:, 0] = 0
    fit = fit_latency(counts, world.isolated_us, measured_us)
    assert fit.corrections_us[0] == 0
    assert len(record.corrections_us) <= OPERATORS


@pytest.mark.parametrize(
    ("counts", "isolated", "measured", "message"),
    [
        (np.ones((0, 2)), [1.0, 1.0], [], "no network"),
        (np.ones((2, 3)), [1.0, 1.0], [1.0, 1.0], "shape"),
        (np.ones((2, 2)), [1.0, 0.0], [1.0, 1.0], "isolated latency"),
        (np.ones((2, 2)), [1.0, float("nan")], [1.0, 1.0], "isolated latency"),
        (np.ones((2, 2)), [1.0, 1.0], [1.0, -1.0], "network's latency"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    counts: Floats, isolated: list[float], measured: list[float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fit_latency(counts, np.array(isolated), np.array(measured))


def test_a_record_needs_held_out_networks_and_fitting_counts() -> None:
    with pytest.raises(DataError, match="no network to judge"):
        record_of(make_world(), 12, 0)
    with pytest.raises(DataError, match="do not fit each other"):
        calibration_record(
            keys=[],
            isolated_us=np.ones(2),
            counts=np.ones((1, 2)),
            networks=[network(1, 1)],
            holdout_counts=np.ones((1, 2)),
            holdout_networks=[network(1, 1)],
            seed=0,
            utc="",
        )
