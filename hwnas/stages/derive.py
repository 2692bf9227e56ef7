"""`hwnas derive`: the exact best network within the budgets, measured on the target."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import TYPE_CHECKING

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hwnas.latency.resources import SpaceCosts
    from hwnas.search.budget import Budgets
    from hwnas.search.records import Attempt, Derivation
    from hwnas_profilers.profiler import Profiler
    from hwnas_profilers.records import CalibrationRecord, EnergyStatistics, Statistics
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.timing import TimingSettings
    from hwnas_profilers.workload import Workload

MAX_ATTEMPTS = 10
MAX_WIDENED = 4
"""Networks that are tried in all to use more of a budget that one of them keeps."""
SLACK = 0.05
"""Share of a budget that may be left; of more, use is made."""
MARGIN = 0.03
"""Share of a budget that is then left: who tries for more picks measurements that were lucky."""
KNOWN_ERRORS = 3.0
"""Mean errors of the table on held-out networks by which a prediction may exceed a budget."""
CONFIRMATIONS = 3
"""Measurements of a network whose first is near the budget or over it."""
PAUSES_S = (1.0, 3.0, 9.0)
"""Waits before what is over the budget, by more than the table is known to err, is measured again:
a machine that others use is slow for seconds, which three measurements on end all fall into."""
LEAST_DOUBTED = 0.02
"""Share by which a measurement must exceed the prediction to be doubted, however good the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeriveResult:
    """A derived network.

    Attributes:
        genotype: Its file.
        blocks: What each searched block is: a name, or its output width where that alone is
            searched.
        budget_ms: Bound on the latency.
        predicted_ms: Predicted latency.
        measured_ms: Measured latency (median); None where it was not measured.
        attempts: Networks derived and measured until one was within the budgets.
        macs: Multiply-accumulates per image.
        params: Trained parameters.
        memory_kib: Peak of live activations; None where the table does not tell.
        weights_kib: Size of the weights; None likewise.
        uncalibrated_energy_mj: Sum of its operators' energies, each run alone; None likewise.
        metered_energy_mj: Metered energy (median); None where it was not metered.
        memory_budget_kib: Bound on the activations; None without one.
        weights_budget_kib: Bound on the weights; None without one.
        energy_budget_mj: Bound on the energy; None without one.
        macs_budget_m: Bound on the multiply-accumulates, in millions; None without one.
        params_budget_k: Bound on the parameters, in thousands; None without one.
        estimated_operators: Operators of the network whose latency is an estimate.
        widest_estimate_percent: Widest of their 90 % intervals, relative to the estimate.
    """

    genotype: str
    blocks: tuple[int | str, ...]
    budget_ms: float
    predicted_ms: float
    measured_ms: float | None
    attempts: int
    macs: int
    params: int
    memory_kib: float | None
    weights_kib: float | None
    uncalibrated_energy_mj: float | None
    metered_energy_mj: float | None
    memory_budget_kib: float | None
    weights_budget_kib: float | None
    energy_budget_mj: float | None
    macs_budget_m: float | None
    params_budget_k: float | None
    estimated_operators: int
    widest_estimate_percent: float | None


def derive(
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
    measure: bool = True,
    estimate: bool = False,
    relative_width: float = 0.005,
    progress: Progress = SILENT,
) -> DeriveResult:
    """Derive the exact best architecture under a latency budget, and measure it.

    The summed log-probability of the blocks' choices is the highest there is within the budgets; of
    equal ones the fastest is taken.

    No training is needed, so one search serves many budgets and devices: give another table to
    derive for another target. A network that measures over a budget tightens the bound by the gap,
    and the next best is derived; one that leaves some of it widens the bound likewise, so that an
    error of the table costs little.

    Args:
        search: Folder of a search.
        table: Latency table of the search's space, on any target.
        out: The genotype's file, JSON.
        budget_ms: Bound on the latency, in milliseconds; by default, where another bound is given,
            that of the space's slowest network.
        memory_kib: Bound on the peak of live activations, in KiB.
        weights_kib: Bound on the size of the weights, in KiB.
        energy_mj: Bound on the energy of a call, in millijoules: on the uncalibrated sum of the
            operators' energies, and on the network's own where it can be metered.
        macs_m: Bound on the multiply-accumulates per image, in millions.
        params_k: Bound on the trained parameters, in thousands.
        measure: Measure on the target; else the predictions stand.
        estimate: Estimate operators that the table lacks from those that it has. The table may then
            be of another space. Every result says how much of it is estimated.
        relative_width: A measurement is finished once the 95 % interval of its median is narrower
            than this share of the median.
        progress: Where to report.

    Returns:
        The derived network.

    Raises:
        BudgetError: No network of the space meets the budgets; what its networks take is named, and
            which budget binds.
        ConfigError: No budget is given.
        ArtifactError: The search is unfinished or was changed.
        LatencyTableError: The table cannot be used with this search, or does not tell what a budget
            bounds.
        TargetError: The target cannot be measured here.
    """
    from hwnas.stages.budgets import budgets_from_options
    from hwnas_profilers.timing import TimingSettings

    settings = TimingSettings.for_networks(relative_width=relative_width)
    budgets = budgets_from_options(
        budget_ms,
        memory_kib=memory_kib,
        weights_kib=weights_kib,
        energy_mj=energy_mj,
        macs_m=macs_m,
        params_k=params_k,
    )
    derivation = make_derivation(
        search,
        table,
        budgets,
        out,
        measure=measure,
        estimate=estimate,
        settings=settings,
        progress=progress,
    )
    resources = derivation.resources
    assert resources is not None  # it was made just now
    return DeriveResult(
        genotype=str(out),
        blocks=derivation.genotype.options,
        budget_ms=derivation.budget_ms,
        predicted_ms=derivation.predicted_ms,
        measured_ms=derivation.measured_ms,
        attempts=len(derivation.attempts),
        macs=derivation.macs,
        params=derivation.params,
        memory_kib=resources.memory_kib,
        weights_kib=resources.weights_kib,
        uncalibrated_energy_mj=resources.uncalibrated_energy_mj,
        metered_energy_mj=resources.metered.median_uj / 1e3 if resources.metered else None,
        memory_budget_kib=memory_kib,
        weights_budget_kib=weights_kib,
        energy_budget_mj=energy_mj,
        macs_budget_m=macs_m,
        params_budget_k=params_k,
        estimated_operators=derivation.estimated.operators if derivation.estimated else 0,
        widest_estimate_percent=(
            derivation.estimated.widest_percent if derivation.estimated else None
        ),
    )


def make_derivation(
    search_path: Path,
    table_path: Path,
    budgets: Budgets,
    out: Path,
    *,
    measure: bool,
    estimate: bool = False,
    settings: TimingSettings,
    progress: Progress = SILENT,
) -> Derivation:
    """Derive and write the genotype; a bound on latency may be infinite. Raises as `derive`."""
    import numpy as np

    from hwnas.core.artifacts import sha256_of_file, write_atomically
    from hwnas.core.decoding import encode_json
    from hwnas.core.errors import BudgetError
    from hwnas.search.derive import best_genotype, check_budgets
    from hwnas.search.feasible import latency_range_ms, with_finite_latency
    from hwnas.search.records import Attempt, Derivation
    from hwnas.stages.budgets import resources_of, say_what_is_out
    from hwnas.stages.search import SEARCH_FILE
    from hwnas.stages.searched import costs_of_search
    from hwnas.stages.spaces import estimates_in
    from hwnas_profilers.profiler import profiler_for

    record, costs, table = costs_of_search(
        search_path, table_path, estimate=estimate, progress=progress
    )
    header, space = table.header, costs.space
    asked, budgets = budgets, with_finite_latency(costs, budgets)
    check_budgets(costs, budgets)  # before the device is asked for
    say_what_is_out(costs, budgets, progress)
    scores = [np.array(row) for row in record.log_probabilities]
    fastest_ms, _ = latency_range_ms(costs, budgets.memory_kib)

    attempts: list[Attempt] = []
    bounds = budgets
    with ExitStack() as stack:
        profiler = None
        if measure:
            profiler = stack.enter_context(profiler_for(header.measured_at, threads=header.threads))
            table.require(device=profiler.device.name)
        chosen: Attempt | None = None
        for _ in range(MAX_ATTEMPTS):
            try:
                genotype = best_genotype(costs, scores, bounds)
            except BudgetError as error:
                if not attempts:
                    raise
                raise _out_of_room(attempts, budgets) from error
            if chosen is not None and any(each.genotype == genotype for each in attempts):
                break
            measured = metered = None
            if profiler is not None:
                workload = space.workload(genotype)
                doubted_us = _doubted_us(costs.latency.predict_ms(genotype), table)
                measured = _timed(profiler, workload, asked, doubted_us, settings, progress)
                if costs.figures(genotype).uncalibrated_energy_mj is not None:
                    metered = _metered(profiler, workload, settings.seed, progress)
            attempt = Attempt(
                genotype=genotype,
                bound_ms=bounds.latency_ms,
                predicted_ms=costs.latency.predict_ms(genotype),
                measured=measured,
                energy_bound_mj=bounds.energy_mj,
                metered=metered,
            )
            attempts.append(attempt)
            goal = asked
            if chosen is not None:
                goal = replace(asked, latency_ms=(1.0 - MARGIN) * asked.latency_ms)
            tighter = _tightened(attempt, costs, goal, bounds, progress)
            if tighter == bounds:
                chosen = attempt
            elif chosen is None:
                bounds = tighter
                if bounds.latency_ms < fastest_ms < attempt.predicted_ms:
                    # Below the fastest network there is none; but that one may yet be within.
                    bounds = replace(bounds, latency_ms=fastest_ms)
            if chosen is not None:
                wider_ms = _wider_ms(chosen, attempts, asked, table)
                if wider_ms is None:
                    break
                bounds = replace(bounds, latency_ms=wider_ms)
    if chosen is None:
        raise _out_of_room(attempts, budgets)

    attempts = [*(each for each in attempts if each is not chosen), chosen]
    layers = space.network(chosen.genotype).tap_names
    derivation = Derivation(
        genotype=chosen.genotype,
        space=space.spec,
        target=header.target,
        threads=header.threads,
        budget_ms=budgets.latency_ms,
        predicted_ms=chosen.predicted_ms,
        measured_ms=chosen.measured.median_us / 1e3 if chosen.measured else None,
        macs=space.macs(chosen.genotype),
        params=space.parameters(chosen.genotype),
        student_layers=layers,
        teacher_layers=record.teacher_layers,
        tutor_weights=record.tutor_weights_of(layers),
        selection=record.selection,
        attention_size=record.attention_size,
        attempts=tuple(attempts),
        table_sha256=sha256_of_file(table_path),
        search_sha256=sha256_of_file(search_path / SEARCH_FILE),
        resources=resources_of(costs, chosen.genotype, budgets, chosen.metered),
        estimated=estimates_in(table, space.operators_of(chosen.genotype)),
    )
    write_atomically(out, encode_json(derivation, indent=2))
    return derivation


def _timed(
    profiler: Profiler,
    workload: Workload,
    budgets: Budgets,
    doubted_us: float,
    settings: TimingSettings,
    progress: Progress,
) -> Statistics:
    """Time a network; where that is near the budget or over it, twice more: the middle one counts.

    On a shared machine one measurement in many is far too long, and a bound that is tightened by it
    is tightened for nothing; another is a little too short. What is over the budget and longer than
    any error of the table explains is measured again after a while, and the shortest counts: such a
    machine makes calls longer, never shorter.

    Args:
        profiler: Of the target.
        workload: The network.
        budgets: What is asked.
        doubted_us: Latency from which on a measurement is doubted.
        settings: How exactly to time.
        progress: Where to report.
    """

    def confirmed() -> Statistics:
        timed: list[Statistics] = []
        while len(timed) < CONFIRMATIONS:
            (timing,) = profiler.time_networks([workload], settings, progress=progress)
            timed.append(timing.statistics)
            if len(timed) == 1 and _leaves_slack(timing.statistics, budgets):
                break
        return sorted(timed, key=lambda each: each.median_us)[len(timed) // 2]

    measured = confirmed()
    for pause_s in PAUSES_S:
        if measured.median_us <= max(doubted_us, budgets.latency_ms * 1e3):
            break
        progress.say(
            f"derive: measured {measured.median_us / 1e3:.4g} ms, more than the table explains; "
            f"again in {pause_s:g} s"
        )
        time.sleep(pause_s)
        measured = min(measured, confirmed(), key=lambda each: each.median_us)
    return measured


def _doubted_us(predicted_ms: float, table: LatencyTable) -> float:
    """Return from where on a measurement is longer than the table's errors explain."""
    if table.calibration is None:
        return inf
    return predicted_ms * 1e3 * (1.0 + max(_known_error(table.calibration), LEAST_DOUBTED))


def _known_error(calibration: CalibrationRecord) -> float:
    """Return the share by which a table is known to err."""
    return KNOWN_ERRORS * calibration.holdout.mape_percent / 100.0


def _leaves_slack(measured: Statistics, budgets: Budgets) -> bool:
    return measured.median_us < (1.0 - SLACK) * budgets.latency_ms * 1e3


def _wider_ms(
    chosen: Attempt, attempts: Sequence[Attempt], budgets: Budgets, table: LatencyTable
) -> float | None:
    """Return a bound on the prediction that may use more of the budget; None of none.

    A table that is a little off predicts too much of a network as easily as too little. Where the
    best network within the budget measures well below it, what it measured says by how much; what
    measured over the budget is approached by halves. Further than the table is known to err nothing
    is widened: what measures shorter than that is a machine that is faster for a while.
    """
    budget_us = budgets.latency_ms * 1e3
    if chosen.measured is None or not isfinite(budget_us) or table.calibration is None:
        return None
    if not _leaves_slack(chosen.measured, budgets) or len(attempts) > MAX_WIDENED:
        return None
    aim_us = (1.0 - MARGIN) * budget_us
    wider_ms = chosen.predicted_ms * aim_us / chosen.measured.median_us
    over = [each.predicted_ms for each in attempts if each.predicted_ms > chosen.predicted_ms]
    limit_ms = (1.0 + _known_error(table.calibration)) * budgets.latency_ms
    return min([wider_ms, limit_ms, *((chosen.predicted_ms + each) / 2 for each in over)])


def _metered(
    profiler: Profiler, workload: Workload, seed: int, progress: Progress
) -> EnergyStatistics | None:
    """Meter a network's energy; None where there is no meter."""
    from hwnas.core.errors import MissingDependencyError, TargetError

    try:
        (energy,) = profiler.energies([workload], seed=seed, progress=progress)
    except (TargetError, MissingDependencyError) as error:
        progress.say(
            f"derive: the network's energy is the uncalibrated sum alone, it could not be metered: "
            f"{error.message}"
        )
        return None
    return energy


def _tightened(
    attempt: Attempt, costs: SpaceCosts, budgets: Budgets, bounds: Budgets, progress: Progress
) -> Budgets:
    """Return the bounds less what a network's measurements are over the budgets."""
    tighter = bounds
    measured, metered = attempt.measured, attempt.metered
    if measured is not None and measured.median_us > budgets.latency_ms * 1e3:
        over_ms = measured.median_us / 1e3 - budgets.latency_ms
        progress.say(
            f"derive: predicted {attempt.predicted_ms:.4g} ms, measured "
            f"{measured.median_us / 1e3:.4g} ms, {over_ms:.3g} ms over the budget: tightened by "
            "that much"
        )
        tighter = replace(tighter, latency_ms=attempt.predicted_ms - over_ms)
    if budgets.energy_mj is not None and metered is not None:
        over_mj = metered.median_uj / 1e3 - budgets.energy_mj
        sum_mj = costs.figures(attempt.genotype).uncalibrated_energy_mj
        if over_mj > 0 and sum_mj is not None:
            progress.say(
                f"derive: energy summed up {sum_mj:.4g} mJ (uncalibrated), metered "
                f"{metered.median_uj / 1e3:.4g} mJ, {over_mj:.3g} mJ over the budget: tightened "
                "by that much"
            )
            tighter = replace(tighter, energy_mj=sum_mj - over_mj)
    return tighter


def _out_of_room(attempts: list[Attempt], budgets: Budgets) -> Exception:
    """Say that predictions were within the budgets, but no measurement was."""
    from hwnas.core.errors import BudgetError

    tried = ", ".join(
        f"{attempt.predicted_ms:.4g} -> {attempt.measured.median_us / 1e3:.4g}"
        for attempt in attempts
        if attempt.measured
    )
    energies = ", ".join(
        f"{attempt.metered.median_uj / 1e3:.4g}" for attempt in attempts if attempt.metered
    )
    energy = ""
    if budgets.energy_mj is not None:
        energy = f" and {budgets.energy_mj:.4g} mJ (metered: {energies})"
    return BudgetError(
        f"no derived network measured within {budgets.latency_ms:.4g} ms (predicted -> measured: "
        f"{tried}){energy}",
        hint="the machine may be slower now than when the table was measured: profile again, "
        "or raise the budget",
    )
