"""`hwnas pareto`: every network of a search that is the best within its latency, on a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from hwnas.latency.resources import SpaceCosts
    from hwnas.search.budget import Budgets
    from hwnas.search.front import ParetoFront
    from hwnas.search.front_records import FrontPoint
    from hwnas_profilers.records import Statistics
    from hwnas_profilers.table import LatencyTable

FRONT_FILE = "front.json"
PICTURE_FILE = "front.svg"
MAX_POINTS = 10_000
"""Networks that `front.json` holds at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontRow:
    """A network of the front, in short.

    Attributes:
        predicted_ms: Its predicted latency.
        measured_ms: Measured latency (median); None where it was not measured.
        log_probability: Sum over its blocks' choices.
        macs: Multiply-accumulates per image.
        params: Trained parameters.
        memory_kib: Peak of live activations; None where the table does not tell.
        weights_kib: Size of the weights; None likewise.
        uncalibrated_energy_mj: Sum of its operators' energies; None likewise.
        network: What its blocks are.
    """

    predicted_ms: float
    measured_ms: float | None
    log_probability: float
    macs: int
    params: int
    memory_kib: float | None
    weights_kib: float | None
    uncalibrated_energy_mj: float | None
    network: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoResult:
    """A Pareto front.

    Attributes:
        front: Its file, with up to 10,000 networks.
        picture: Its picture.
        networks: Networks on the front.
        complete: Whether they are all that are on it.
        fastest_ms: Predicted latency of the fastest network.
        slowest_ms: Predicted latency of the best network there is: more time buys nothing.
        measured: Networks that were measured.
        error_percent: By how much predictions are off measurements on average; None without any.
        estimated_operators: Operators of the networks whose latency is an estimate.
        points: Some of the networks, evenly over the latency.
        derive: The command that makes a genotype of one of them.
    """

    front: str
    picture: str
    networks: int
    complete: bool
    fastest_ms: float
    slowest_ms: float
    measured: int
    error_percent: float | None
    estimated_operators: int
    points: tuple[FrontRow, ...]
    derive: str


def pareto(
    search: Path,
    table: Path,
    out: Path,
    *,
    budget_ms: float | None = None,
    memory_kib: float | None = None,
    weights_kib: float | None = None,
    energy_mj: float | None = None,
    macs_m: float | None = None,
    params_k: float | None = None,
    points: int = 50,
    measure: int = 0,
    estimate: bool = False,
    relative_width: float = 0.005,
    progress: Progress = SILENT,
) -> ParetoResult:
    """Find the whole Pareto front of a search on a latency table, exactly.

    On it is every network of the space that no other beats in both log-probability and predicted
    latency: what the exact derivation would give for every budget there is. No training is needed,
    and no device, unless some are to be measured.

    Args:
        search: Folder of a search.
        table: Latency table of the search's space, on any target.
        out: Folder of the front: front.json, and its picture front.svg.
        budget_ms: Bound on the latency, in milliseconds.
        memory_kib: Bound on the peak of live activations, in KiB.
        weights_kib: Bound on the size of the weights, in KiB.
        energy_mj: Bound on the uncalibrated sum of the operators' energies, in millijoules.
        macs_m: Bound on the multiply-accumulates per image, in millions.
        params_k: Bound on the trained parameters, in thousands.
        points: Networks to show, evenly over the latency, both ends among them. Where the whole
            front is too large to be found, these are all there is.
        measure: Networks to measure on the target, interleaved and evenly over the latency.
        estimate: Estimate operators that the table lacks from those that it has. The table may then
            be of another space. Every result says how much of it is estimated.
        relative_width: A measurement is finished once the 95 % interval of its median is narrower
            than this share of the median.
        progress: Where to report.

    Returns:
        The front.

    Raises:
        BudgetError: No network of the space meets the budgets.
        ConfigError: Fewer than two points are asked for, or a negative number of measurements.
        ArtifactError: The search is unfinished or was changed.
        LatencyTableError: The table cannot be used with this search, or does not tell what a budget
            bounds.
        TargetError: The target cannot be measured here.
    """
    import math

    import numpy as np

    from hwnas.core.artifacts import ManifestDraft, check_place, new_artifact, sha256_of_file
    from hwnas.core.decoding import encode_json
    from hwnas.core.errors import ConfigError
    from hwnas.report.drawing import drawing_style, svg_file_from_picture
    from hwnas.report.front_picture import front_picture, mean_error_percent
    from hwnas.search.budget import Budgets
    from hwnas.search.derive import check_budgets
    from hwnas.search.feasible import with_finite_latency
    from hwnas.search.front_records import FrontRecord
    from hwnas.stages.budgets import say_what_is_out
    from hwnas.stages.calls import call_text
    from hwnas.stages.search import SEARCH_FILE
    from hwnas.stages.searched import costs_of_search
    from hwnas.stages.spaces import estimates_in

    if points < 2:
        raise ConfigError(f"`points` is at least 2, both ends of the front, not {points}")
    if measure < 0:
        raise ConfigError(f"`measure` is at least 0, not {measure}")
    check_place(out)
    bounds = {
        "memory_kib": memory_kib,
        "weights_kib": weights_kib,
        "energy_mj": energy_mj,
        "macs_m": macs_m,
        "params_k": params_k,
    }
    asked = Budgets(latency_ms=math.inf if budget_ms is None else budget_ms, **bounds)
    record, costs, read = costs_of_search(search, table, estimate=estimate, progress=progress)
    header = read.header
    budgets = with_finite_latency(costs, asked)
    check_budgets(costs, budgets)
    say_what_is_out(costs, budgets, progress)
    front = _front(costs, record.log_probabilities, budgets, points, progress)
    kept, shown, timed = (front.spread(count) for count in (MAX_POINTS, points, measure))
    measured = _measured(front, timed, read, relative_width, progress)
    networks = {
        place: _point(costs, front, place, measured.get(place))
        for place in np.union1d(np.union1d(kept, shown), timed).tolist()
    }
    keys = [key for each in networks.values() for key in costs.space.operators_of(each.genotype)]
    estimated = estimates_in(read, dict.fromkeys(keys))
    found = FrontRecord(
        space=record.space.name,
        target=header.target,
        device=header.provenance.device.name,
        threads=header.threads,
        batch=header.batch,
        budgets=budgets,
        networks=len(front),
        complete=front.complete,
        points=tuple(networks.values()),
        estimated=estimated,
        table_sha256=sha256_of_file(table),
        search_sha256=sha256_of_file(search / SEARCH_FILE),
    )
    rows = [_row(networks[place]) for place in np.union1d(shown, timed).tolist()]
    middle = rows[len(rows) // 2]
    result = ParetoResult(
        front=str(out / FRONT_FILE),
        picture=str(out / PICTURE_FILE),
        networks=len(front),
        complete=front.complete,
        fastest_ms=rows[0].predicted_ms,
        slowest_ms=rows[-1].predicted_ms,
        measured=len(measured),
        error_percent=mean_error_percent(found.points),
        estimated_operators=estimated.operators if estimated else 0,
        points=tuple(rows),
        derive=_derive_command(search, table, middle.predicted_ms, bounds, estimate=estimate),
    )
    options = {"points": points, "measure": measure, "estimate": estimate}
    draft = ManifestDraft(
        kind="pareto",
        call=call_text(
            "pareto", search=search, table=table, out=out, budget_ms=budget_ms, **bounds, **options
        ),
        settings={"budget_ms": budget_ms, **bounds, **options},
        inputs={"table": found.table_sha256, "search": found.search_sha256},
    )
    with drawing_style():
        drawing = svg_file_from_picture(front_picture(found))
    with new_artifact(out, draft) as folder:
        (folder / FRONT_FILE).write_bytes(encode_json(found, indent=1))
        (folder / PICTURE_FILE).write_bytes(drawing)
    return result


def _front(
    costs: SpaceCosts,
    log_probabilities: tuple[tuple[float, ...], ...],
    budgets: Budgets,
    points: int,
    progress: Progress,
) -> ParetoFront:
    """Find the whole front, or, where it is too large, some points of it."""
    import numpy as np

    from hwnas.search.front import front_by_program, pareto_front
    from hwnas.search.labels import TooManyLabels

    scores = [np.array(row) for row in log_probabilities]
    try:
        return pareto_front(costs, scores, budgets)
    except TooManyLabels as reason:
        progress.say(
            f"pareto: the whole front is out of reach ({reason}): the best networks within "
            f"{points} latencies are found one by one, each exact"
        )
    return front_by_program(costs, scores, budgets, points)


def _measured(
    front: ParetoFront,
    places: NDArray[np.int64],
    table: LatencyTable,
    relative_width: float,
    progress: Progress,
) -> dict[int, Statistics]:
    """Measure networks on the target, interleaved; by their places."""
    if not len(places):
        return {}
    from hwnas_profilers.profiler import profiler_for
    from hwnas_profilers.timing import TimingSettings

    header = table.header
    settings = TimingSettings.for_networks(relative_width=relative_width)
    workloads = [front.space.workload(front.genotype(place)) for place in places.tolist()]
    with profiler_for(header.measured_at, threads=header.threads) as profiler:
        table.require(device=profiler.device.name)
        timings = profiler.time_networks(workloads, settings, progress=progress)
    statistics = (timing.statistics for timing in timings)
    return dict(zip(places.tolist(), statistics, strict=True))


def _point(
    costs: SpaceCosts, front: ParetoFront, place: int, measured: Statistics | None
) -> FrontPoint:
    from hwnas.search.front_records import FrontPoint

    genotype = front.genotype(place)
    keys = costs.space.operators_of(genotype)
    figures = costs.figures(genotype)
    return FrontPoint(
        genotype=genotype,
        score=float(front.scores[place]),
        predicted_ms=float(front.latencies_ms[place]),
        macs=sum(costs.space.macs_of(key) for key in keys),
        params=sum(costs.space.parameters_of(key) for key in keys),
        memory_kib=figures.memory_kib,
        weights_kib=figures.weights_kib,
        uncalibrated_energy_mj=figures.uncalibrated_energy_mj,
        measured=measured,
    )


def _row(point: FrontPoint) -> FrontRow:
    return FrontRow(
        predicted_ms=point.predicted_ms,
        measured_ms=point.measured.median_us / 1e3 if point.measured else None,
        log_probability=point.score,
        macs=point.macs,
        params=point.params,
        memory_kib=point.memory_kib,
        weights_kib=point.weights_kib,
        uncalibrated_energy_mj=point.uncalibrated_energy_mj,
        network=point.genotype.label,
    )


def _derive_command(
    search: Path, table: Path, budget_ms: float, bounds: dict[str, float | None], *, estimate: bool
) -> str:
    """Return the command that derives the network at a latency of the front."""
    others = "".join(
        f" --{name.replace('_', '-')} {bound!r}"
        for name, bound in bounds.items()
        if bound is not None
    )
    return (
        f"hwnas derive --search {search} --table {table} --budget-ms {budget_ms!r}{others}"
        f"{' --estimate' * estimate} --out genotype.json"
    )
