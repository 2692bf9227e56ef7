"""`hwnas derive`: the exact best network under the budget, measured on the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.search.records import Attempt, Derivation
    from hwnas_profilers.timing import TimingSettings

MAX_ATTEMPTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DeriveResult:
    """A derived network.

    Attributes:
        genotype: Its file.
        widths: Output width of each searched block.
        budget_ms: Bound on the latency.
        predicted_ms: Predicted latency.
        measured_ms: Measured latency (median); None where it was not measured.
        attempts: Networks derived and measured until one was within the budget.
        macs: Multiply-accumulates per image.
        params: Trained parameters.
    """

    genotype: str
    widths: tuple[int, ...]
    budget_ms: float
    predicted_ms: float
    measured_ms: float | None
    attempts: int
    macs: int
    params: int


def derive(
    search: Path,
    table: Path,
    budget_ms: float,
    out: Path,
    *,
    measure: bool = True,
    relative_width: float = 0.005,
    progress: Progress = SILENT,
) -> DeriveResult:
    """Derive the exact best architecture under a latency budget, and measure it.

    No training is needed, so one search serves many budgets and devices: give another table to
    derive for another target. A network that measures over the budget tightens the bound by the
    gap, and the next best is derived.

    Args:
        search: Folder of a search.
        table: Latency table of the search's space, on any target.
        budget_ms: Bound on the latency, in milliseconds.
        out: The genotype's file, JSON.
        measure: Measure on the target, which must be this machine; else the prediction stands.
        relative_width: A measurement is finished once the 95 % interval of its median is narrower
            than this share of the median.
        progress: Where to report.

    Returns:
        The derived network.

    Raises:
        BudgetError: No network of the space meets the budget; the fastest one's latency is named.
        ArtifactError: The search is unfinished or was changed.
        LatencyTableError: The table cannot be used with this search.
        TargetError: The target cannot be measured here.
    """
    from hwnas_profilers.timing import TimingSettings

    settings = TimingSettings.for_networks(relative_width=relative_width)
    derivation = make_derivation(
        search, table, budget_ms, out, measure=measure, settings=settings, progress=progress
    )
    return DeriveResult(
        genotype=str(out),
        widths=derivation.genotype.widths,
        budget_ms=budget_ms,
        predicted_ms=derivation.predicted_ms,
        measured_ms=derivation.measured_ms,
        attempts=len(derivation.attempts),
        macs=derivation.macs,
        params=derivation.params,
    )


def make_derivation(
    search_path: Path,
    table_path: Path,
    budget_ms: float,
    out: Path,
    *,
    measure: bool,
    settings: TimingSettings,
    progress: Progress = SILENT,
) -> Derivation:
    """Derive and write the genotype. Raises as `derive`."""
    import numpy as np

    from hwnas.core.artifacts import read_manifest, sha256_of_file, write_atomically
    from hwnas.core.decoding import encode_json, read_json
    from hwnas.core.environment import this_device
    from hwnas.core.errors import BudgetError, LatencyTableMismatch
    from hwnas.latency.model import LatencyModel
    from hwnas.search.derive import best_genotype
    from hwnas.search.records import Attempt, Derivation, SearchRecord
    from hwnas.stages.spaces import say_if_uncalibrated, space_of_table
    from hwnas_profilers.profiler import profile_networks
    from hwnas_profilers.table import LatencyTable

    read_manifest(search_path, kind="search")
    record_path = search_path / "search.json"
    record = read_json(record_path, SearchRecord)
    table = LatencyTable.read(table_path)
    header = table.header
    if header.space_fingerprint != record.space.fingerprint:
        raise LatencyTableMismatch(
            f"{table_path} was measured for space {header.space}, {search_path} searched "
            f"{record.space.name}, or other images or classes",
            hint=f"hwnas profile --space {record.space.name} --target {header.target} "
            f"--image-shape {','.join(map(str, record.space.image_shape))} "
            f"--classes {record.space.classes} --out NEW.jsonl",
        )
    if measure:
        table.require(device=this_device().name)
    space = space_of_table(table)
    latency = LatencyModel(space, table)
    say_if_uncalibrated(table, progress)
    scores = [np.array(row) for row in record.log_probabilities]

    attempts: list[Attempt] = []
    bound_ms = budget_ms
    for _ in range(MAX_ATTEMPTS):
        try:
            genotype = best_genotype(latency, scores, bound_ms)
        except BudgetError as error:
            if not attempts:
                raise
            raise _out_of_room(attempts, budget_ms) from error
        measured = None
        if measure:
            (timing,) = profile_networks(
                [space.workload(genotype)],
                target=header.target,
                threads=header.threads,
                settings=settings,
                progress=progress,
            )
            measured = timing.statistics
        predicted_ms = latency.predict_ms(genotype)
        attempts.append(
            Attempt(
                genotype=genotype,
                bound_ms=bound_ms,
                predicted_ms=predicted_ms,
                measured=measured,
            )
        )
        if measured is None or measured.median_us <= budget_ms * 1e3:
            break
        over_ms = measured.median_us / 1e3 - budget_ms
        progress.say(
            f"derive: predicted {predicted_ms:.4g} ms, measured {measured.median_us / 1e3:.4g} ms, "
            f"{over_ms:.3g} ms over the budget: tightened by that much"
        )
        bound_ms = predicted_ms - over_ms
    else:
        raise _out_of_room(attempts, budget_ms)

    chosen = attempts[-1]
    derivation = Derivation(
        genotype=chosen.genotype,
        space=space.spec,
        target=header.target,
        threads=header.threads,
        budget_ms=budget_ms,
        predicted_ms=chosen.predicted_ms,
        measured_ms=chosen.measured.median_us / 1e3 if chosen.measured else None,
        macs=space.macs(chosen.genotype),
        params=space.parameters(chosen.genotype),
        student_layers=record.student_layers,
        teacher_layers=record.teacher_layers,
        tutors=record.tutors,
        attention_size=record.attention_size,
        attempts=tuple(attempts),
        table_sha256=sha256_of_file(table_path),
        search_sha256=sha256_of_file(record_path),
    )
    write_atomically(out, encode_json(derivation, indent=2))
    return derivation


def _out_of_room(attempts: list[Attempt], budget_ms: float) -> Exception:
    """Say that predictions were within the budget, but no measurement was."""
    from hwnas.core.errors import BudgetError

    tried = ", ".join(
        f"{attempt.predicted_ms:.4g} -> {attempt.measured.median_us / 1e3:.4g}"
        for attempt in attempts
        if attempt.measured
    )
    return BudgetError(
        f"no derived network measured within {budget_ms:.4g} ms (predicted -> measured: {tried})",
        hint="the machine may be slower now than when the table was measured: profile again, "
        "or raise the budget",
    )
