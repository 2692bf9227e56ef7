"""A study as one HTML page that needs nothing else: no script, no font, no request."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from hwnas.report.numbers import count
from hwnas.report.style import page_style
from hwnas.study.engine_table import engine_notes, engine_text
from hwnas.study.figures import difference_text, interval_text, label, text
from hwnas.study.table import failed_checks, notes, seed_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas.report.drawing import Picture
    from hwnas.study.records import ArmRow, Cell, StudyRecord, StudyTable

TEMPLATE = "study.html.j2"


def page_from_record(record: StudyRecord, pictures: Sequence[Picture]) -> str:
    """Make the page of a study.

    Args:
        record: What it has found.
        pictures: Its pictures.

    Returns:
        One HTML document. Equal records give equal text.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (resources.files("hwnas.study") / TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(_context(record, pictures))


def _context(record: StudyRecord, pictures: Sequence[Picture]) -> dict[str, Any]:
    plan, table = record.plan, record.table
    planned = len(plan.arms) * len(plan.seeds)
    return {
        "style": page_style(),
        "plan": plan,
        "state": f"{len(record.results)} of {planned} arms and seeds are finished",
        "complete": len(record.results) == planned,
        "device": plan.provenance.device.name,
        "heads": [label(figure) for figure in table.figures] if table else [],
        "rows": [_row(row, table) for row in table.rows] if table else [],
        "main": label(table.main) if table else "",
        "notes": notes(table) if table else [],
        "failed_checks": failed_checks(table) if table else [],
        "engines": _engines(record),
        "pictures": pictures,
        "threats": [_threat(record, index) for index in range(len(plan.threats))],
        "failures": record.failures,
        "pending": record.pending,
        "sessions": record.latency,
        "engine_session": record.engine_latency,
        "minutes": _minutes(record),
        "count": count,
    }


def _engines(record: StudyRecord) -> dict[str, Any] | None:
    table = record.engines
    if table is None:
        return None
    heads, rows = engine_text(table)
    return {"heads": heads, "rows": rows, "notes": engine_notes(record.plan, table)}


def _row(row: ArmRow, table: StudyTable) -> dict[str, Any]:
    return {
        "arm": row.arm,
        "description": row.description,
        "seeds": len(row.seeds),
        "front": row.arm in table.front,
        "cells": [_cell(figure, row.cell(figure)) for figure in table.figures],
        "difference": _difference(row.cell(table.main)),
    }


def _cell(figure: str, cell: Cell | None) -> dict[str, str]:
    """Write a figure with its interval over seeds and, of a share, that over images."""
    if cell is None:
        return {"value": text(figure, None), "seeds": "", "images": ""}
    found = cell.over_seeds
    return {
        "value": text(figure, found.mean),
        "seeds": seed_interval(cell),
        "images": interval_text(figure, cell.low_images, cell.high_images),
    }


def _difference(cell: Cell | None) -> dict[str, str]:
    if cell is None or cell.difference is None:
        return {"value": "", "interval": "", "sign": ""}
    found = cell.difference
    return {
        "value": difference_text(cell.figure, found.mean),
        "interval": interval_text(cell.figure, found.low, found.high),
        "sign": f"above in {found.above}, below in {found.below} of {found.n} seeds",
    }


def _threat(record: StudyRecord, index: int) -> dict[str, str]:
    threat = record.plan.threats[index]
    model = threat.model
    unit = "pixel" if model.protocol == "pixel" else "normalized"
    asking = {"square", "autoattack"} & set(threat.attacks)
    return {
        "name": threat.name,
        "what": f"{model.norm}, eps {model.eps} in {unit} units, protocol {model.protocol}",
        "how": f"{', '.join(threat.attacks)}; {model.steps} steps, {model.restarts} "
        f"restart{'s' * (model.restarts > 1)} of gradient attacks"
        + (f", up to {count(record.plan.queries)} queries of Square" if asking else ""),
    }


def _minutes(record: StudyRecord) -> list[tuple[str, float]]:
    """Return wall time by stage, work that several arms share counted once."""
    spent = {
        artifact: (stage, result.minutes.get(stage, 0.0))
        for result in record.results
        for stage, artifact in result.artifacts.items()
    }
    stages = dict.fromkeys(stage for stage, _ in spent.values())
    return [
        (name, sum(minutes for stage, minutes in spent.values() if stage == name))
        for name in stages
    ]
