from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.core.environment import provenance
from hwnas.latency.in_network import OperatorCosts
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import CHANNEL_SPACES, ChannelSpec, StageSpec
from hwnas_profilers.pairs import PAIRS_PER_SHAPE, neighbor_pairs, seams_us
from hwnas_profilers.records import Measurement, PairMeasurement, Statistics, TableHeader
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from hwnas_profilers.workload import Operator

Shape = tuple[int, int, int]

SPACE = ChannelSpace(CHANNEL_SPACES["rnas-cl-xs"])
TINY = ChannelSpace(
    ChannelSpec(
        name="tiny",
        image_shape=(3, 8, 8),
        classes=4,
        stem=4,
        stem_stride=2,
        stages=(StageSpec(blocks=2, widths=(6, 5)),),
    )
)


HEADER = TableHeader(
    target="onnxruntime-cpu",
    space="made up",
    space_spec={},
    space_fingerprint="",
    threads=1,
    batch=1,
    dtype="fp32",
    settings={},
    provenance=provenance(),
)


def statistics(median_us: float) -> Statistics:
    return Statistics(
        n=10,
        median_us=median_us,
        low_us=median_us,
        high_us=median_us,
        min_us=median_us,
        p10_us=median_us,
        p90_us=median_us,
    )


class MadeUpDevice:
    """A device whose latencies follow the model of `pairs` exactly.

    A call costs its overhead, taking the input from the caller and handing the output back cost
    what their shapes say, and between two operators neither is paid.
    """

    def __init__(self, overhead_us: float, per_value_us: float, work_us: list[float]) -> None:
        self.overhead_us, self.per_value_us = overhead_us, per_value_us
        self._work_us = work_us

    def work_us(self, key: OperatorKey) -> float:
        return self._work_us[sum(map(ord, str(key))) % len(self._work_us)]

    def end_us(self, shape: Shape) -> float:
        return self.per_value_us * float(np.prod(shape))

    def latency_us(self, keys: list[OperatorKey]) -> float:
        return (
            self.overhead_us
            + self.end_us(keys[0].in_shape)
            + sum(self.work_us(key) for key in keys)
            + self.end_us(keys[-1].out_shape)
        )

    def table(
        self, operators: list[Operator], pairs: list[tuple[Operator, Operator]]
    ) -> LatencyTable:
        return LatencyTable(
            path=Path("made-up.jsonl"),
            header=HEADER,
            measurements={
                each.key: Measurement(
                    key=each.key, statistics=statistics(self.latency_us([each.key]))
                )
                for each in operators
            },
            pairs={
                (before.key, after.key): PairMeasurement(
                    before=before.key,
                    after=after.key,
                    statistics=statistics(self.latency_us([before.key, after.key])),
                )
                for before, after in pairs
            },
            calibration=None,
        )


positive = st.floats(0.01, 1_000)
devices = st.builds(
    MadeUpDevice, positive, st.floats(0, 1), st.lists(positive, min_size=1, max_size=20)
)


def test_pairs_can_be_neighbors_and_every_boundary_has_some() -> None:
    operators = SPACE.operators()
    pairs = neighbor_pairs(operators)
    assert len(set(map(pair_keys, pairs))) == len(pairs)
    shapes = [before.key.out_shape for before, after in pairs]
    assert all(before.key.out_shape == after.key.in_shape for before, after in pairs)
    given_ = {operator.key.out_shape for operator in operators}
    taken = {operator.key.in_shape for operator in operators}
    assert set(shapes) == given_ & taken
    for shape in set(shapes):
        possible = sum(each.key.out_shape == shape for each in operators) * sum(
            each.key.in_shape == shape for each in operators
        )
        assert shapes.count(shape) == min(PAIRS_PER_SHAPE, possible)


def pair_keys(pair: tuple[Operator, Operator]) -> tuple[OperatorKey, OperatorKey]:
    return pair[0].key, pair[1].key


def test_the_choice_of_pairs_depends_on_the_operators_alone() -> None:
    first = list(map(pair_keys, neighbor_pairs(SPACE.operators())))
    np.random.default_rng().random()
    assert list(map(pair_keys, neighbor_pairs(SPACE.operators()))) == first
    assert len(neighbor_pairs(SPACE.operators(), per_shape=1)) < len(first)
    assert neighbor_pairs([]) == []


@given(devices)
def test_seams_are_what_ends_and_calls_cost_between_operators(device: MadeUpDevice) -> None:
    operators = TINY.operators()
    table = device.table(operators, neighbor_pairs(operators, per_shape=2))
    seams = seams_us(table.measurements, table.pairs.values())
    assert set(seams) == {before.out_shape for before, _ in table.pairs}
    for shape, seam in seams.items():
        assert seam == pytest.approx(device.overhead_us + 2 * device.end_us(shape), abs=1e-6)


@given(devices, st.integers(0, 2**32))
def test_a_network_is_the_sum_of_its_operators_less_its_seams(
    device: MadeUpDevice, seed: int
) -> None:
    operators = TINY.operators()
    costs = OperatorCosts(device.table(operators, neighbor_pairs(operators)))
    keys = TINY.operators_of(TINY.random_genotype(np.random.default_rng(seed)))
    predicted_us = costs.intercept_us + sum(costs.latency_us(key) for key in keys)
    assert predicted_us == pytest.approx(device.latency_us(keys))


@given(st.lists(st.floats(0.1, 100), min_size=3, max_size=3))
def test_a_seam_is_never_worth_less_than_nothing(times_us: list[float]) -> None:
    before, after = (operator.key for operator in neighbor_pairs(TINY.operators())[0])
    alone = {
        key: Measurement(key=key, statistics=statistics(us))
        for key, us in zip((before, after), times_us, strict=False)
    }
    pair = PairMeasurement(before=before, after=after, statistics=statistics(times_us[2]))
    seams = seams_us(alone, [pair])
    assert seams == {
        after.in_shape: pytest.approx(max(0.0, times_us[0] + times_us[1] - times_us[2]))
    }


def test_of_several_pairs_of_a_shape_the_median_counts() -> None:
    keys = [
        OperatorKey(kind="conv", in_shape=(4, 8, 8), out_shape=(4, 8, 8), hidden=hidden)
        for hidden in range(3)
    ]
    alone = {key: Measurement(key=key, statistics=statistics(10)) for key in keys}
    pairs = [
        PairMeasurement(before=key, after=keys[0], statistics=statistics(20 - seam))
        for key, seam in zip(keys, (1, 2, 15), strict=True)
    ]
    assert seams_us(alone, pairs) == {(4, 8, 8): 2.0}


def test_a_pair_of_an_operator_that_is_not_measured_is_passed_over() -> None:
    before, after = (operator.key for operator in neighbor_pairs(TINY.operators())[0])
    pair = PairMeasurement(before=before, after=after, statistics=statistics(1))
    assert seams_us({before: Measurement(key=before, statistics=statistics(1))}, [pair]) == {}
