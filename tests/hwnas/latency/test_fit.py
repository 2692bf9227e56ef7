from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwnas.core.errors import DataError
from hwnas.latency.baselines import relative_least_squares
from hwnas.latency.curvature import bent
from hwnas.latency.fit import fit_latency
from hwnas_profilers.workload import OperatorKey

Floats = NDArray[np.float64]

LAYERS, OPTIONS = 12, 4


def make_key(layer: int, option: int) -> OperatorKey:
    width, side = 8 * (1 + layer // 3), 32 >> (layer // 4)
    shape = (width, side, side)
    return OperatorKey(
        kind="mbconv",
        in_shape=shape,
        out_shape=shape,
        kernel=(3, 5)[option % 2],
        hidden=width * (3, 6)[option // 2],
        variant=f"layer {layer}",  # keeps the layers' operators apart
    )


KEYS = [make_key(layer, option) for layer in range(LAYERS) for option in range(OPTIONS)]
WEIGHTS_BYTES = np.array([8.0 * key.hidden * key.in_shape[0] for key in KEYS])
WIDE_KERNEL = np.array([key.kernel == 5 for key in KEYS], dtype=np.float64)


@dataclass(frozen=True)
class World:
    """A machine whose truth is known: latency = (intercept + counts @ true) * noise."""

    generator: np.random.Generator
    prior_us: Floats
    true_us: Floats
    intercept_us: float
    noise: float

    def draw(self, networks: int) -> tuple[Floats, Floats, Floats]:
        """Draw networks of one option per layer, or a skip.

        Returns:
            Counts, (N, K), what is measured, (N,), and what is true, (N,).
        """
        chosen = self.generator.integers(0, OPTIONS, (networks, LAYERS))
        counts = np.zeros((networks, LAYERS, OPTIONS))
        np.put_along_axis(counts, chosen[:, :, None], 1.0, axis=2)
        counts[:, 1:] *= (self.generator.random((networks, LAYERS - 1)) > 0.3)[:, :, None]
        flat = counts.reshape(networks, -1)
        true_us = self.intercept_us + flat @ self.true_us
        noise = np.exp(self.noise * self.generator.standard_normal(networks))
        return flat, true_us * noise, true_us


def make_world(
    seed: int = 0,
    *,
    intercept: float = 0.0,
    scale: float = 1.0,
    cost: float = 0.0,
    kernel: float = 0.0,
    own: float = 0.0,
    noise: float = 0.003,
) -> World:
    """Make a world that differs from its table.

    Args:
        seed: Draws everything.
        intercept: In mean networks.
        scale: Factor on the prior.
        cost: Of each operator, in mean operators.
        kernel: What wide kernels take more, relative to the prior.
        own: Standard deviation of what each operator has to itself, likewise.
        noise: Standard deviation of a measurement.
    """
    generator = np.random.default_rng(seed)
    prior_us = generator.lognormal(3.0, 0.6, len(KEYS))
    factors = scale + kernel * WIDE_KERNEL + own * generator.standard_normal(len(KEYS))
    return World(
        generator=generator,
        prior_us=prior_us,
        true_us=prior_us * factors + cost * prior_us.mean(),
        intercept_us=intercept * prior_us.mean() * LAYERS,
        noise=noise,
    )


def test_weights_that_leave_the_cache_are_found_from_a_dozen_networks() -> None:
    world = make_world(3, noise=0.002)
    spilled = replace(
        world,
        true_us=world.true_us + 0.3 * world.true_us.mean() * WEIGHTS_BYTES / WEIGHTS_BYTES.mean(),
    )
    ours, prior, _ = errors_percent(spilled, 12)
    assert prior > 10
    assert ours < 1.5


@pytest.mark.parametrize("networks", [12, 48])
def test_networks_that_take_longer_than_their_sum_are_found_out(networks: int) -> None:
    """As by a cache that they do not fit in: no sum of operators, whatever their costs, is so."""
    world = make_world(5, noise=0.003)
    counts, measured_us, _ = world.draw(networks)
    held, _, true_us = world.draw(200)
    curvature = 0.25 / measured_us.mean()
    fit = fit_latency(
        KEYS, world.prior_us, WEIGHTS_BYTES, counts, measured_us * (1 + curvature * measured_us)
    )
    assert fit.curvature_per_us > 0
    slower_us = true_us * (1 + curvature * true_us)
    errors = np.abs(fit.predict(held) / slower_us - 1)
    assert errors.mean() < 0.012
    smallest = true_us < np.percentile(true_us, 5)  # where a straight line is far off
    assert errors[smallest].mean() < 0.02


def test_networks_that_take_their_sum_have_no_curvature() -> None:
    for seed in range(10):
        world = make_world(seed, noise=0.01, own=0.02)
        counts, measured_us, _ = world.draw(12)
        fit = fit_latency(KEYS, world.prior_us, WEIGHTS_BYTES, counts, measured_us)
        assert fit.curvature_per_us * measured_us.mean() <= 0.05


def errors_percent(world: World, networks: int) -> tuple[float, float, float]:
    """Return mean errors on networks that the fit never saw: of the fit, the prior, an affine fit.

    Judged by the truth, so that no noise of measuring is in them.
    """
    counts, measured_us, _ = world.draw(networks)
    held, _, true_us = world.draw(200)
    fit = fit_latency(KEYS, world.prior_us, WEIGHTS_BYTES, counts, measured_us)
    columns = np.column_stack([np.ones(networks), counts @ world.prior_us])
    affine = relative_least_squares(columns, measured_us)
    predictions = (
        fit.predict(held),
        held @ world.prior_us,
        np.column_stack([np.ones(200), held @ world.prior_us]) @ affine,
    )
    mapes = [float(100 * np.mean(np.abs(each - true_us) / true_us)) for each in predictions]
    return mapes[0], mapes[1], mapes[2]


def mean_errors(networks: int, **world: float) -> tuple[float, float, float]:
    errors = [errors_percent(make_world(seed, **world), networks) for seed in range(5)]
    fit, prior, affine = (float(each) for each in np.mean(errors, axis=0))
    return fit, prior, affine


@pytest.mark.parametrize(
    "world",
    [
        {"scale": 0.9},
        {"scale": 1.1},
        {"intercept": 0.03},
        {"intercept": -0.03},
        {"cost": 0.05},
        {"scale": 0.9, "intercept": 0.03, "cost": -0.05},
    ],
    ids=str,
)
def test_intercept_scale_and_cost_are_found_from_few_networks(world: dict[str, float]) -> None:
    fit, prior, _ = mean_errors(12, **world)
    assert prior > 3
    assert fit < 0.35  # hardly more than the noise of a single measurement


@pytest.mark.parametrize("world", [{"scale": 2.0}, {"scale": 0.4}, {"intercept": 0.3}], ids=str)
def test_a_table_that_is_far_off_is_found_out_by_few_networks(world: dict[str, float]) -> None:
    fit, prior, affine = mean_errors(12, **world)
    assert prior > 20
    assert fit < 0.3
    assert fit < affine + 0.15


def test_what_is_found_has_the_names_that_it_is_given() -> None:
    world = make_world(scale=0.9, intercept=0.03, cost=0.08, noise=0.001)
    counts, measured_us, _ = world.draw(48)
    fit = fit_latency(KEYS, world.prior_us, WEIGHTS_BYTES, counts, measured_us)
    assert fit.scale == pytest.approx(0.9, abs=0.02)
    assert fit.intercept_us == pytest.approx(world.intercept_us, rel=0.3)
    assert fit.per_operator_us == pytest.approx(0.08 * world.prior_us.mean(), rel=0.3)


@pytest.mark.parametrize(("networks", "worse"), [(1, 1.6), (3, 1.3), (12, 1.2), (48, 1.1)])
@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_a_perfect_prior_is_hardly_hurt_by_noise(networks: int, worse: float, noise: float) -> None:
    of_fit, of_prior = [], []
    for seed in range(10):
        world = make_world(seed, noise=noise)
        counts, measured_us, _ = world.draw(networks)
        held, held_us, true_us = world.draw(200)
        fit = fit_latency(KEYS, world.prior_us, WEIGHTS_BYTES, counts, measured_us)
        np.testing.assert_allclose(held @ world.prior_us, true_us)
        of_fit.append(np.mean(np.abs(fit.predict(held) - held_us) / held_us))
        of_prior.append(np.mean(np.abs(true_us - held_us) / held_us))
    assert np.mean(of_fit) < worse * np.mean(of_prior)


def test_what_operators_have_in_common_is_found_where_an_affine_fit_cannot() -> None:
    fit, prior, affine = mean_errors(12, kernel=0.1)
    assert affine > 1
    assert fit < 0.5 * affine
    assert fit < 0.25 * prior


def test_single_operators_are_corrected_as_far_as_there_are_networks() -> None:
    few, _, affine_few = mean_errors(12, own=0.05)
    many, _, affine_many = mean_errors(80, own=0.05)
    assert few < affine_few
    assert many < 0.4 * affine_many
    assert many < 0.4 * few


def test_the_operator_that_errs_is_found() -> None:
    world = make_world(noise=0.001)
    world.true_us[5] = 1.3 * world.prior_us[5]
    counts, measured_us, _ = world.draw(100)
    fit = fit_latency(KEYS, world.prior_us, WEIGHTS_BYTES, counts, measured_us)
    relative = fit.operators_us / world.prior_us
    assert int(np.argmax(np.abs(relative - np.median(relative)))) == 5
    assert relative[5] == pytest.approx(1.3, abs=0.05)


@pytest.mark.parametrize("noise", [0.004, 0.03])
def test_the_noise_is_told(noise: float) -> None:
    world = make_world(noise=noise)
    counts, measured_us, _ = world.draw(60)
    fit = fit_latency(KEYS, world.prior_us, WEIGHTS_BYTES, counts, measured_us)
    assert fit.noise_percent == pytest.approx(100 * noise, rel=0.5)


@pytest.mark.parametrize("networks", [1, 2, 3])
def test_one_network_is_enough_for_a_fit(networks: int) -> None:
    for seed in range(5):
        world = make_world(seed, scale=0.8, own=0.02)
        counts, measured_us, _ = world.draw(networks)
        fit = fit_latency(KEYS, world.prior_us, WEIGHTS_BYTES, counts, measured_us)
        held, _, true_us = world.draw(50)
        error = np.abs(fit.predict(held) / true_us - 1).mean()
        assert np.isfinite(fit.operators_us).all()
        assert np.isfinite([fit.intercept_us, fit.scale, fit.per_operator_us]).all()
        assert error < 0.1  # the prior is 25 % off


def test_networks_that_are_all_alike_are_survived() -> None:
    counts = np.zeros((5, len(KEYS)))
    counts[:, ::OPTIONS] = 1
    prior_us = np.full(len(KEYS), 10.0)
    fit = fit_latency(
        KEYS, prior_us, WEIGHTS_BYTES, counts, np.array([118.0, 119.0, 120.0, 121.0, 122.0])
    )
    np.testing.assert_allclose(fit.predict(counts), 120, rtol=0.01)


def test_an_operator_that_takes_nothing_is_no_harm() -> None:
    world = make_world()
    world.prior_us[::7] = 0.0
    counts, measured_us, _ = world.draw(24)
    fit = fit_latency(KEYS, world.prior_us, WEIGHTS_BYTES, counts, measured_us)
    assert np.isfinite(fit.operators_us).all()


def test_the_unit_of_time_is_of_no_matter() -> None:
    world = make_world(own=0.05, cost=0.03)
    counts, measured_us, _ = world.draw(24)
    fits = [
        fit_latency(KEYS, world.prior_us * unit, WEIGHTS_BYTES, counts, measured_us * unit)
        for unit in (1, 1e3)
    ]
    np.testing.assert_allclose(fits[1].operators_us, 1e3 * fits[0].operators_us, rtol=1e-6)


def test_the_order_of_networks_is_of_no_matter() -> None:
    world = make_world(own=0.05)
    counts, measured_us, _ = world.draw(24)
    fits = [
        fit_latency(KEYS, world.prior_us, WEIGHTS_BYTES, counts[::step], measured_us[::step])
        for step in (1, -1)
    ]
    np.testing.assert_allclose(fits[0].operators_us, fits[1].operators_us, rtol=1e-6)


worlds = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1_000),
        "networks": st.integers(1, 8),
        "factors": st.lists(st.floats(0.01, 100), min_size=8, max_size=8),
        "priors": st.lists(st.floats(0, 1_000), min_size=len(KEYS), max_size=len(KEYS)),
    }
)


@given(worlds)
def test_operators_are_never_negative_and_predictions_are_their_sum(
    world: dict[str, list[float] | int],
) -> None:
    generator = np.random.default_rng(int(str(world["seed"])))
    networks = int(str(world["networks"]))
    counts = generator.integers(0, 3, (networks, len(KEYS))).astype(np.float64)
    prior_us = np.array(world["priors"], dtype=np.float64)
    counts[:, 0], prior_us[0] = 1, max(prior_us[0], 1.0)
    measured_us = counts @ prior_us * np.array(world["factors"], dtype=np.float64)[:networks]
    fit = fit_latency(KEYS, prior_us, WEIGHTS_BYTES, counts, measured_us)
    assert (fit.operators_us >= 0).all()
    assert fit.noise_percent > 0
    totals = fit.intercept_us + counts @ fit.operators_us
    np.testing.assert_allclose(fit.predict(counts), bent(totals, fit.curvature_per_us))


ONE = OperatorKey(kind="conv", in_shape=(3, 8, 8), out_shape=(4, 8, 8))
TWO = OperatorKey(kind="conv", in_shape=(4, 8, 8), out_shape=(4, 8, 8))


@pytest.mark.parametrize(
    ("counts", "prior", "measured", "message"),
    [
        (np.ones((0, 2)), [1.0, 1.0], [], "no network"),
        (np.ones((2, 3)), [1.0, 1.0], [1.0, 1.0], "shape"),
        (np.ones((2, 2)), [1.0], [1.0, 1.0], "shape"),
        (np.ones((3, 2)), [1.0, 1.0], [1.0, 1.0], "shape"),
        (np.ones((2, 2)), [1.0, -0.1], [1.0, 1.0], "operator's latency is negative"),
        (np.ones((2, 2)), [1.0, float("nan")], [1.0, 1.0], "operator's latency is negative"),
        (np.ones((2, 2)), [1.0, float("inf")], [1.0, 1.0], "not finite"),
        (np.ones((2, 2)), [1.0, 1.0], [1.0, -1.0], "network's latency"),
        (np.ones((2, 2)), [1.0, 1.0], [1.0, 0.0], "network's latency"),
        (np.ones((2, 2)), [1.0, 1.0], [1.0, float("inf")], "network's latency"),
        (np.ones((2, 2)), [0.0, 0.0], [1.0, 1.0], "no operator that takes any time"),
        (np.array([[1.0, 1.0], [0.0, 0.0]]), [1.0, 1.0], [1.0, 1.0], "no operator that takes"),
    ],
)
def test_what_cannot_be_fit_is_refused(
    counts: Floats, prior: list[float], measured: list[float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fit_latency([ONE, TWO], np.array(prior), np.ones(2), counts, np.array(measured))
