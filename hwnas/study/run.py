"""`hwnas study run` and `hwnas study show`: arms over seeds, judged alike, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hwnas.study.plan import Study
    from hwnas.study.records import ArmFailure, ArmRow, PlannedEngines, StudyRecord, StudyTable
    from hwnas.study.schedule import Schedule
    from hwnas.study.workshop import Goal

LOCKS = "locks"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """An arm in short: means over its seeds.

    Attributes:
        arm: Its name.
        seeds: Seeds that are finished.
        clean_percent: Clean accuracy.
        main_percent: The study's main figure; None where it is no share.
        low_percent: Lower end of its 95 % t interval over seeds; None of one seed.
        high_percent: Upper end of it.
        points_to_baseline: Its mean paired difference to the baseline, in points.
        measured_ms: Measured latency (median).
        params: Trained parameters.
        front: Whether it is on the Pareto front of the main figure over measured latency.
    """

    arm: str
    seeds: int
    clean_percent: float | None
    main_percent: float | None
    low_percent: float | None
    high_percent: float | None
    points_to_baseline: float | None
    measured_ms: float | None
    params: float | None
    front: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """What a study has found so far.

    Attributes:
        study: Its folder.
        question: What it is to answer.
        scale: Its scale; empty for the file's own settings.
        finished: Arms and seeds that are finished.
        planned: Arms and seeds that it has.
        images: Test images behind every accuracy; 0 where nothing is finished.
        main: The main figure: what pictures and the front show.
        arms: Its arms, in short.
        failed: Arms and seeds that failed, with the reason.
        pending: Arms and seeds that are not finished.
        table: The whole table, Markdown.
        page: The page, HTML.
    """

    study: str
    question: str
    scale: str
    finished: int
    planned: int
    images: int
    main: str
    arms: tuple[ArmSummary, ...]
    failed: tuple[str, ...]
    pending: tuple[str, ...]
    table: str
    page: str


def study_run(
    study: Path,
    out: Path,
    *,
    scale: str = "",
    data: str | None = None,
    store: Path | None = None,
    minutes: float | None = None,
    arms: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
    progress: Progress = SILENT,
) -> StudyResult:
    """Run a study: every arm in every seed, judged alike, with intervals.

    Arms that share a teacher, a latency table or a search share it. Interrupted at any moment and
    run again, it repeats nothing that is finished and goes on with the rest from its checkpoints.
    Under torchrun, or where it is started several times with one folder, the processes share arms
    and seeds among them. An arm that fails lets the others go on.

    Args:
        study: TOML file of the study.
        out: Folder of the study.
        scale: Which of its scales to run, a table [scale.NAME] of the file; by default the file's
            own settings.
        data: Images of all arms, in place of the file's: digits, cifar10:FOLDER,
            cifar10-torchvision:FOLDER or npz:FILE.
        store: Folder of the pieces of work; by default the study's. Studies that name the same one
            share teachers, tables, searches and networks.
        minutes: Stop at a checkpoint after about so many minutes; exit code 4 says that it is to be
            run again.
        arms: Arms to run; by default all.
        seeds: Seeds to run; by default all.
        progress: Where to report.

    Returns:
        What it has found so far.

    Raises:
        ConfigError: A setting of the study is unknown or out of range, or the folder holds another
            study or scale.
        StudyError: An arm failed. The others' figures are written, and are its `result`.
        UnfinishedError: The minutes are over. What is finished is written, and is its `result`.
    """
    from hwnas.core.errors import ConfigError
    from hwnas.core.time_limit import TimeLimit, limited_to
    from hwnas.study.partition import on_its_own
    from hwnas.study.plan import read_study

    if minutes is not None and minutes <= 0:
        raise ConfigError(f"`minutes` is a positive number, not {minutes}")
    limit = None if minutes is None else TimeLimit(minutes)
    whole = read_study(study, scale, data=data)
    chosen = whole.only(arms=arms, seeds=seeds)
    with on_its_own() as (rank, count), limited_to(limit):
        return _run(study, whole, chosen, out, store or out, rank, count, progress)


def study_show(study: Path) -> StudyResult:
    """Show what a study has found so far, and write its table, pictures and page again.

    Args:
        study: Folder of the study.

    Returns:
        What it has found so far.

    Raises:
        InputFileError: The folder is none of a study.
    """
    from hwnas.study.gather import gathered, write_record

    record = gathered(study)
    write_record(record, study)
    return _result(record, study)


def _run(
    path: Path,
    whole: Study,
    study: Study,
    out: Path,
    store: Path,
    rank: int,
    count: int,
    progress: Progress,
) -> StudyResult:
    from hwnas.core.errors import StudyError, UnfinishedError
    from hwnas.study.claims import Claims
    from hwnas.study.engine_latency import measure_engines
    from hwnas.study.gather import gathered, write_failures, write_record
    from hwnas.study.measuring import measure_networks
    from hwnas.study.schedule import Schedule
    from hwnas.study.workshop import Workshop

    workshop = Workshop(whole, store, measure=count == 1)
    every = workshop.goals()
    names = {arm.name for arm in study.arms}
    goals = [g for g in every if g.arm.name in names and g.seed in study.settings.seeds]
    _write_plan(path, whole, every, out)
    without = whole.arms_without_engines
    if without and rank == 0:
        progress.say(
            "study: only networks of a space are exported: there are no engines of "
            f"{', '.join(without)}"
        )
    claims = Claims(store / LOCKS, rank=rank, count=count)
    works = [work for goal in goals for work in goal.works]
    schedule = Schedule(works, claims, progress=progress)
    unfinished: UnfinishedError | None = None
    engine_names = whole.engines.names
    try:
        _collect(goals, schedule, out, store, engine_names)
        schedule.run(after=lambda: _collect(goals, schedule, out, store, engine_names))
    except UnfinishedError as error:
        unfinished = error
    _collect(goals, schedule, out, store, engine_names)
    failures = _failures(goals, schedule)
    if rank != 0:
        return _result(gathered(out), out)
    write_failures(out, failures)
    if unfinished is None and whole.settings.measure != "none":
        done = [goal for goal in every if all(work.done() for work in goal.works)]
        try:
            measure_networks(done, out, may_stop=schedule.began, progress=progress)
            measure_engines(done, out, may_stop=schedule.began, progress=progress)
        except UnfinishedError as error:
            unfinished = error
    record = gathered(out)
    write_record(record, out)
    result = _result(record, out)
    if unfinished is not None:
        unfinished.result = result
        raise unfinished
    if failures:
        said = "; ".join(f"{each.arm} seed {each.seed}: {each.message}" for each in failures)
        raise StudyError(
            f"{len(failures)} of {len(goals)} arms and seeds failed: {said}",
            hint=failures[0].hint or "the same command tries them again",
            result=result,
        )
    return result


def _write_plan(path: Path, study: Study, goals: Sequence[Goal], out: Path) -> None:
    """Write what the study is to find; refuse a folder of another one."""
    from hwnas.core.artifacts import write_atomically
    from hwnas.core.decoding import encode_json
    from hwnas.core.environment import provenance
    from hwnas.core.errors import ConfigError
    from hwnas.study.gather import PLAN_FILE, read_plan
    from hwnas.study.plan import COPY_FILE, common_file
    from hwnas.study.records import Plan, PlannedArm, PlannedThreat

    settings = study.settings
    if (out / PLAN_FILE).is_file():
        before = read_plan(out)
        for what, old, new in (
            ("study", before.name, settings.name),
            ("scale", before.scale, study.scale),
        ):
            if old != new:
                raise ConfigError(
                    f"{out} holds the {what} `{old}`, not `{new}`", hint="name another folder"
                )
    plan = Plan(
        name=settings.name,
        question=settings.question,
        scale=study.scale,
        seeds=settings.seeds,
        baseline=settings.baseline,
        figures=study.figures,
        threats=tuple(
            PlannedThreat(name=threat.name, attacks=threat.attacks, model=threat.model)
            for threat in study.threats
        ),
        queries=study.judge.queries,
        arms=tuple(
            PlannedArm(
                name=arm.name,
                kind=arm.kind,
                description=arm.description,
                keys={str(goal.seed): goal.key for goal in goals if goal.arm.name == arm.name},
            )
            for arm in study.arms
        ),
        provenance=provenance(),
        engines=_planned_engines(study),
    )
    write_atomically(out / PLAN_FILE, encode_json(plan, indent=2))
    write_atomically(out / COPY_FILE, path.read_bytes())
    common = common_file(path)
    if common is not None:
        write_atomically(out / common.name, common.read_bytes())


def _planned_engines(study: Study) -> PlannedEngines | None:
    from hwnas.study.records import PlannedEngine, PlannedEngines

    engines = study.engines
    if not engines.targets:
        return None
    return PlannedEngines(
        engines=tuple(
            PlannedEngine(name=name, target=target) for target, name in engines.names.items()
        ),
        threat=engines.threat,
        queries=engines.queries,
        steps=engines.steps,
        calibration_images=engines.calibration_images,
        without=study.arms_without_engines,
    )


def _collect(
    goals: Sequence[Goal], schedule: Schedule, out: Path, store: Path, names: Mapping[str, str]
) -> None:
    """Write the figures of every arm and seed whose work is done, once."""
    from hwnas.core.artifacts import write_atomically
    from hwnas.core.decoding import encode_json, read_json
    from hwnas.study.collect import arm_figures, judged_engines
    from hwnas.study.dependencies import training_images
    from hwnas.study.engines import ArmEngines
    from hwnas.study.gather import engines_path, failure_path, result_path
    from hwnas.study.records import ArmSeed

    for goal in goals:
        path = result_path(out, goal.arm.name, goal.seed)
        if not all(schedule.is_done(work) for work in goal.works):
            continue
        if path.is_file() and read_json(path, ArmSeed).key == goal.key:
            continue
        if goal.engines:
            judged = ArmEngines(
                arm=goal.arm.name,
                seed=goal.seed,
                key=goal.key,
                engines=tuple(judged_engines(goal).values()),
            )
            raw = engines_path(out, goal.arm.name, goal.seed)
            write_atomically(raw, encode_json(judged, indent=1))
        figures = arm_figures(goal, store, train_images=training_images(goal.config), names=names)
        write_atomically(path, encode_json(figures, indent=2))
        failure_path(out, goal.arm.name, goal.seed).unlink(missing_ok=True)


def _failures(goals: Sequence[Goal], schedule: Schedule) -> list[ArmFailure]:
    from hwnas.study.records import ArmFailure

    failures = []
    for goal in goals:
        causes = [schedule.failed[work.key] for work in goal.works if work.key in schedule.failed]
        if causes:
            cause = causes[0]
            failures.append(
                ArmFailure(
                    arm=goal.arm.name,
                    seed=goal.seed,
                    stage=cause.stage,
                    message=cause.message,
                    hint=cause.hint,
                    key=goal.key,
                )
            )
    return failures


def _result(record: StudyRecord, out: Path) -> StudyResult:
    from hwnas.study.gather import PAGE_FILE, TABLE_FILE

    plan, table = record.plan, record.table
    return StudyResult(
        study=str(out),
        question=plan.question,
        scale=plan.scale,
        finished=len(record.results),
        planned=len(plan.arms) * len(plan.seeds),
        images=table.images if table else 0,
        main=table.main if table else "",
        arms=tuple(_summary(row, table) for row in table.rows) if table else (),
        failed=tuple(f"{each.arm} seed {each.seed}: {each.message}" for each in record.failures),
        pending=record.pending,
        table=str(out / TABLE_FILE) if table else "",
        page=str(out / PAGE_FILE),
    )


def _summary(row: ArmRow, table: StudyTable) -> ArmSummary:
    from hwnas.study.figures import CLEAN, MEASURED_MS, is_share

    def mean(figure: str) -> float | None:
        cell = row.cell(figure)
        return cell.over_seeds.mean if cell else None

    def percent(share: float | None) -> float | None:
        return None if share is None else 100 * share

    main = row.cell(table.main) if is_share(table.main) else None
    difference = main.difference if main else None
    return ArmSummary(
        arm=row.arm,
        seeds=len(row.seeds),
        clean_percent=percent(mean(CLEAN)),
        main_percent=percent(main.over_seeds.mean) if main else None,
        low_percent=percent(main.over_seeds.low) if main else None,
        high_percent=percent(main.over_seeds.high) if main else None,
        points_to_baseline=percent(difference.mean) if difference else None,
        measured_ms=mean(MEASURED_MS),
        params=mean("params"),
        front=row.arm in table.front,
    )
