from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core.errors import LatencyTableMismatch, LatencyTableMiss
from hwnas.latency.model import LatencyModel
from hwnas.space.channel_space import ChannelSpace, all_genotypes
from hwnas_profilers.records import CalibrationRecord, ErrorFigures

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas.space.genotype import Genotype
    from hwnas.space.spec import SpaceSpec
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.workload import OperatorKey

    TableMaker = Callable[..., LatencyTable]

pytestmark = pytest.mark.usefixtures("one_thread")

seeds = st.integers(0, 2**32)


def costs(seed: int) -> Callable[[OperatorKey], float]:
    """Any positive costs: neither wider nor larger needs to be slower."""
    generator = np.random.default_rng(seed)
    known: dict[OperatorKey, float] = {}
    return lambda key: known.setdefault(key, float(generator.lognormal(3, 0.7)))


def calibration_of(
    scale: float, intercept_us: float, corrections: dict[OperatorKey, float]
) -> CalibrationRecord:
    figures = ErrorFigures(
        n=3, mape_percent=1, spearman=1, kendall=1, within_5_percent=100, within_10_percent=100
    )
    return CalibrationRecord(
        intercept_us=intercept_us,
        scale=scale,
        corrections_us=tuple(corrections.items()),
        ridge=1.0,
        fit=figures,
        holdout=figures,
        baselines={},
        noise_floor_percent=0.5,
        networks=(),
        holdout_networks=(),
        seed=0,
        utc="",
    )


@pytest.fixture(scope="session")
def small(small_spec: SpaceSpec) -> ChannelSpace:
    return ChannelSpace(small_spec)


def distributions(space: ChannelSpace, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.softmax(torch.randn(len(options), generator=generator, dtype=torch.float64), 0)
        for options in space.options
    ]


def one_hot(space: ChannelSpace, genotype: Genotype) -> list[torch.Tensor]:
    return [
        torch.nn.functional.one_hot(torch.tensor(choice), len(options)).double()
        for choice, options in zip(space.choices(genotype), space.options, strict=True)
    ]


@given(seed=seeds)
def test_a_network_takes_the_sum_of_its_operators(
    small: ChannelSpace, table_of: TableMaker, seed: int
) -> None:
    table = table_of(small, costs(seed))
    model = LatencyModel(small, table)
    assert not model.is_calibrated
    for genotype in all_genotypes(small):
        total_us = sum(table.latency_us(key) for key in small.operators_of(genotype))
        assert model.predict_ms(genotype) == pytest.approx(total_us / 1e3, rel=1e-12)


@given(seed=seeds, scale=st.floats(0.5, 2), intercept_us=st.floats(-50, 50))
def test_a_calibrated_network_takes_what_the_calibration_says(
    small: ChannelSpace, table_of: TableMaker, seed: int, scale: float, intercept_us: float
) -> None:
    keys = [operator.key for operator in small.operators()]
    corrections = {key: float(index % 5 - 2) for index, key in enumerate(keys[::2])}
    table = table_of(small, costs(seed), calibration_of(scale, intercept_us, corrections))
    model = LatencyModel(small, table)
    assert model.is_calibrated
    for genotype in all_genotypes(small):
        total_us = intercept_us + sum(
            scale * table.latency_us(key) + corrections.get(key, 0.0)
            for key in small.operators_of(genotype)
        )
        assert model.predict_ms(genotype) == pytest.approx(total_us / 1e3, rel=1e-9, abs=1e-12)


@given(seed=seeds)
def test_a_certain_supernet_takes_what_its_network_takes(
    small: ChannelSpace, table_of: TableMaker, seed: int
) -> None:
    model = LatencyModel(small, table_of(small, costs(seed), calibration_of(0.9, -20, {})))
    for genotype in all_genotypes(small):
        expected = model.expected_ms(one_hot(small, genotype))
        assert float(expected) == pytest.approx(model.predict_ms(genotype), rel=1e-12)


@settings(max_examples=30)
@given(seed=seeds, intercept_us=st.floats(-50, 50))
def test_the_expected_latency_is_the_mean_over_all_networks(
    small: ChannelSpace, table_of: TableMaker, seed: int, intercept_us: float
) -> None:
    model = LatencyModel(small, table_of(small, costs(seed), calibration_of(1.1, intercept_us, {})))
    probabilities = distributions(small, seed)
    mean = 0.0
    for genotype in all_genotypes(small):
        chosen = zip(probabilities, small.choices(genotype), strict=True)
        mean += math.prod(float(p[choice]) for p, choice in chosen) * model.predict_ms(genotype)
    assert float(model.expected_ms(probabilities)) == pytest.approx(mean, rel=1e-9)


def test_gradients_of_the_expected_latency_are_its_differences(
    small: ChannelSpace, table_of: TableMaker
) -> None:
    model = LatencyModel(small, table_of(small, costs(1)))
    probabilities = [p.requires_grad_() for p in distributions(small, 2)]
    assert torch.autograd.gradcheck(lambda *p: model.expected_ms(p), probabilities)
    logits = [p.detach().log().requires_grad_() for p in probabilities]
    assert torch.autograd.gradcheck(
        lambda *each: model.expected_ms([torch.softmax(x, 0) for x in each]), logits
    )


@settings(max_examples=30)
@given(seed=seeds)
def test_more_mass_on_a_slower_option_raises_the_expected_latency(
    small: ChannelSpace, table_of: TableMaker, seed: int
) -> None:
    model = LatencyModel(small, table_of(small, costs(seed)))
    probabilities = distributions(small, seed)
    for block, options in enumerate(small.options):
        alone = []
        for choice in range(len(options)):
            certain = list(probabilities)
            certain[block] = torch.nn.functional.one_hot(
                torch.tensor(choice), len(options)
            ).double()
            alone.append(float(model.expected_ms(certain)))
        probabilities[block].requires_grad_()
        (gradient,) = torch.autograd.grad(model.expected_ms(probabilities), probabilities[block])
        probabilities[block].requires_grad_(False)
        # The gradient orders the options as their latencies do.
        assert gradient.argsort().tolist() == np.argsort(alone).tolist()


@given(seed=seeds)
def test_the_range_is_that_of_all_networks(
    small: ChannelSpace, table_of: TableMaker, seed: int
) -> None:
    model = LatencyModel(small, table_of(small, costs(seed), calibration_of(0.8, 15, {})))
    every = [model.predict_ms(genotype) for genotype in all_genotypes(small)]
    assert model.range_ms() == pytest.approx((min(every), max(every)), rel=1e-12)


def test_one_model_serves_every_precision(small: ChannelSpace, table_of: TableMaker) -> None:
    model = LatencyModel(small, table_of(small, costs(3)))
    double = distributions(small, 4)
    single = model.expected_ms([p.float() for p in double])
    assert single.dtype == torch.float32
    assert model.expected_ms(double).dtype == torch.float64
    assert float(single) == pytest.approx(float(model.expected_ms(double)), rel=1e-5)


def test_an_operator_that_is_missing_is_named_and_never_free(
    small: ChannelSpace, table_of: TableMaker
) -> None:
    table = table_of(small, costs(0))
    missing = small.operators_of(small.smallest)[2]
    kept = {key: value for key, value in table.measurements.items() if key != missing}
    with pytest.raises(LatencyTableMiss) as caught:
        LatencyModel(small, replace(table, measurements=kept))
    assert str(missing) in caught.value.message
    assert "nearest: mbconv" in caught.value.message
    assert "hwnas profile --space small" in caught.value.hint


def test_a_table_of_another_space_is_refused(small: ChannelSpace, table_of: TableMaker) -> None:
    table = table_of(small, costs(0))
    for spec in (replace(small.spec, classes=11), replace(small.spec, image_shape=(3, 16, 16))):
        with pytest.raises(LatencyTableMismatch, match="measured for another space") as caught:
            LatencyModel(ChannelSpace(spec), table)
        assert "hwnas profile --space small --target onnxruntime-cpu" in caught.value.hint
