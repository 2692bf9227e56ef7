from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from torch import nn

from hwnas.core.errors import (
    ConfigError,
    HwnasError,
    LatencyTableError,
    LatencyTableMismatch,
    LatencyTableMiss,
    TargetError,
)
from hwnas_profilers import operators
from hwnas_profilers.conditions import MachineState
from hwnas_profilers.operators import profile_operators
from hwnas_profilers.pairs import neighbor_pairs
from hwnas_profilers.profiler import profiler_for
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.timing import TimingSettings
from hwnas_profilers.workload import Operator, OperatorKey, chain_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hwnas_profilers.records import TableHeader

MakeOperator = Callable[[int], Operator]

# The made-up device is a class of conftest.py, which cannot be imported from here.
Device = Any


class Listening:
    """Progress that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[Listening]:
        yield self

    def advance(self, steps: float = 1, note: str = "") -> None:
        pass

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.jsonl"


@pytest.fixture
def made_up(header: TableHeader) -> TableHeader:
    """Return the header of a table of the made-up device."""
    return replace(header, target="torch-cpu")


@pytest.fixture
def five(make_operator: MakeOperator) -> list[Operator]:
    """Five operators; the first gives what all of them take, so there are five pairs."""
    return [make_operator(width) for width in (3, 4, 5, 6, 7)]


def names_of_pairs(of: list[Operator]) -> set[str]:
    return {chain_of(pair).name for pair in neighbor_pairs(of)}


def test_operators_and_pairs_of_neighbors_are_measured(
    device: Device, five: list[Operator], path: Path, made_up: TableHeader, quick: TimingSettings
) -> None:
    device.latencies_us = {five[0].name: 11.0, "conv to 3 then conv to 4": 17.0}
    table = profile_operators(five, profiler=device, path=path, header=made_up, settings=quick)
    assert set(table.measurements) == {operator.key for operator in five}
    assert table.latency_us(five[0].key) == 11.0
    both = [each.statistics for each in table.measurements.values()]
    both += [each.statistics for each in table.pairs.values()]
    for statistics in both:
        assert quick.min_samples <= statistics.n <= quick.max_samples
    assert set(table.pairs) == {(five[0].key, operator.key) for operator in five}
    assert table.pairs[five[0].key, five[1].key].statistics.median_us == 17.0
    assert sorted(device.measured) == sorted(
        [operator.name for operator in five] + [*names_of_pairs(five)]
    )


# Ten visits finish a group of five with two rounds each; the interrupt falls into its second one.
@pytest.mark.parametrize("visits", [3, 13, 18])
def test_an_interrupted_profile_goes_on_where_it_was(
    device: Device,
    make_device: Callable[[], Device],
    five: list[Operator],
    path: Path,
    made_up: TableHeader,
    quick: TimingSettings,
    monkeypatch: pytest.MonkeyPatch,
    visits: int,
) -> None:
    monkeypatch.setattr(operators, "GROUP_SIZE", 5)
    progress = Listening()
    device.visits_left = visits
    with pytest.raises(KeyboardInterrupt):
        profile_operators(
            five, profiler=device, path=path, header=made_up, settings=quick, progress=progress
        )
    assert "operators: group 1 of 2" in progress.said
    assert ("operators: group 2 of 2" in progress.said) == (visits > 10)
    if visits < 10:
        with pytest.raises(LatencyTableError):  # nothing but a header
            LatencyTable.read(path).latency_us(five[0].key)
    kept = LatencyTable.read(path)
    finished = len(kept.measurements) + len(kept.pairs)
    assert finished == (0 if visits < 10 else 5)

    again, listening = make_device(), Listening()
    again.latencies_us = {operator.name: 1_000.0 for operator in five}
    table = profile_operators(
        five, profiler=again, path=path, header=made_up, settings=quick, progress=listening
    )
    assert set(table.measurements) == {operator.key for operator in five}
    assert len(table.pairs) == 5
    known = {*map(str, kept.measurements), *(f"{one}{two}" for one, two in kept.pairs)}
    assert len(known) + len(again.measured) == 10  # nothing is measured twice
    for key, measurement in kept.measurements.items():
        assert table.measurements[key] == measurement
    told = (
        f"{path}: {len(kept.measurements)} of 5 operators and "
        f"{len(kept.pairs)} of 5 pairs of neighbors are measured already"
    )
    assert (told in listening.said) == bool(finished)


def test_a_full_table_is_not_measured_again(
    device: Device,
    make_operator: MakeOperator,
    path: Path,
    made_up: TableHeader,
    quick: TimingSettings,
) -> None:
    same = [make_operator(4), make_operator(4)]  # equal keys are one operator
    first = profile_operators(same, profiler=device, path=path, header=made_up, settings=quick)
    assert len(first.measurements) == 1
    before = path.read_bytes()
    device.measured.clear()
    again = profile_operators(same, profiler=device, path=path, header=made_up, settings=quick)
    assert again == first
    assert path.read_bytes() == before
    assert device.measured == []


def test_bad_requests_leave_no_file(
    device: Device, five: list[Operator], path: Path, made_up: TableHeader, quick: TimingSettings
) -> None:
    bad: list[tuple[type[HwnasError], str, TableHeader, bool]] = [
        (ConfigError, "the table of batch 8", replace(made_up, batch=8), False),
        (ConfigError, "is of batch 1 and fp32", replace(made_up, dtype="fp16"), False),
        (ConfigError, "table is of torch-cuda", replace(made_up, target="torch-cuda"), False),
        (ConfigError, "torch-cpu with 2", replace(made_up, threads=2), False),
        (TargetError, "no meter here", made_up, True),
    ]
    for error, message, header, energy in bad:
        with pytest.raises(error, match=message):
            profile_operators(
                five, profiler=device, path=path, header=header, settings=quick, energy=energy
            )
    assert not path.exists()


def test_a_table_of_another_space_is_not_gone_on_from(
    device: Device, five: list[Operator], path: Path, made_up: TableHeader, quick: TimingSettings
) -> None:
    profile_operators(five, profiler=device, path=path, header=made_up, settings=quick)
    before = path.read_bytes()
    with pytest.raises(LatencyTableMismatch):
        profile_operators(
            five,
            profiler=device,
            path=path,
            header=replace(made_up, space_fingerprint="other"),
            settings=quick,
        )
    assert path.read_bytes() == before


def test_what_the_runtime_refuses_is_recorded_with_its_words_and_not_tried_again(
    device: Device, five: list[Operator], path: Path, made_up: TableHeader, quick: TimingSettings
) -> None:
    refused = five[2]
    device.refused = {refused.name: "no kernel for this", "conv to 3 then conv to 5": "nor this"}
    progress = Listening()
    table = profile_operators(
        five, profiler=device, path=path, header=made_up, settings=quick, progress=progress
    )
    assert table.unsupported == {refused.key: "no kernel for this"}
    assert len(table.measurements) == 4
    assert (five[0].key, refused.key) not in table.pairs
    assert len(table.pairs) == 4
    assert f"not supported by torch-cpu: {refused.key}: no kernel for this" in progress.said
    with pytest.raises(LatencyTableMiss, match="no kernel for this"):
        table.latency_us(refused.key)

    device.measured.clear()
    before = path.read_bytes()
    device.refused = {}  # it would take it now, but is not asked
    profile_operators(five, profiler=device, path=path, header=made_up, settings=quick)
    assert device.measured == []
    assert path.read_bytes() == before


def test_pairs_of_an_operator_known_to_be_refused_are_not_tried(
    device: Device, five: list[Operator], path: Path, made_up: TableHeader, quick: TimingSettings
) -> None:
    device.refused = {operator.name: "no" for operator in five[:1]}
    profile_operators(five[:2], profiler=device, path=path, header=made_up, settings=quick)
    device.measured.clear()
    table = profile_operators(five, profiler=device, path=path, header=made_up, settings=quick)
    # All pairs begin with the refused one.
    assert sorted(device.measured) == [operator.name for operator in five[2:]]
    assert five[0].key in table.unsupported


def test_a_runtime_that_takes_nothing_is_an_error_with_its_words(
    device: Device, five: list[Operator], path: Path, made_up: TableHeader, quick: TimingSettings
) -> None:
    device.refused = {operator.name: "wrong driver" for operator in five}
    device.refused |= dict.fromkeys(names_of_pairs(five), "wrong driver")
    with pytest.raises(LatencyTableError, match=r"torch-cpu takes no operator .*: wrong driver"):
        profile_operators(five, profiler=device, path=path, header=made_up, settings=quick)
    with pytest.raises(LatencyTableError, match="there are none"):
        profile_operators(
            [], profiler=device, path=path.with_name("empty.jsonl"), header=made_up, settings=quick
        )


def reading(second: int, *, others: float = 0.0) -> MachineState:
    return MachineState(
        at_ns=second * 1e9,
        cores=2,
        own_ns=second * 1e9,
        busy_ns=(second + others) * 1e9,
        tick_ns=0,
        pilot_ns=8_000,
        temperature_c=40.0 + second,
        clock_mhz=1_500.0,
        throttled="0x0",
    )


def test_a_session_says_how_quiet_the_machine_was(
    device: Device,
    make_operator: MakeOperator,
    path: Path,
    made_up: TableHeader,
    quick: TimingSettings,
) -> None:
    operator = make_operator(4)
    # Another program takes a core of two in the second round.
    device.states = [reading(0), reading(1), reading(2, others=1), reading(3, others=1)]
    device.states += [reading(4, others=1)]
    table = profile_operators(
        [operator], profiler=device, path=path, header=made_up, settings=quick
    )
    assert table.measurements[operator.key].disturbed == 1
    (session,) = table.sessions
    assert (session.rounds, session.disturbed_rounds, session.noisy_rounds) == (2, 1, 0)
    assert session.reasons == {"load of other programs": 1}
    assert session.workloads == 1
    assert session.load_percent == 0  # the median of 0, 50 and 0
    assert session.temperature_c == (40.0, 43.0)
    assert session.clock_mhz == (1_500.0, 1_500.0)
    assert session.pilot_us == 8.0
    assert session.throttled == "0x0"
    assert session.facts == {"power mode": "15 W"}
    assert session.seconds >= 0
    age = datetime.now(UTC) - datetime.fromisoformat(session.utc)
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_each_run_that_measures_is_a_session_and_one_that_tells_nothing_is_survived(
    device: Device, five: list[Operator], path: Path, made_up: TableHeader, quick: TimingSettings
) -> None:
    for count in (2, 2, 5):
        table = profile_operators(
            five[:count], profiler=device, path=path, header=made_up, settings=quick
        )
    assert [session.workloads for session in table.sessions] == [4, 6]
    for session in table.sessions:
        assert session.load_percent is None
        assert session.temperature_c is None
        assert session.clock_mhz is None
        assert session.pilot_us is None


def test_energy_is_measured_where_asked_for(
    device: Device, five: list[Operator], path: Path, made_up: TableHeader, quick: TimingSettings
) -> None:
    device.microjoules = 7.5
    device.refused = {five[1].name: "no", "conv to 3 then conv to 4": "no"}
    table = profile_operators(
        five[:4], profiler=device, path=path, header=made_up, settings=quick, energy=True
    )
    energies = [measured.energy for measured in table.measurements.values()]
    assert [energy.median_uj for energy in energies if energy] == [7.5] * 3
    more = profile_operators(five, profiler=device, path=path, header=made_up, settings=quick)
    assert more.measurements[five[4].key].energy is None


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1_000])
def test_groups_are_of_nearly_equal_size(count: int, make_operator: MakeOperator) -> None:
    work = [make_operator(1)] * count
    sizes = [len(group) for group in operators._groups(work)]
    assert sum(sizes) == count
    assert all(0 < size <= operators.GROUP_SIZE for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_which_group_an_operator_falls_into_is_drawn_with_the_seed(
    make_device: Callable[[], Device],
    make_operator: MakeOperator,
    tmp_path: Path,
    made_up: TableHeader,
    quick: TimingSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operators, "GROUP_SIZE", 4)
    twelve = [make_operator(width) for width in range(10, 22)]
    orders = []
    for number, seed in enumerate((0, 0, 1)):
        device = make_device()
        profile_operators(
            twelve,
            profiler=device,
            path=tmp_path / f"{number}.jsonl",
            header=made_up,
            settings=replace(quick, seed=seed),
        )
        orders.append(device.measured)
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])  # the widest are not all in the last group


@pytest.mark.usefixtures("shared_models")
def test_a_real_runtime_fills_a_table(
    make_operator: MakeOperator, path: Path, header: TableHeader, quick: TimingSettings
) -> None:
    real = [make_operator(3), make_operator(4)]
    shapeless = Operator(
        name="cannot be traced",
        build=_Branching,
        input_shape=(1, 3, 8, 8),
        key=OperatorKey(kind="branching", in_shape=(3, 8, 8), out_shape=(9, 9, 9)),
    )
    with profiler_for("onnxruntime-cpu") as profiler:
        table = profile_operators(
            [*real, shapeless], profiler=profiler, path=path, header=header, settings=quick
        )
    assert set(table.measurements) == {operator.key for operator in real}
    assert set(table.pairs) == {(real[0].key, operator.key) for operator in real}
    assert "cannot be exported" in table.unsupported[shapeless.key]
    weights = [table.measurements[operator.key].weights_bytes for operator in real]
    assert weights == [4 * width * (27 + 1) for width in (3, 4)]
    for measured in table.measurements.values():
        assert measured.peak_activation_bytes
        assert measured.energy is None


class _Branching(nn.Module):
    def forward(self, images: Any) -> Any:
        return images if images.sum() > 0 else -images


@pytest.mark.serial
def test_more_work_takes_longer(
    path: Path, made_up: TableHeader, make_operator: MakeOperator
) -> None:
    small, large = make_operator(4), make_operator(2_048)
    with profiler_for("torch-cpu") as profiler:
        table = profile_operators(
            [large, small],
            profiler=profiler,
            path=path,
            header=made_up,
            settings=TimingSettings(max_samples=60),
        )
    assert table.latency_us(large.key) > 1.5 * table.latency_us(small.key)
    assert np.isfinite(table.latency_us(large.key))
