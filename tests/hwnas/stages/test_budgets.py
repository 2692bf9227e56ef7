"""Budgets as the stages take, hold and record them, on made-up tables and meters."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from hwnas.core.artifacts import ManifestDraft, new_artifact
from hwnas.core.decoding import encode_json
from hwnas.core.errors import BudgetError, ConfigError, LatencyTableError, TargetError
from hwnas.latency.resources import SpaceCosts
from hwnas.search.budget import Budgets
from hwnas.search.records import SearchRecord, read_derivation
from hwnas.space.chain_space import all_genotypes
from hwnas.space.channel.space import ChannelSpace
from hwnas.stages import search as search_stage
from hwnas.stages import searched
from hwnas.stages.config import BudgetConfig, RunConfig
from hwnas.stages.derive import derive
from hwnas_profilers import profiler as profilers
from hwnas_profilers.profiler import NetworkTiming
from hwnas_profilers.records import EnergyStatistics, Statistics
from hwnas_profilers.table import LatencyTable, TableAppender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from hwnas.core.environment import Device
    from hwnas.space.channel.spec import ChannelSpec
    from hwnas_profilers.workload import OperatorKey, Workload

    TableMaker = Callable[..., LatencyTable]


def energy_of(median_uj: float) -> EnergyStatistics:
    return EnergyStatistics(n=6, median_uj=median_uj, low_uj=median_uj, high_uj=median_uj)


@dataclass
class Case:
    """A finished search that likes the widest best, and a table in which width costs all."""

    folder: Path
    costs: SpaceCosts

    @property
    def search(self) -> Path:
        return self.folder / "search"

    @property
    def table(self) -> Path:
        return self.folder / "table.jsonl"

    @property
    def out(self) -> Path:
        return self.folder / "genotype.json"

    def derive(
        self, *, budget_ms: float | None = 9e9, measure: bool = False, **options: Any
    ) -> Any:
        return derive(
            self.search, self.table, self.out, budget_ms=budget_ms, measure=measure, **options
        )


@pytest.fixture
def case(small_spec: ChannelSpec, table_of: TableMaker, tmp_path: Path) -> Case:
    space = ChannelSpace(small_spec)

    def cost_us(key: OperatorKey) -> float:
        return 1.0 + key.in_shape[0] + key.out_shape[0]

    plain = table_of(space, cost_us)
    header = replace(plain.header, space_spec=msgspec.to_builtins(small_spec))
    with TableAppender(tmp_path / "table.jsonl", header) as table:
        for key, each in plain.measurements.items():
            table.append(
                replace(
                    each,
                    weights_bytes=100 * key.out_shape[0],
                    peak_activation_bytes=4 * math.prod(key.in_shape)
                    + 4 * math.prod(key.out_shape),
                    energy=energy_of(10.0 * cost_us(key)),
                )
            )
    layers = space.network(space.largest).tap_names
    record = SearchRecord(
        space=small_spec,
        target="onnxruntime-cpu",
        budget_ms=1.0,
        expected_ms=1.0,
        log_probabilities=tuple(
            tuple(-float(index) for index in range(len(options))) for options in space.options
        ),
        tutor_probabilities=((1.0,),) * len(layers),
        student_layers=layers,
        teacher_layers=("only",),
        attention_size=4,
        seed=0,
    )
    with new_artifact(tmp_path / "search", ManifestDraft(kind="search")) as folder:
        (folder / "search.json").write_bytes(encode_json(record))
    return Case(
        folder=tmp_path, costs=SpaceCosts(space, LatencyTable.read(tmp_path / "table.jsonl"))
    )


def test_what_is_derived_keeps_every_budget_and_records_what_it_takes(case: Case) -> None:
    free = case.derive()
    assert free.blocks == case.costs.space.largest.options
    assert (free.memory_budget_kib, free.weights_budget_kib, free.energy_budget_mj) == (None,) * 3
    for name, figure in (
        ("memory_kib", "memory_kib"),
        ("weights_kib", "weights_kib"),
        ("energy_mj", "uncalibrated_energy_mj"),
    ):
        bound = 0.95 * getattr(free, figure)
        found = case.derive(**{name: bound})
        assert getattr(found, figure) <= bound
        assert found.blocks != free.blocks
        # And it is the likeliest of all that keep it.
        within = [
            each
            for each in all_genotypes(case.costs.space)
            if (getattr(case.costs.figures(each), figure) or 0) <= bound
        ]
        likeliest = min(sum(case.costs.space.choices(each)) for each in within)
        space = case.costs.space
        derivation = read_derivation(case.out)
        assert sum(space.choices(derivation.genotype)) == likeliest
        assert derivation.budgets == Budgets(latency_ms=9e9, **{name: bound})
        assert derivation.resources is not None
        assert derivation.resources.batch == 1
        assert derivation.resources.metered is None
        assert found.metered_energy_mj is None


def test_a_derivation_without_resources_can_still_be_read(case: Case) -> None:
    case.derive()
    document = json.loads(case.out.read_text())
    del document["resources"]
    case.out.write_text(json.dumps(document))
    assert read_derivation(case.out).budgets == Budgets(latency_ms=9e9)


def test_budgets_that_cannot_be_met_leave_nothing_behind(case: Case) -> None:
    with pytest.raises(BudgetError, match=r"budget of 0\.001 KiB of weights"):
        case.derive(weights_kib=0.001)
    lines = case.table.read_text().splitlines()
    bare = [json.loads(line) | {"energy": None} for line in lines[1:]]
    case.table.write_text("\n".join([lines[0], *map(json.dumps, bare)]) + "\n")
    with pytest.raises(LatencyTableError, match="does not tell the energy") as caught:
        case.derive(energy_mj=1.0)
    assert "--energy --out NEW.jsonl" in caught.value.hint
    assert not case.out.exists()


@dataclass
class FakeProfiler:
    """Answers with made-up times and energies."""

    device: Device
    times_ms: list[float]
    energies_mj: list[float] = field(default_factory=list)

    def __enter__(self) -> FakeProfiler:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def time_networks(self, workloads: Sequence[Workload], *_: Any, **__: Any) -> list[Any]:
        assert len(workloads) == 1
        us = self.times_ms.pop(0) * 1e3
        names = ("median_us", "low_us", "high_us", "min_us", "p10_us", "p90_us")
        statistics = Statistics(n=20, **dict.fromkeys(names, us))
        return [NetworkTiming(statistics=statistics, first_us=us, second_us=us)]

    def energies(self, workloads: Sequence[Workload], **_: Any) -> list[EnergyStatistics]:
        if not self.energies_mj:
            raise TargetError("there is no meter here", hint="none")
        return [energy_of(self.energies_mj.pop(0) * 1e3)]


class Said:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def task(self, *_: object, **__: object) -> Any:
        raise AssertionError("nothing here has steps")

    def say(self, message: str) -> None:
        self.messages.append(message)


def measured(
    case: Case, monkeypatch: pytest.MonkeyPatch, times_ms: list[float], energies_mj: list[float]
) -> Said:
    table = LatencyTable.read(case.table)
    fake = FakeProfiler(
        device=table.header.provenance.device, times_ms=times_ms, energies_mj=energies_mj
    )
    monkeypatch.setattr(profilers, "profiler_for", lambda *_, **__: fake)
    return Said()


def test_a_network_that_meters_over_its_energy_gives_way(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = case.derive()
    bound = free.uncalibrated_energy_mj
    said = measured(case, monkeypatch, [0.1, 0.1], [1.1 * bound, 0.9 * bound])
    found = case.derive(energy_mj=bound, measure=True, progress=said)
    assert found.attempts == 2
    assert found.metered_energy_mj == pytest.approx(0.9 * bound)
    assert found.uncalibrated_energy_mj <= 0.9 * bound  # tightened by the tenth that was over
    assert found.blocks != free.blocks
    assert any("(uncalibrated), metered" in message for message in said.messages)
    assert any("not calibrated by whole networks" in message for message in said.messages)
    first, second = read_derivation(case.out).attempts
    assert first.energy_bound_mj == bound
    assert second.energy_bound_mj == pytest.approx(0.9 * bound)
    assert first.bound_ms == second.bound_ms


def test_without_a_meter_the_uncalibrated_sum_stands_and_that_is_said(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = measured(case, monkeypatch, [0.1], [])
    found = case.derive(energy_mj=9e9, measure=True, progress=said)
    assert found.metered_energy_mj is None
    assert any("there is no meter here" in message for message in said.messages)


def test_without_a_bound_on_latency_no_measurement_is_over_it(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = measured(case, monkeypatch, [1e3], [])
    found = case.derive(budget_ms=None, params_k=1e6, measure=True, progress=said)
    assert found.attempts == 1
    assert found.measured_ms == 1e3
    assert found.budget_ms == case.costs.latency.range_ms()[1]


def test_energy_that_nothing_brings_within_its_budget_is_an_error(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = case.derive().uncalibrated_energy_mj
    case.out.unlink()
    measured(case, monkeypatch, [0.1] * 10, [3 * bound] * 10)
    with pytest.raises(BudgetError, match=r"no derived network measured within .* mJ \(metered: "):
        case.derive(energy_mj=bound, measure=True)
    assert not case.out.exists()


def test_a_configuration_s_budgets_are_resolved_for_a_space(case: Case) -> None:
    low, high = case.costs.latency.range_ms()
    given = BudgetConfig(fraction=0.25, weights_kib=7.0, energy_mj=2.0)
    assert given.resolve(case.costs) == Budgets(
        latency_ms=low + 0.25 * (high - low), weights_kib=7.0, energy_mj=2.0
    )
    assert BudgetConfig(ms=0.5, memory_kib=3.0).resolve(case.costs) == Budgets(
        latency_ms=0.5, memory_kib=3.0
    )
    # A place between the ends is one among the networks that the memory has room for.
    least, most = case.costs.memory_range_kib()
    room = (least + most) / 2
    tight = BudgetConfig(fraction=1.0, memory_kib=room).resolve(case.costs)
    times = [
        case.costs.latency.predict_ms(each)
        for each in all_genotypes(case.costs.space)
        if case.costs.memory_kib_of(each) <= room
    ]
    assert tight.latency_ms == pytest.approx(max(times), rel=1e-12)
    assert tight.latency_ms < high


@pytest.mark.parametrize("name", ["memory_kib", "weights_kib", "energy_mj", "macs_m", "params_k"])
def test_with_another_bound_that_on_latency_may_be_left_to_the_slowest_network(
    case: Case, name: str
) -> None:
    bounds: dict[str, float] = {name: 1e6}
    slowest_ms = case.costs.latency.range_ms()[1]
    assert BudgetConfig(**bounds).resolve(case.costs) == Budgets(latency_ms=slowest_ms, **bounds)
    with pytest.raises(ConfigError, match="either `ms` or `fraction`"):
        BudgetConfig(ms=1.0, fraction=0.5, **bounds)
    with pytest.raises(ConfigError, match="either `ms` or `fraction`"):
        BudgetConfig()


@pytest.mark.parametrize("name", ["memory_kib", "weights_kib", "energy_mj", "macs_m", "params_k"])
@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_a_configured_budget_that_is_no_amount_is_refused(name: str, bound: float) -> None:
    others: dict[str, float] = {name: bound}
    with pytest.raises(ConfigError, match=f"`{name}` is a positive number"):
        BudgetConfig(ms=1.0, **others)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, BudgetConfig(fraction=0.5)),
        ({"budget_ms": 2.0}, BudgetConfig(ms=2.0)),
        ({"weights_kib": 9.0}, BudgetConfig(fraction=0.5, weights_kib=9.0)),
        (
            {"budget_ms": 2.0, "memory_kib": 3.0, "energy_mj": 4.0},
            BudgetConfig(ms=2.0, memory_kib=3.0, energy_mj=4.0),
        ),
    ],
)
def test_options_of_search_go_before_its_configuration(
    options: dict[str, float],
    expected: BudgetConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    seen: list[RunConfig] = []
    monkeypatch.setattr(search_stage, "make_search", lambda config, *_, **__: seen.append(config))
    search_stage.search(tmp_path, tmp_path, tmp_path, **options)  # type: ignore[arg-type]
    assert seen[0].budget == expected
    asked = search_stage.search_settings(seen[0], Budgets(latency_ms=1.0, energy_mj=4.0))
    assert {name: asked[name] for name in ("budget_ms", "memory_kib", "energy_mj")} == {
        "budget_ms": 1.0,
        "memory_kib": None,
        "energy_mj": 4.0,
    }
    assert asdict(seen[0].budget)["fraction"] == expected.fraction


def test_one_disturbed_measurement_tightens_nothing(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, slowest_ms = case.costs.latency.range_ms()
    measured(case, monkeypatch, [2 * slowest_ms, 0.9 * slowest_ms, 0.95 * slowest_ms], [])
    found = case.derive(budget_ms=slowest_ms, measure=True)
    assert found.attempts == 1
    assert found.measured_ms == pytest.approx(0.95 * slowest_ms)


def test_before_it_gives_up_it_tries_the_fastest(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest_ms, slowest_ms = case.costs.latency.range_ms()
    # So far over that what would be left of the budget is less than any network takes.
    over = [slowest_ms + fastest_ms] * 3
    measured(case, monkeypatch, [*over, 1.1 * fastest_ms, *over * 3], [])
    found = case.derive(budget_ms=1.2 * fastest_ms, measure=True)
    assert found.attempts >= 2
    assert found.blocks == case.costs.space.smallest.options
    case.out.unlink()
    measured(case, monkeypatch, over * 2, [])
    with pytest.raises(BudgetError, match="no derived network measured within"):
        case.derive(budget_ms=1.2 * fastest_ms, measure=True)
    assert not case.out.exists()


def known_to_err(percent: float) -> Any:
    """Read tables as ever, and let them have been found to err by so much."""
    read = searched.costs_of_search

    def costs_of_search(*arguments: Any, **options: Any) -> Any:
        record, costs, table = read(*arguments, **options)
        calibration: Any = SimpleNamespace(holdout=SimpleNamespace(mape_percent=percent))
        return record, costs, replace(table, calibration=calibration)

    return costs_of_search


def test_a_machine_that_is_slow_for_a_while_costs_no_network(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    low_ms, high_ms = case.costs.latency.range_ms()
    budget_ms = low_ms + 0.5 * (high_ms - low_ms)
    by_prediction = case.derive(budget_ms=budget_ms)
    predicted_ms = by_prediction.predicted_ms
    monkeypatch.setattr(searched, "costs_of_search", known_to_err(1.0))
    monkeypatch.setattr("hwnas.stages.derive.PAUSES_S", (0.0, 0.0))
    # Three measurements on end in a slow spell, then one after it.
    said = measured(case, monkeypatch, [1.5 * predicted_ms] * 3 + [0.99 * predicted_ms] * 3, [])
    found = case.derive(budget_ms=budget_ms, measure=True, progress=said)
    assert found.blocks == by_prediction.blocks
    assert (found.attempts, found.measured_ms) == (1, 0.99 * predicted_ms)
    assert any("more than the table explains" in message for message in said.messages)
    # What stays slow is over the budget, as it was measured.
    measured(case, monkeypatch, [1.5 * predicted_ms] * 90, [])
    with pytest.raises(BudgetError, match="no derived network measured within"):
        case.derive(budget_ms=budget_ms, measure=True)


def test_what_a_table_predicts_too_high_is_made_use_of(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    low_ms, high_ms = case.costs.latency.range_ms()
    budget_ms = low_ms + 0.5 * (high_ms - low_ms)
    by_prediction = case.derive(budget_ms=budget_ms)
    # Every network takes a fifth less than the table says.
    fake = measured(case, monkeypatch, [], [])
    answered: list[float] = []

    def time_networks(self: FakeProfiler, workloads: Sequence[Workload], *_: Any, **__: Any) -> Any:
        operators = [part.key for part in workloads[0].parts]  # type: ignore[attr-defined]
        us = 0.8 * sum(1.0 + key.in_shape[0] + key.out_shape[0] for key in operators)
        answered.append(us / 1e3)
        names = ("median_us", "low_us", "high_us", "min_us", "p10_us", "p90_us")
        statistics = Statistics(n=20, **dict.fromkeys(names, us))
        return [NetworkTiming(statistics=statistics, first_us=us, second_us=us)]

    monkeypatch.setattr(FakeProfiler, "time_networks", time_networks)
    # A table that nothing tells the error of is taken at its word.
    assert case.derive(budget_ms=budget_ms, measure=True).blocks == by_prediction.blocks
    monkeypatch.setattr(searched, "costs_of_search", known_to_err(10.0))
    found = case.derive(budget_ms=budget_ms, measure=True, progress=fake)
    assert by_prediction.predicted_ms < found.predicted_ms
    assert found.measured_ms <= budget_ms
    assert found.measured_ms > 0.8 * by_prediction.predicted_ms
    attempts = read_derivation(case.out).attempts
    assert attempts[-1].genotype.options == found.blocks
    assert len({each.genotype for each in attempts}) == len(attempts)
