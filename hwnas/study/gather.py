"""What a study has found so far, from the files in its folder; no data and no network is needed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json, read_json
from hwnas.core.errors import InputFileError
from hwnas.report.drawing import drawing_style, svg_file_from_picture
from hwnas.study.engine_table import engine_table, markdown_from_engines
from hwnas.study.figures import LATENCY_MS, MEASURED_MS, TWIN
from hwnas.study.latency import EngineSession, Session, engine_place
from hwnas.study.page import page_from_record
from hwnas.study.picture import study_pictures
from hwnas.study.records import ArmFailure, ArmSeed, Plan, StudyRecord
from hwnas.study.table import markdown_from_table, study_table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

F = TypeVar("F", ArmSeed, ArmFailure)

PLAN_FILE = "plan.json"
STUDY_FILE = "study.json"
TABLE_FILE = "table.md"
PAGE_FILE = "study.html"
LATENCY_FILE = "latency.json"
ENGINE_LATENCY_FILE = "engine_latency.json"
RESULTS = "results"


def result_path(out: Path, arm: str, seed: int) -> Path:
    """Return where the figures of an arm and seed are."""
    return out / RESULTS / arm / f"seed-{seed}.json"


def engines_path(out: Path, arm: str, seed: int) -> Path:
    """Return where all that was found on the engines of an arm and seed is."""
    return out / RESULTS / arm / f"seed-{seed}.engines.json"


def failure_path(out: Path, arm: str, seed: int) -> Path:
    """Return where the error of an arm and seed is."""
    return out / RESULTS / arm / f"seed-{seed}.error.json"


def read_plan(out: Path) -> Plan:
    """Read what a study is to find.

    Raises:
        InputFileError: The folder is none of a study.
    """
    if not (out / PLAN_FILE).is_file():
        raise InputFileError(
            f"{out} is no folder of a study: it holds no {PLAN_FILE}",
            hint="make one: `hwnas study run STUDY.toml --out DIR`",
        )
    return read_json(out / PLAN_FILE, Plan)


def read_sessions(out: Path) -> tuple[Session, ...]:
    """Read the sessions in which latencies were measured; there may be none."""
    path = out / LATENCY_FILE
    return read_json(path, tuple[Session, ...]) if path.is_file() else ()


def read_engine_session(out: Path) -> EngineSession | None:
    """Read the session in which engines were timed; None where there was none."""
    path = out / ENGINE_LATENCY_FILE
    return read_json(path, EngineSession) if path.is_file() else None


def gathered(out: Path) -> StudyRecord:
    """Bring together what a study has found. What other settings made is passed over.

    Raises:
        InputFileError: The folder is none of a study.
    """
    plan = read_plan(out)
    sessions = read_sessions(out)
    measured_us = {
        name: statistics.median_us
        for session in sessions
        for name, statistics in session.networks.items()
    }
    engine_session = read_engine_session(out)
    results: list[ArmSeed] = []
    failures: list[ArmFailure] = []
    pending: list[str] = []
    for arm in plan.arms:
        for seed in plan.seeds:
            key = arm.keys[str(seed)]
            result = _read(result_path(out, arm.name, seed), ArmSeed, key)
            failure = _read(failure_path(out, arm.name, seed), ArmFailure, key)
            if result is not None:
                result = _with_latency(result, measured_us)
                results.append(_with_engine_latency(result, plan, engine_session))
            elif failure is not None:
                failures.append(failure)
            else:
                pending.append(f"{arm.name} seed {seed}")
    table = (
        study_table(
            results,
            arms={arm.name: arm.description for arm in plan.arms},
            figures=plan.figures,
            baseline=plan.baseline,
            engines=(TWIN, *(each.name for each in plan.engines.engines)) if plan.engines else (),
        )
        if results
        else None
    )
    return StudyRecord(
        plan=plan,
        results=tuple(results),
        failures=tuple(failures),
        pending=tuple(pending),
        table=table,
        latency=sessions,
        engines=engine_table(plan, results),
        engine_latency=engine_session,
    )


def write_record(record: StudyRecord, out: Path) -> None:
    """Write a study's raw data, its table in Markdown, its pictures and its page."""
    write_atomically(out / STUDY_FILE, encode_json(record, indent=1))
    with drawing_style():
        pictures = study_pictures(record.table) if record.table else ()
    if record.table is not None:
        said = markdown_from_table(record.table)
        if record.engines is not None:
            said += f"\n{markdown_from_engines(record.plan, record.engines)}"
        write_atomically(out / TABLE_FILE, said.encode())
    for picture in pictures:
        write_atomically(out / f"{picture.name}.svg", svg_file_from_picture(picture))
    write_atomically(out / PAGE_FILE, page_from_record(record, pictures).encode())


def write_failures(out: Path, failures: Iterable[ArmFailure]) -> None:
    """Write why arms failed, beside where their figures would be."""
    for failure in failures:
        path = failure_path(out, failure.arm, failure.seed)
        write_atomically(path, encode_json(failure, indent=2))


def _read(path: Path, kind: type[F], key: str) -> F | None:
    """Return what a file holds, if it was made from these settings."""
    if not path.is_file():
        return None
    found = read_json(path, kind)
    return found if found.key == key else None


def _with_latency(result: ArmSeed, measured_us: dict[str, float]) -> ArmSeed:
    if result.architecture not in measured_us:
        return result
    latency_ms = measured_us[result.architecture] / 1e3
    return replace(result, figures={**result.figures, MEASURED_MS: latency_ms})


def _with_engine_latency(result: ArmSeed, plan: Plan, session: EngineSession | None) -> ArmSeed:
    if plan.engines is None or session is None or not result.engine_images:
        return result
    figures = dict(result.figures)
    for each in plan.engines.engines:
        place = engine_place(result.architecture, each.target)
        if place in session.engines:
            figures[f"{each.name}.{LATENCY_MS}"] = session.engines[place].median_us / 1e3
    return replace(result, figures=figures)
