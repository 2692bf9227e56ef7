"""Small operators, headers and settings that the profiler's tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from hwnas.core.environment import provenance
from hwnas_profilers.records import TableHeader
from hwnas_profilers.timing import TimingSettings
from hwnas_profilers.workload import Operator, OperatorKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def header() -> TableHeader:
    return TableHeader(
        target="onnxruntime-cpu",
        space="tiny",
        space_spec={"width": 8},
        space_fingerprint="abc",
        threads=1,
        batch=1,
        dtype="fp32",
        settings={},
        provenance=provenance(),
    )


@pytest.fixture
def quick() -> TimingSettings:
    return TimingSettings(
        relative_width=0.5,
        min_samples=8,
        max_samples=12,
        samples_per_round=4,
        warmup_calls=1,
        min_sample_us=20,
    )


@pytest.fixture
def make_operator() -> Callable[[int], Operator]:
    def make(width: int) -> Operator:
        return Operator(
            name=f"conv to {width}",
            build=lambda: nn.Sequential(
                nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
            ).eval(),
            input_shape=(1, 3, 8, 8),
            key=OperatorKey(kind="conv", in_shape=(3, 8, 8), out_shape=(width, 8, 8), kernel=3),
        )

    return make
