"""`hwnas pareto`, and deriving from any space for any device, on made-up tables."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from hwnas.api import derive, pareto
from hwnas.core.artifacts import ManifestDraft, new_artifact, read_manifest
from hwnas.core.decoding import encode_json
from hwnas.core.errors import (
    ArtifactError,
    BudgetError,
    ConfigError,
    InputFileError,
    LatencyTableMismatch,
    LatencyTableMiss,
)
from hwnas.latency.resources import SpaceCosts
from hwnas.search.front import score_of_choices
from hwnas.search.front_records import read_front
from hwnas.search.records import SearchRecord, read_derivation, read_search
from hwnas.space.chain_space import all_genotypes
from hwnas.space.mbconv.spec import MBConvSpec, MBConvStage
from hwnas.space.registry import space_from_spec
from hwnas_profilers import profiler as profilers
from hwnas_profilers.profiler import NetworkTiming
from hwnas_profilers.records import Statistics
from hwnas_profilers.table import LatencyTable, TableAppender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import click.testing

    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.channel.spec import ChannelSpec
    from hwnas_profilers.workload import OperatorKey, Workload

    TableMaker = Callable[..., LatencyTable]

MBCONV = MBConvSpec(
    name="blocks",
    image_shape=(1, 16, 16),
    classes=10,
    stem=8,
    stem_stride=2,
    stages=(MBConvStage(blocks=2, widths=(8,)), MBConvStage(blocks=2, widths=(16,), stride=2)),
    kernels=(3, 5),
    expansions=(2,),
    se=(False,),
)


@dataclass
class Case:
    """A finished search that likes what takes long, and a table of its space."""

    folder: Path
    space: ChainSpace
    scores: list[np.ndarray[Any, np.dtype[np.float64]]]

    @property
    def search(self) -> Path:
        return self.folder / "search"

    @property
    def table(self) -> Path:
        return self.folder / "table.jsonl"

    @property
    def out(self) -> Path:
        return self.folder / "front"

    @property
    def costs(self) -> SpaceCosts:
        return SpaceCosts(self.space, LatencyTable.read(self.table))

    @property
    def halfway_macs_m(self) -> float:
        low, high = self.costs.macs.range() or (0.0, 0.0)
        return (low + high) / 2e6

    def pareto(self, **options: Any) -> Any:
        return pareto(self.search, self.table, self.out, **options)

    def derive(self, **options: Any) -> Any:
        return derive(self.search, self.table, self.folder / "g.json", measure=False, **options)


@pytest.fixture(params=["channels", "blocks"])
def case(
    request: pytest.FixtureRequest,
    small_spec: ChannelSpec,
    table_of: TableMaker,
    tmp_path: Path,
) -> Case:
    spec = small_spec if request.param == "channels" else MBCONV
    space = space_from_spec(spec)
    generator = np.random.default_rng(0)

    def cost_us(key: OperatorKey) -> float:
        return 1.0 + space.macs_of(key) / 1e3 * float(generator.lognormal(0, 0.2))

    write_table(tmp_path / "table.jsonl", table_of(space, cost_us), spec)
    scores = [np.log(generator.dirichlet(np.ones(len(options)))) for options in space.options]
    layers = space.supernet().tap_names
    record = SearchRecord(
        space=spec,
        target="onnxruntime-cpu",
        budget_ms=1.0,
        expected_ms=1.0,
        log_probabilities=rows(scores),
        tutor_probabilities=((0.25, 0.75),) * len(layers),
        student_layers=layers,
        teacher_layers=("first", "second"),
        attention_size=4,
        seed=0,
    )
    with new_artifact(tmp_path / "search", ManifestDraft(kind="search")) as folder:
        (folder / "search.json").write_bytes(encode_json(record))
    return Case(folder=tmp_path, space=space, scores=scores)


def rows(scores: list[Any]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row.tolist()) for row in scores)


def write_table(path: Path, plain: LatencyTable, spec: Any, **changes: Any) -> None:
    header = replace(plain.header, space_spec=msgspec.to_builtins(spec), **changes)
    with TableAppender(path, header) as table:
        for each in plain.measurements.values():
            table.append(each)


def non_dominated(case: Case) -> list[tuple[float, float]]:
    """(latency, score) of the front, by trying all networks."""
    costs = case.costs
    every = []
    for genotype in all_genotypes(case.space):
        choices = case.space.choices(genotype)
        latency_ms = costs.latency.cost_us.of(choices) / 1e3
        if math.isfinite(latency_ms):
            every.append((latency_ms, score_of_choices(case.scores, choices)))
    front = [
        one
        for one in every
        if not any(o != one and o[0] <= one[0] and o[1] >= one[1] for o in every)
    ]
    return sorted(set(front))


def test_the_front_is_all_that_is_not_beaten_and_every_figure_is_its_networks(case: Case) -> None:
    result = case.pareto()
    record = read_front(case.out / "front.json")
    expected = non_dominated(case)
    assert len(expected) > 2
    assert [(point.predicted_ms, point.score) for point in record.points] == expected
    assert record.complete
    assert result.networks == record.networks == len(expected)
    assert (result.fastest_ms, result.slowest_ms) == (expected[0][0], expected[-1][0])
    assert [(row.predicted_ms, row.log_probability) for row in result.points] == expected
    for point, row in zip(record.points, result.points, strict=True):
        assert point.macs == row.macs == case.space.macs(point.genotype)
        assert point.params == row.params == case.space.parameters(point.genotype)
        assert (point.memory_kib, point.weights_kib, point.measured) == (None, None, None)
        assert row.network == point.genotype.label
    manifest = read_manifest(case.out, kind="pareto")
    assert set(manifest.outputs) == {"front.json", "front.svg"}
    assert set(manifest.inputs) == {"table", "search"}
    picture = (case.out / "front.svg").read_text()
    assert picture.startswith("<svg")
    assert 'aria-label="Rising curve of log-probability over predicted latency: ' in picture
    assert "--blue:#0072b2" in picture


def test_a_point_s_budget_derives_its_network(case: Case) -> None:
    result = case.pareto()
    record = read_front(case.out / "front.json")
    for point in record.points:
        derived = case.derive(budget_ms=point.predicted_ms)
        assert derived.predicted_ms == point.predicted_ms
        derivation = read_derivation(case.folder / "g.json")
        assert derivation.genotype == point.genotype
        # Of a space whose blocks can be skipped the layers are some of the search's.
        with_layers = case.space.network(point.genotype).tap_names
        assert derivation.student_layers == with_layers
        assert derivation.tutor_weights == ((0.0, 1.0),) * len(with_layers)
    assert result.derive.startswith(f"hwnas derive --search {case.search} --table {case.table}")
    assert f"--budget-ms {result.points[len(result.points) // 2].predicted_ms!r}" in result.derive


def test_other_budgets_take_networks_off_it(case: Case) -> None:
    free = case.pareto()
    bound = 0.999 * free.points[-1].macs / 1e6  # what would be derived without it
    found = case.pareto(macs_m=bound, points=3)
    record = read_front(case.out / "front.json")
    assert all(point.macs / 1e6 <= bound for point in record.points)
    assert record.budgets.macs_m == bound
    assert 1 <= len(found.points) <= 3
    assert found.points[-1].log_probability < free.points[-1].log_probability
    assert f"--macs-m {bound!r}" in found.derive
    fastest = case.pareto(budget_ms=free.fastest_ms)
    assert (fastest.networks, fastest.fastest_ms) == (1, free.fastest_ms)


def test_a_front_out_of_reach_is_found_point_by_point_and_that_is_said(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwnas.search.labels.MAX_CANDIDATES", {1: 2, 2: 2})
    said = Said()
    found = case.pareto(points=4, progress=said)
    assert not found.complete
    assert any("out of reach (more than 2 partial networks" in message for message in said.messages)
    expected = non_dominated(case)
    shown = [(row.predicted_ms, row.log_probability) for row in found.points]
    assert set(shown) <= set(expected)
    assert shown[-1] == expected[-1]
    assert "others between" in (case.out / "front.svg").read_text() or not found.complete


def test_a_search_that_has_hardly_chosen_is_told_of(case: Case) -> None:
    said = Said()
    _, slowest_ms = case.costs.latency.range_ms()
    case.derive(budget_ms=slowest_ms, progress=said)
    assert not any("as even as chance" in message for message in said.messages)
    # As if it had been stopped after a step or two.
    even = [np.full(len(options), -math.log(len(options))) for options in case.space.options]
    record = replace(read_search(case.search / "search.json"), log_probabilities=rows(even))
    with new_artifact(case.folder / "even", ManifestDraft(kind="search")) as folder:
        (folder / "search.json").write_bytes(encode_json(record))
    derive(
        case.folder / "even", case.table, case.folder / "e.json",
        budget_ms=slowest_ms, measure=False, progress=said,
    )  # fmt: skip
    assert "search: its choices of options are 100 % as even as chance: " in "".join(said.messages)


class Said:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def task(self, *_: object, **__: object) -> Any:
        raise AssertionError("nothing here has steps")

    def say(self, message: str) -> None:
        self.messages.append(message)


@dataclass
class FakeProfiler:
    """Takes a tenth longer than predicted."""

    case: Case
    seen: list[int]

    def __enter__(self) -> FakeProfiler:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def device(self) -> Any:
        return LatencyTable.read(self.case.table).header.provenance.device

    def time_networks(self, workloads: Sequence[Workload], *_: Any, **__: Any) -> list[Any]:
        self.seen.append(len(workloads))
        labels = {
            f"{self.case.space.spec.name} {each.label}": each
            for each in all_genotypes(self.case.space)
        }
        timings = []
        for workload in workloads:
            genotype = labels[workload.name]
            us = 1.1e3 * self.case.costs.latency.predict_ms(genotype)
            names = ("median_us", "low_us", "high_us", "min_us", "p10_us", "p90_us")
            statistics = Statistics(n=20, **dict.fromkeys(names, us))
            timings.append(NetworkTiming(statistics=statistics, first_us=us, second_us=us))
        return timings


@pytest.mark.parametrize("count", [1, 3])
def test_networks_are_measured_together_and_shown_beside_their_predictions(
    case: Case, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    fake = FakeProfiler(case, [])
    monkeypatch.setattr(profilers, "profiler_for", lambda *_, **__: fake)
    found = case.pareto(measure=count, points=2)
    record = read_front(case.out / "front.json")
    measured = [point for point in record.points if point.measured]
    assert fake.seen == [len(measured)] == [found.measured]  # one round of all: interleaved
    assert 1 <= len(measured) <= count
    assert found.error_percent == pytest.approx(100 * (1 - 1 / 1.1))
    rows = [row for row in found.points if row.measured_ms is not None]
    assert len(rows) == len(measured)
    assert all(row.measured_ms == pytest.approx(1.1 * row.predicted_ms) for row in rows)
    picture = (case.out / "front.svg").read_text()
    assert f"{len(measured)} diamonds show measured latencies" in picture


def test_another_devices_table_needs_no_training(case: Case, table_of: TableMaker) -> None:
    here = case.derive(budget_ms=case.pareto().slowest_ms)
    case.table.unlink()
    device = replace(LatencyTableOf.device(table_of, case.space), name="another device")
    plain = table_of(case.space, lambda key: 100.0 + case.space.macs_of(key) / 1e2)
    provenance = replace(plain.header.provenance, device=device)
    write_table(case.table, plain, case.space.spec, provenance=provenance, batch=1)
    there = case.pareto()
    assert there.fastest_ms > here.predicted_ms
    assert read_front(case.out / "front.json").device == "another device"
    assert case.derive(budget_ms=there.fastest_ms).predicted_ms == there.fastest_ms


class LatencyTableOf:
    @staticmethod
    def device(table_of: TableMaker, space: ChainSpace) -> Any:
        return table_of(space, lambda key: 1.0).header.provenance.device


def test_without_a_bound_on_latency_the_slowest_network_is_it(case: Case) -> None:
    bound = case.halfway_macs_m
    found = case.derive(macs_m=bound, params_k=1e6)
    low, high = case.costs.latency.range_ms()
    assert found.budget_ms == high
    assert found.macs / 1e6 <= bound
    assert (found.macs_budget_m, found.params_budget_k) == (bound, 1e6)
    budgets = read_derivation(case.folder / "g.json").budgets
    assert (budgets.latency_ms, budgets.macs_m, budgets.params_k) == (high, bound, 1e6)
    with pytest.raises(ConfigError, match="no budget is given") as caught:
        case.derive()
    assert "--budget-ms, or one of --memory-kib" in caught.value.hint
    assert low < high


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"points": 1}, "`points` is at least 2"),
        ({"measure": -1}, "`measure` is at least 0"),
        ({"budget_ms": math.nan}, "a budget is a positive number of milliseconds, not nan"),
        ({"budget_ms": 1e-9}, r"no network meets a budget of 1e-09 ms: networks of .* take .* to"),
        ({"macs_m": -1.0}, "positive number of millions of multiply-accumulates"),
        ({"macs_m": 1e-9}, r"budget of 1e-09 million multiply-accumulates: .* take .* to"),
        ({"params_k": 1e-9}, r"budget of 1e-09 thousand parameters: .* take .* to .* parameters"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing_behind(
    case: Case, options: dict[str, float], says: str
) -> None:
    with pytest.raises((ConfigError, BudgetError), match=says):
        case.pareto(**options)
    assert not case.out.exists()


def test_budgets_against_each_other_name_what_binds(case: Case, table_of: TableMaker) -> None:
    case.table.unlink()
    backward = table_of(case.space, lambda key: 1e9 / case.space.macs_of(key))
    write_table(case.table, backward, case.space.spec)
    ends = case.costs.macs.range()
    assert ends is not None
    options = {"budget_ms": case.costs.latency.range_ms()[0], "macs_m": ends[0] / 1e6}
    for name, bound in options.items():
        assert case.pareto(**{name: bound}).networks >= 1
    with pytest.raises(BudgetError, match="though each can be met alone") as caught:
        case.pareto(**options)
    assert "what binds is `latency_ms` or `macs_m`" in caught.value.hint


def test_parts_that_do_not_fit_are_refused(case: Case, table_of: TableMaker) -> None:
    lines = case.table.read_text().splitlines()
    case.table.write_text("\n".join(lines[:4]) + "\n")
    with pytest.raises(LatencyTableMiss, match=r"lacks \d+ of \d+ operators of") as missed:
        case.pareto()
    assert "hwnas profile --space" in missed.value.hint
    header = json.loads(lines[0])
    header["space_fingerprint"] = "0" * len(header["space_fingerprint"])
    case.table.write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    with pytest.raises(LatencyTableMismatch, match="or other images or classes"):
        case.pareto()
    (case.search / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="is no finished hwnas artifact"):
        case.pareto()
    with pytest.raises(InputFileError, match="did not make"):
        pareto(case.search, case.table, case.folder)
    assert not case.out.exists()


def test_the_command_line_shows_rows_and_the_command_that_derives_one(
    case: Case, hwnas: Callable[..., click.testing.Result]
) -> None:
    arguments = ("pareto", case.search, "--table", case.table, "--out", case.out, "--points", 3)
    shown = hwnas(*arguments)
    assert shown.exit_code == 0, shown.output
    assert "log probability" in shown.stdout
    assert f"hwnas derive --search {case.search}" in shown.stdout
    document = json.loads(hwnas(*arguments, "--json").stdout)
    assert len(document["points"]) == 3
    assert document["networks"] == len(non_dominated(case))
    wrong = hwnas(*arguments, "--params-k", 0.001)
    assert wrong.exit_code == 1
    assert "thousand parameters" in wrong.stderr
