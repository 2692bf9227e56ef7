"""Spaces, tables, images and teachers that are small enough to be searched and trained in a test.

Fixtures that hypothesis tests use live as long as the session: they hold no state.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
import torch
from hypothesis import settings

from hwnas.core.environment import provenance
from hwnas.data.images import ImageData
from hwnas.data.sources import DataConfig, load_data
from hwnas.distill.teacher import Teacher
from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec
from hwnas.space.channel.spec import ChannelSpec, StageSpec
from hwnas_profilers.records import Measurement, Statistics, TableHeader
from hwnas_profilers.table import LatencyTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hwnas.space.channel.space import ChannelSpace
    from hwnas_profilers.records import CalibrationRecord
    from hwnas_profilers.workload import OperatorKey


# A first call of torch takes longer than any deadline would allow, and cores are shared.
settings.register_profile("hwnas", deadline=None)
settings.load_profile("hwnas")


class TableMaker(Protocol):
    """Makes a table in memory that holds what `cost_us` says of every operator of a space."""

    def __call__(
        self,
        space: ChannelSpace,
        cost_us: Callable[[OperatorKey], float],
        calibration: CalibrationRecord | None = None,
    ) -> LatencyTable: ...


class Interrupter:
    """Progress that is interrupted, as by Ctrl-C, at a chosen step of the work."""

    def __init__(self, steps: int) -> None:
        self.steps_left = steps

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[Interrupter]:
        yield self

    def advance(self, steps: float = 1, note: str = "") -> None:
        if steps == 0:
            return
        if self.steps_left == 0:
            raise KeyboardInterrupt
        self.steps_left -= 1

    def say(self, message: str) -> None:
        pass


class GuardedData(ImageData):
    """A data set whose test split must not be looked at."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> object:
        if name == "test":
            raise AssertionError("the test split was touched")
        return super().__getattribute__(name)


def one_statistic(median_us: float) -> Statistics:
    return Statistics(
        n=20,
        median_us=median_us,
        low_us=median_us,
        high_us=median_us,
        min_us=median_us,
        p10_us=median_us,
        p90_us=median_us,
    )


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def interrupted_after() -> Callable[[int], Interrupter]:
    return Interrupter


@pytest.fixture(scope="session")
def table_of() -> TableMaker:
    def make(
        space: ChannelSpace,
        cost_us: Callable[[OperatorKey], float],
        calibration: CalibrationRecord | None = None,
    ) -> LatencyTable:
        keys = [operator.key for operator in space.operators()]
        return LatencyTable(
            path=Path("table.jsonl"),
            header=TableHeader(
                target="onnxruntime-cpu",
                space=space.spec.name,
                space_spec={},
                space_fingerprint=space.spec.fingerprint,
                threads=1,
                batch=1,
                dtype="fp32",
                settings={},
                provenance=provenance(),
            ),
            measurements={
                key: Measurement(key=key, statistics=one_statistic(cost_us(key))) for key in keys
            },
            calibration=calibration,
        )

    return make


@pytest.fixture(scope="session")
def small_spec() -> ChannelSpec:
    """One block per stage: 18 networks for the images of `few_digits`."""
    return ChannelSpec(
        name="small",
        image_shape=(1, 16, 16),
        classes=10,
        stem=8,
        stem_stride=2,
        stages=(
            StageSpec(blocks=1, widths=(8, 4)),
            StageSpec(blocks=1, widths=(12, 8, 4), stride=2),
            StageSpec(blocks=1, widths=(16, 12, 8), stride=2),
        ),
        expansion=2,
    )


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data(DataConfig())


@pytest.fixture(scope="session")
def few_digits(digits: ImageData) -> ImageData:
    """96 digits to train on and 48 to validate on; the test split raises."""
    generator = torch.Generator().manual_seed(0)
    return GuardedData(
        name="few digits",
        train=digits.train.subset(96, generator),
        validation=digits.validation.subset(48, generator),
        test=digits.test,
        class_names=digits.class_names,
    )


@pytest.fixture(scope="session")
def small_teacher() -> Teacher:
    """An untrained network: its features differ from one another, which is all that is needed."""
    spec = TeacherSpec(image_shape=(1, 16, 16), classes=10, width=4, blocks=(1, 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TeacherNetwork(spec)
    return Teacher(
        network,
        network.tap_names,
        image_shape=spec.image_shape,
        classes=spec.classes,
        attention_size=4,
    )
