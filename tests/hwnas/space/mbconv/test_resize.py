from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core.environment import provenance
from hwnas.core.errors import ConfigError, MissingDependencyError, TargetError
from hwnas.latency.model import LatencyModel
from hwnas.space.chain_space import all_genotypes
from hwnas.space.mbconv.resize import Resize
from hwnas.space.mbconv.space import MBConvSpace
from hwnas.space.mbconv.spec import MBConvSpec, MBConvStage
from hwnas.space.operators import (
    macs_of_operator,
    module_of_operator,
    operator_of,
    parameters_of_operator,
    weights_of_operator,
)
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_profilers.estimate import MIN_OPERATORS, estimator_from_table
from hwnas_profilers.operators import profile_operators
from hwnas_profilers.profiler import profiler_for
from hwnas_profilers.records import TableHeader
from hwnas_profilers.timing import TimingSettings
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hwnas_profilers.table import LatencyTable

    class TableMaker(Protocol):
        def __call__(
            self, space: MBConvSpace, cost_us: Callable[[OperatorKey], float]
        ) -> LatencyTable: ...


pytestmark = pytest.mark.usefixtures("one_thread")

# 4 x 6 x 4 x 6 networks.
TINY = MBConvSpace(
    MBConvSpec(
        name="tiny",
        image_shape=(1, 8, 8),
        classes=3,
        stem=4,
        stem_stride=1,
        stages=(
            MBConvStage(blocks=2, widths=(6, 4)),
            MBConvStage(blocks=2, widths=(8, 6), stride=2),
        ),
        kernels=(3,),
        expansions=(1, 2),
        se=(False,),
    )
)


def resize_key(width_in: int, width: int) -> OperatorKey:
    return OperatorKey(kind="resize", in_shape=(width_in, 5, 4), out_shape=(width, 5, 4))


@given(width_in=st.integers(1, 9), width=st.integers(1, 9))
def test_the_first_channels_are_kept_and_the_others_are_zeros(width_in: int, width: int) -> None:
    features = torch.rand(2, width_in, 3, 4, requires_grad=True)
    output = Resize(width)(features)
    assert output.shape == (2, width, 3, 4)
    kept = min(width_in, width)
    assert torch.equal(output[:, :kept], features[:, :kept])
    assert not output[:, kept:].any()
    output.sum().backward()
    assert features.grad is not None
    assert (features.grad[:, :kept] == 1).all()
    assert not features.grad[:, kept:].any()


def test_there_and_back_loses_what_does_not_fit() -> None:
    features = torch.rand(1, 8, 2, 2)
    assert torch.equal(Resize(8)(Resize(12)(features)), features)
    assert not torch.equal(Resize(8)(Resize(4)(features)), features)


@pytest.mark.parametrize("width", [5, 12])
def test_it_is_an_operator_that_costs_no_arithmetic(width: int) -> None:
    key = resize_key(8, width)
    module = module_of_operator(key)
    assert isinstance(module, Resize)
    assert not module.training
    assert not module.state_dict()
    assert module(torch.rand(operator_of(key).input_shape)).shape == (1, *key.out_shape)
    assert macs_of_operator(key) == weights_of_operator(key) == parameters_of_operator(key) == 0


def test_an_unknown_kind_names_it_among_the_known() -> None:
    with pytest.raises(ConfigError, match="no operator of kind `resized`") as caught:
        module_of_operator(OperatorKey(kind="resized", in_shape=(1, 1, 1), out_shape=(1, 1, 1)))
    assert "resize" in caught.value.hint


# Export


@pytest.mark.parametrize("dynamic_batch", [False, True], ids=["fixed", "open"])
@pytest.mark.parametrize(("width", "node"), [(5, "Slice"), (12, "Pad")])
def test_it_runs_in_onnxruntime_as_one_node(width: int, node: str, *, dynamic_batch: bool) -> None:
    module = Resize(width)
    model = onnx_from_module(module, (3, 8, 5, 4), dynamic_batch=dynamic_batch)
    assert [each.op_type for each in model.graph.node] == [node]
    with OnnxRuntimeRunner(model.SerializeToString()) as runner:
        for batch in (1, 2, 7) if dynamic_batch else (3,):
            images = np.random.default_rng(batch).random((batch, 8, 5, 4), dtype=np.float32)
            np.testing.assert_array_equal(runner.infer(images), module(torch.from_numpy(images)))


def test_a_network_with_resizes_is_exported_with_an_open_batch() -> None:
    genotype = TINY.genotype(["k3-e2-w4", "skip-w6", "k3-e1-w8", "skip-w6"])
    kinds = [key.kind for key in TINY.operators_of(genotype)]
    assert kinds == ["stem", "mbconv", "resize", "mbconv", "resize", "head"]
    network = TINY.network(genotype).eval()
    model = onnx_from_module(network, (1, 1, 8, 8), dynamic_batch=True)
    images = torch.rand(5, 1, 8, 8)
    with OnnxRuntimeRunner(model.SerializeToString()) as runner, torch.no_grad():
        found = torch.from_numpy(runner.infer(images.numpy()))
        torch.testing.assert_close(found, network(images), atol=1e-5, rtol=1e-5)


@pytest.mark.tensorrt
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("width", [5, 12])
def test_tensorrt_builds_an_engine_of_it(width: int, precision: str) -> None:
    from hwnas_export.precision import onnx_in_precision
    from hwnas_export.tensorrt_engine import EngineSettings, engine_from_onnx

    model = onnx_from_module(Resize(width), (1, 8, 5, 4), dynamic_batch=True)
    if precision != "fp32":
        model = onnx_in_precision(model, precision)
    try:
        settings = EngineSettings(batches=(1, 4, 8))
        assert engine_from_onnx(model.SerializeToString(), settings=settings)
    except (MissingDependencyError, TargetError) as error:
        pytest.skip(error.message)


# Tables


def test_it_is_measured_like_any_other_operator(tmp_path: Path) -> None:
    operators = [operator_of(resize_key(8, width)) for width in (5, 12)]
    header = TableHeader(
        target="onnxruntime-cpu",
        space="tiny",
        space_spec={},
        space_fingerprint="",
        threads=1,
        batch=1,
        dtype="fp32",
        settings={},
        provenance=provenance(),
    )
    quick = TimingSettings(
        relative_width=0.5, min_samples=8, max_samples=12, samples_per_round=4, warmup_calls=1,
        min_sample_us=20,
    )  # fmt: skip
    with profiler_for("onnxruntime-cpu") as profiler:
        table = profile_operators(
            operators,
            profiler=profiler,
            path=tmp_path / "table.jsonl",
            header=header,
            settings=quick,
        )
    assert not table.unsupported
    for operator in operators:
        measured = table.measurements[operator.key]
        assert measured.statistics.median_us > 0
        # In and out, and the few integers that say what to keep or to pad.
        tensors = 4 * 5 * 4 * (operator.key.in_shape[0] + operator.key.out_shape[0])
        assert measured.peak_activation_bytes == tensors
        assert measured.weights_bytes is not None
        assert 0 < measured.weights_bytes <= 64


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_the_expected_latency_is_the_mean_over_all_networks(
    table_of: TableMaker, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    costs = {each.key: float(generator.uniform(1, 100)) for each in TINY.operators()}
    assert {key.kind for key in costs} == {"stem", "mbconv", "resize", "head"}
    model = LatencyModel(TINY, table_of(TINY, costs.__getitem__))
    given_to = [generator.dirichlet(np.ones(len(options))) for options in TINY.options]
    mean_us = 0.0
    for genotype in all_genotypes(TINY):
        choices = zip(given_to, TINY.choices(genotype), strict=True)
        likely = np.prod([each[choice] for each, choice in choices])
        mean_us += likely * sum(costs[key] for key in TINY.operators_of(genotype))
    expected = model.expected_ms([torch.from_numpy(each) for each in given_to])
    assert expected.item() == pytest.approx(mean_us / 1e3, rel=1e-9)


def test_arcs_within_a_stage_are_free_just_where_nothing_changes(table_of: TableMaker) -> None:
    model = LatencyModel(TINY, table_of(TINY, lambda _: 1.0))
    assert all(mask.all() for mask in model.supported)
    free = model.links_us[2] == 0  # from the first block to the second
    names = itertools.product(TINY.options[0], TINY.options[1])
    expected = [here == f"skip-w{before[-1]}" for before, here in names]
    assert free.flatten().tolist() == expected


def test_it_is_estimated_only_from_a_table_that_has_such(table_of: TableMaker) -> None:
    table = table_of(TINY, lambda key: 1.0 + sum(key.in_shape))
    keys = [key for key in table.measurements if key.kind == "resize"]
    assert len(keys) == 4
    assert len(table.measurements) >= MIN_OPERATORS
    estimate = estimator_from_table(table).estimate(keys[:1])[0]
    assert estimate.low_us <= estimate.median_us <= estimate.high_us
