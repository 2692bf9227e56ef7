from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from torch import nn

from hwnas.core.decoding import decode_json, encode_json
from hwnas.core.errors import ConfigError
from hwnas.verify.speed import Speed, measure_speed, tail_of
from hwnas_export.torch_runner import TorchRunner
from hwnas_profilers.timing import TimingSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

QUICK = TimingSettings(
    relative_width=0.5, min_samples=12, max_samples=12, min_sample_us=1.0, max_disturbed=0.0
)


def measured(batches: Sequence[int], batch: int | None = None, largest: int | None = None) -> Speed:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    with TorchRunner(module, (batch, 1, 8, 8)) as runner:
        return measure_speed(
            runner, settings=QUICK, batches=batches, largest=largest, beside=runner
        )


def test_latency_tail_and_throughput_are_measured() -> None:
    speed = measured((8, 64))
    assert speed.target == speed.reference_target == "torch-cpu"
    assert speed.reference is not None
    assert 100 <= speed.tail.n <= 1000
    tail = speed.tail
    assert tail.median_us <= tail.p99_us <= tail.max_us
    assert tail.p99_low_us <= tail.p99_us <= tail.p99_high_us
    assert [each.batch for each in speed.throughput] == [1, 8, 64]
    one, _, most = speed.throughput
    assert most.images_per_s > one.images_per_s  # a call's cost is shared
    assert one.low <= one.images_per_s <= one.high
    assert decode_json(encode_json(speed), Speed, source="test") == speed


def test_batches_that_the_engine_does_not_take_are_left_out() -> None:
    assert [each.batch for each in measured((4, 32), largest=8).throughput] == [1, 4]
    assert [each.batch for each in measured((4, 32), batch=4).throughput] == [4]


def test_bad_batches_are_refused() -> None:
    with pytest.raises(ConfigError, match="not of 0"):
        measured((0, 1))
    with pytest.raises(ConfigError, match="batches of 1 to"):
        measured((8,), largest=0)


def test_the_interval_of_the_percentile_holds_it() -> None:
    draws = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        tail = tail_of(draws.exponential(size=1000))
        held += tail.p99_low_us <= -np.log(0.01) <= tail.p99_high_us
    assert held >= 180
