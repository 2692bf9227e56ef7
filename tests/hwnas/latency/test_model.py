from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core.errors import LatencyTableError, LatencyTableMismatch, LatencyTableMiss
from hwnas.latency.costs import UNSUPPORTED_FACTOR
from hwnas.latency.model import LatencyModel
from hwnas.space.chain_space import all_genotypes
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.mbconv.space import MBConvSpace
from hwnas.space.mbconv.spec import MBConvSpec, MBConvStage
from hwnas_profilers.records import CalibrationRecord, ErrorFigures

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.channel.spec import ChannelSpec
    from hwnas.space.genotype import Genotype
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
    scale: float, intercept_us: float, operators_us: dict[OperatorKey, float]
) -> CalibrationRecord:
    figures = ErrorFigures(
        n=3, mape_percent=1, spearman=1, kendall=1, within_5_percent=100, within_10_percent=100
    )
    return CalibrationRecord(
        intercept_us=intercept_us,
        scale=scale,
        per_operator_us=0.0,
        operators_us=tuple(operators_us.items()),
        noise_percent=0.5,
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
def small(small_spec: ChannelSpec) -> ChannelSpace:
    return ChannelSpace(small_spec)


@pytest.fixture(scope="session")
def with_skips() -> MBConvSpace:
    """36 networks; every second block may be skipped."""
    return MBConvSpace(
        MBConvSpec(
            name="skips",
            image_shape=(1, 8, 8),
            classes=3,
            stem=4,
            stem_stride=1,
            stages=(
                MBConvStage(blocks=2, widths=(4,)),
                MBConvStage(blocks=2, widths=(8,), stride=2),
            ),
            kernels=(3,),
            expansions=(1, 2),
            se=(False,),
        )
    )


def refusing(table: LatencyTable, refused: list[OperatorKey]) -> LatencyTable:
    kept = {key: each for key, each in table.measurements.items() if key not in refused}
    return replace(table, measurements=kept, unsupported=dict.fromkeys(refused, "no such kernel"))


def distributions(space: ChainSpace, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.softmax(torch.randn(len(options), generator=generator, dtype=torch.float64), 0)
        for options in space.options
    ]


def one_hot(space: ChainSpace, genotype: Genotype) -> list[torch.Tensor]:
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
    known = {key: float(index % 5) for index, key in enumerate(keys[::2])}
    table = table_of(small, costs(seed), calibration_of(scale, intercept_us, known))
    model = LatencyModel(small, table)
    assert model.is_calibrated
    for genotype in all_genotypes(small):
        total_us = intercept_us + sum(
            known.get(key, scale * table.latency_us(key)) for key in small.operators_of(genotype)
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


@given(seed=seeds)
def test_a_skipped_block_costs_nothing(
    with_skips: MBConvSpace, table_of: TableMaker, seed: int
) -> None:
    table = table_of(with_skips, costs(seed))
    model = LatencyModel(with_skips, table)
    every = []
    for genotype in all_genotypes(with_skips):
        keys = with_skips.operators_of(genotype)
        assert len(keys) == 6 - genotype.blocks.count("skip")
        total_us = sum(table.latency_us(key) for key in keys)
        assert model.predict_ms(genotype) == pytest.approx(total_us / 1e3, rel=1e-12)
        expected_ms = model.expected_ms(one_hot(with_skips, genotype))
        assert float(expected_ms) == pytest.approx(total_us / 1e3, rel=1e-12)
        every.append(total_us / 1e3)
    assert model.range_ms() == pytest.approx((min(every), max(every)), rel=1e-12)


@settings(max_examples=40)
@given(seed=seeds)
def test_what_the_runtime_refuses_is_in_no_network_and_far_too_dear_to_expect(
    small: ChannelSpace, table_of: TableMaker, seed: int
) -> None:
    whole = table_of(small, costs(seed))
    generator = np.random.default_rng(seed)
    # Of the blocks; without stem, head and the operators of one network, so that one is left.
    kept = set(small.operators_of(small.random_genotype(generator)))
    keys = [key for key in whole.measurements if key.kind == "mbconv" and key not in kept]
    refused = [key for key in keys if generator.random() < 0.5]
    table = refusing(whole, refused)
    model = LatencyModel(small, table)
    runs = []
    for genotype in all_genotypes(small):
        if set(refused).isdisjoint(small.operators_of(genotype)):
            runs.append(model.predict_ms(genotype))
        else:
            with pytest.raises(LatencyTableMiss, match="no such kernel"):
                model.predict_ms(genotype)
    assert model.range_ms() == pytest.approx((min(runs), max(runs)), rel=1e-12)

    def taken_us(link: int, key: OperatorKey) -> float:
        if key not in refused:
            return table.latency_us(key)
        others = {other for row in small.transitions[link] for (other,) in row} - set(refused)
        return UNSUPPORTED_FACTOR * max(map(table.latency_us, others))

    for genotype in all_genotypes(small):
        total_us = sum(map(taken_us, range(5), small.operators_of(genotype)))
        expected_ms = model.expected_ms(one_hot(small, genotype))
        assert float(expected_ms) == pytest.approx(total_us / 1e3, rel=1e-9)


def test_an_option_that_the_runtime_refuses_is_named(
    small: ChannelSpace, table_of: TableMaker
) -> None:
    table = table_of(small, costs(0))
    assert LatencyModel(small, table).closed_options == ()
    keys = list(table.measurements)
    into_12 = [key for key in keys if key.kind == "mbconv" and key.out_shape[0] == 12]
    assert {key.in_shape[0] for key in into_12} == {12, 8, 4}
    model = LatencyModel(small, refusing(table, into_12))
    assert model.closed_options == ("12 of block 2", "12 of block 3")
    # One that is left by nothing that runs is as closed as one that nothing that runs enters.
    from_12 = [key for key in keys if key.kind == "mbconv" and key.in_shape[0] == 12]
    assert LatencyModel(small, refusing(table, from_12)).closed_options == ("12 of block 2",)


def test_a_target_that_refuses_every_network_is_refused(
    small: ChannelSpace, table_of: TableMaker
) -> None:
    table = table_of(small, costs(0))
    second = [key for row in small.transitions[2] for (key,) in row]
    with pytest.raises(LatencyTableError, match="refuses 6 operators") as caught:
        LatencyModel(small, refusing(table, second))
    assert f"{second[0]}: no such kernel" in caught.value.message
    assert "and 1 more" in caught.value.message
