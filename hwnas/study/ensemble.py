"""`hwnas study ensemble`: what several networks as one are worth, at the latency of all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hwnas.study.ensemble_arms import Lineup
    from hwnas.study.ensemble_comparisons import Comparison
    from hwnas.study.ensemble_config import EnsembleConfig
    from hwnas.study.ensemble_models import ModelBuilder
    from hwnas.study.ensemble_record import EnsembleRecorder, Goal
    from hwnas.study.records import ArmFailure, ArmRow
    from hwnas.study.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleRow:
    """An arm in short: means over its seeds.

    Attributes:
        arm: Its name.
        seeds: Seeds that are finished.
        clean_percent: Clean accuracy.
        main_percent: Accuracy in the worst case over all attacks, attacked as one model.
        low_percent: Lower end of its 95 % t interval over seeds; None of one seed.
        high_percent: Upper end of it.
        hrs_percent: Harmonic mean of both.
        params: Parameters of all members.
        macs: Multiply-accumulates per image of all members.
        measured_ms: Measured latency (median) of all members as one engine.
        predicted_ms: Sum of what the table predicts for the members; None without one.
        front: Whether it is on the Pareto front of worst case over measured latency.
    """

    arm: str
    seeds: int
    clean_percent: float
    main_percent: float
    low_percent: float | None
    high_percent: float | None
    hrs_percent: float
    params: float
    macs: float
    measured_ms: float | None
    predicted_ms: float | None
    front: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSummary:
    """One arm beside another, in short: means of differences that are paired by seed.

    Attributes:
        arm: The arm.
        against: What it is compared with.
        seeds: Seeds that both have.
        latency_ratio: Measured latency of the arm over the other's.
        comparable: Whether they are within the tolerance in every seed.
        clean_points: Clean accuracy above the other's, in points.
        main_points: The main figure above the other's: accuracy in the worst case.
        low_points: Lower end of its 95 % paired t interval; None of one seed.
        high_points: Upper end of it.
        hrs_points: Harmonic mean of both above the other's.
    """

    arm: str
    against: str
    seeds: int
    latency_ratio: float
    comparable: bool
    clean_points: float
    main_points: float
    low_points: float | None
    high_points: float | None
    hrs_points: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleResult:
    """What a study of ensembles has found so far.

    Attributes:
        study: Its folder.
        finished: Arms and seeds that are finished.
        planned: Arms and seeds that it has.
        images: Test images behind every accuracy; 0 where nothing is finished.
        main: The main figure.
        arms: Its arms, in short.
        comparisons: Ensembles beside what takes as long.
        failed: Arms and seeds that failed, with the reason.
        pending: Arms and seeds that are not finished.
        table: The whole table, Markdown.
        page: The page, HTML.
    """

    study: str
    finished: int
    planned: int
    images: int
    main: str
    arms: tuple[EnsembleRow, ...]
    comparisons: tuple[ComparisonSummary, ...]
    failed: tuple[str, ...]
    pending: tuple[str, ...]
    table: str
    page: str


def study_ensemble(
    out: Path,
    *,
    config: Path | None = None,
    data: str | None = None,
    space: str | None = None,
    genotype: Path | None = None,
    members: int | None = None,
    epochs: int | None = None,
    robust: Literal["none", "fast-at", "pgd-at", "trades", "ard", "rslad"] | None = None,
    seeds: tuple[int, ...] | None = None,
    minutes: float | None = None,
    progress: Progress = SILENT,
) -> EnsembleResult:
    """Compare ensembles with one wider network of equal latency, and with each other.

    Members are random networks of a space, children of one genotype, or hand-crafted networks; they
    become one model by averaged feature maps, joined feature maps or averaged logits. Each model is
    attacked end to end, exported and measured on the target as one engine. Interrupted at any
    moment and run again, it repeats nothing that is finished. Started several times with one
    folder, or under torchrun, the processes share arms and seeds.

    Args:
        out: Folder of the study.
        config: TOML file of the study; without it, a small one on digits.
        data: Images: digits, cifar10:FOLDER,
            cifar10-torchvision:FOLDER or npz:FILE.
        space: Search space that members are of.
        genotype: File that hwnas derive wrote: the network whose children make the ensembles of one
            genotype. By default one is drawn.
        members: Members of an ensemble.
        epochs: Epochs of training.
        robust: How models are trained against perturbations.
        seeds: Every arm is trained and attacked in each of them.
        minutes: Stop at a checkpoint after about so many minutes; exit code 4 says that it is to be
            run again.
        progress: Where to report.

    Returns:
        What it has found so far.

    Raises:
        ConfigError: A setting is unknown or out of range, members cannot be combined, or the folder
            holds another study.
        TargetError: The target cannot be measured here.
        StudyError: An arm failed. The others' figures are written, and are its `result`.
        UnfinishedError: The minutes are over. What is finished is written, and is its `result`.
    """
    from hwnas.core.errors import ConfigError
    from hwnas.core.time_limit import TimeLimit, limited_to
    from hwnas.study.partition import on_its_own

    if minutes is not None and minutes <= 0:
        raise ConfigError(f"`minutes` is a positive number, not {minutes}")
    settings = load_ensemble_config(
        config,
        {"seeds": seeds},
        data={"source": data},
        space={"name": space},
        members={"count": members, "genotype": str(genotype) if genotype else None},
        train={"epochs": epochs, "robust": robust},
    )
    limit = None if minutes is None else TimeLimit(minutes)
    with on_its_own() as (rank, count), limited_to(limit):
        return _run(settings, out, rank, count, progress)


def load_ensemble_config(
    path: Path | None, given: dict[str, Any], **sections: dict[str, Any]
) -> EnsembleConfig:
    """Read the settings of a study and put directly given ones before them.

    Args:
        path: The TOML file; None takes every default.
        given: Settings that are in no section; those that are None are left.
        **sections: Settings by section, likewise.

    Raises:
        InputFileError: The file is missing or unreadable.
        ConfigError: A setting is unknown, of a wrong type, or contradicts another.
    """
    from hwnas.core.decoding import decode_toml
    from hwnas.study.ensemble_config import EnsembleConfig

    config = decode_toml(path, EnsembleConfig) if path else EnsembleConfig()
    for name, values in sections.items():
        known = {key: value for key, value in values.items() if value is not None}
        config = replace(config, **{name: replace(getattr(config, name), **known)})
    return replace(config, **{key: value for key, value in given.items() if value is not None})


def _run(
    config: EnsembleConfig, out: Path, rank: int, count: int, progress: Progress
) -> EnsembleResult:
    from hwnas.core.errors import StudyError, UnfinishedError
    from hwnas.data.sources import load_data
    from hwnas.space.registry import space_from_spec
    from hwnas.space.spec import space_spec
    from hwnas.study.claims import Claims
    from hwnas.study.ensemble_arms import lineup
    from hwnas.study.ensemble_models import ModelBuilder
    from hwnas.study.ensemble_record import EnsembleRecorder, Goal
    from hwnas.study.ensemble_work import EnsembleWorkshop
    from hwnas.study.gather import write_failures
    from hwnas.study.run import LOCKS
    from hwnas.study.schedule import Schedule
    from hwnas.study.workshop import WORK
    from hwnas_profilers.targets import require_target

    target = require_target(config.target.name)
    data = load_data(config.data)
    spec = space_spec(
        config.space.name, image_shape=data.image_shape, classes=len(data.class_names)
    )
    builder = ModelBuilder(
        space_from_spec(spec, dtype=target.runtime.precision), data.pixel_statistics()
    )
    chosen = lineup(config, builder.space)
    _check_models(config, chosen, builder)
    workshop = EnsembleWorkshop(config, chosen, builder, data, out / WORK)
    recorder = EnsembleRecorder(config, chosen, builder, workshop, out)
    goals = [
        Goal(arm=arm, seed=seed, work=workshop.judged(arm, seed))
        for seed in config.seeds
        for arm in chosen.arms
    ]
    if rank == 0:
        recorder.write_plan(goals)
    schedule = Schedule(
        [goal.work for goal in goals],
        Claims(out / LOCKS, rank=rank, count=count),
        progress=progress,
    )

    def collect() -> None:
        for goal in goals:
            if schedule.is_done(goal.work):
                recorder.write_figures(goal)

    unfinished: UnfinishedError | None = None
    try:
        schedule.run(after=collect)
    except UnfinishedError as error:
        unfinished = error
    collect()
    failures = _failures(goals, schedule)
    if rank == 0:
        write_failures(out, failures)
    result = _result(recorder, out, write=rank == 0)
    if unfinished is not None:
        unfinished.result = result
        raise unfinished
    if failures:
        said = "; ".join(f"{each.arm}, seed {each.seed}: {each.message}" for each in failures)
        raise StudyError(
            f"{len(failures)} of {len(goals)} arms and seeds failed: {said}",
            hint=failures[0].hint or "the same command tries them again",
            result=result,
        )
    return result


def _check_models(config: EnsembleConfig, lineup: Lineup, builder: ModelBuilder) -> None:
    """Build what can fail, before hours are spent on training."""
    from hwnas.study.ensemble_arms import widened_to, wider_base
    from hwnas.study.ensemble_models import member_seeds

    seed = config.seeds[0]
    for source in lineup.sources:
        for arm in lineup.ensembles(source):
            builder.model(lineup.model(arm, seed), member_seeds(seed, config.members.count))
        first = lineup.members[source, seed][0]
        builder.network(widened_to(wider_base(config, first), 2.0), seed)


def _failures(goals: Sequence[Goal], schedule: Schedule) -> list[ArmFailure]:
    from hwnas.study.records import ArmFailure

    return [
        ArmFailure(
            arm=goal.arm.name,
            seed=goal.seed,
            stage=cause.stage,
            message=cause.message,
            hint=cause.hint,
            key=goal.work.key,
        )
        for goal in goals
        if (cause := schedule.failed.get(goal.work.key)) is not None
    ]


def _result(recorder: EnsembleRecorder, out: Path, *, write: bool) -> EnsembleResult:
    """Return what was found and, if it is this process's to do, write it."""
    from hwnas.study.gather import PAGE_FILE, TABLE_FILE

    record, found = recorder.found()
    if write:
        recorder.write(record, found)
    table = record.table
    return EnsembleResult(
        study=str(out),
        finished=len(record.results),
        planned=len(record.plan.arms) * len(record.plan.seeds),
        images=table.images if table else 0,
        main=recorder.worst,
        arms=tuple(_row(row, recorder, row.arm in table.front) for row in table.rows)
        if table
        else (),
        comparisons=tuple(_summary(each, recorder) for each in found),
        failed=tuple(f"{each.arm}, seed {each.seed}: {each.message}" for each in record.failures),
        pending=record.pending,
        table=str(out / TABLE_FILE) if table else "",
        page=str(out / PAGE_FILE),
    )


def _row(row: ArmRow, recorder: EnsembleRecorder, is_on_front: bool) -> EnsembleRow:
    from hwnas.study.figures import CLEAN, MEASURED_MS

    means = {cell.figure: cell.over_seeds.mean for cell in row.cells}
    worst = row.cell(recorder.worst)
    assert worst is not None  # every arm is attacked
    found = worst.over_seeds
    return EnsembleRow(
        arm=row.arm,
        seeds=len(row.seeds),
        clean_percent=100 * means[CLEAN],
        main_percent=100 * found.mean,
        low_percent=None if found.low is None else 100 * found.low,
        high_percent=None if found.high is None else 100 * found.high,
        hrs_percent=100 * means[recorder.hrs],
        params=means["params"],
        macs=means["macs"],
        measured_ms=means.get(MEASURED_MS),
        predicted_ms=means.get("predicted_ms"),
        front=is_on_front,
    )


def _summary(comparison: Comparison, recorder: EnsembleRecorder) -> ComparisonSummary:
    from hwnas.study.figures import CLEAN

    differences = comparison.differences
    main = differences[recorder.worst]
    return ComparisonSummary(
        arm=comparison.arm,
        against=comparison.against,
        seeds=main.n,
        latency_ratio=comparison.latency_ratio,
        comparable=comparison.comparable,
        clean_points=100 * differences[CLEAN].mean,
        main_points=100 * main.mean,
        low_points=None if main.low is None else 100 * main.low,
        high_points=None if main.high is None else 100 * main.high,
        hrs_points=100 * differences[recorder.hrs].mean,
    )
