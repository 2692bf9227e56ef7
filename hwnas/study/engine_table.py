"""The table of a study's engines: each beside the PyTorch network that it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.study.figures import (
    AGREEMENTS,
    ENGINE_COSTS,
    ENGINE_SHARES,
    TWIN,
    TWIN_SHARES,
    label,
)
from hwnas.study.records import EngineRow, EngineTable
from hwnas.study.table import cell_difference, cell_of, cell_text, markdown_line, values_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas.study.records import ArmSeed, Plan

HEAD_OF_DIFFERENCE = "to the twin, points"


def engine_table(plan: Plan, results: Sequence[ArmSeed]) -> EngineTable | None:
    """Bring the figures of engines together; None where the study has none, or none yet.

    Args:
        plan: What the study is to find.
        results: Figures of the arms and seeds that are finished.
    """
    if plan.engines is None:
        return None
    names = {TWIN: ""} | {each.name: each.target for each in plan.engines.engines}
    rows = []
    for arm in plan.arms:
        seeds = {each.seed: each for each in results if each.arm == arm.name}
        for name, target in names.items():
            row = _row(arm.name, name, target, seeds)
            if row.cells:
                rows.append(row)
    sizes = {each.engine_images for each in results if each.engine_images}
    return EngineTable(images=max(sizes), rows=tuple(rows)) if rows and sizes else None


def engine_text(table: EngineTable) -> tuple[list[str], list[list[str]]]:
    """Write heads and rows of a table as text; what a row has not is a dash."""
    heads = ["arm", "engine", "seeds"]
    rows = [[row.arm, row.engine, str(len(row.seeds))] for row in table.rows]
    for what in (*ENGINE_SHARES, *ENGINE_COSTS):
        cells = [row.cell(what) for row in table.rows]
        if not any(cells):
            continue
        heads.append(label(what))
        for text, row, cell in zip(rows, table.rows, cells, strict=True):
            text.append(cell_text(f"{row.engine}.{what}", cell))
        if what in TWIN_SHARES:
            heads.append(HEAD_OF_DIFFERENCE)
            for text, cell in zip(rows, cells, strict=True):
                text.append(cell_difference(cell))
    return heads, rows


def engine_notes(plan: Plan, table: EngineTable) -> list[str]:
    """Say how a table of engines is to be read, sentence by sentence."""
    engines = plan.engines
    assert engines is not None
    threat = next(each for each in plan.threats if each.name == engines.threat)
    model = threat.model
    named = ", ".join(f"{each.name} is {each.target}" for each in engines.engines)
    said = [
        f"Engines and twin, the PyTorch network that they were made from: {named}.",
        f"All are judged on the same {table.images} test images, under threat {threat.name} "
        f"({model.norm}, eps {model.eps}).",
        f"Replayed: the examples that PGD-{model.steps} makes on the twin. Adaptive: these and "
        f"APGD of {engines.steps} steps with each of two losses, made on the twin and, of an "
        "engine, for the engine itself. Worst case: these and Square with up to "
        f"{engines.queries} queries of the engine, which is not made on the twin.",
        "Differences are paired by seed, with a 95 % paired t interval where there are several. Of "
        "clean and replayed images none is larger than the share on which both do not agree.",
        "A failed gate of `hwnas verify` is a finding here, and stops nothing: "
        "`results/ARM/seed-N.engines.json` names them.",
    ]
    if any(row.cell("latency_ms") for row in table.rows):
        said.append("Latencies of engines are medians of one session, all timed side by side.")
    if engines.without:
        said.append(
            f"Only networks of a space are exported: there are no engines of "
            f"{', '.join(engines.without)}."
        )
    return said


def markdown_from_engines(plan: Plan, table: EngineTable) -> str:
    """Write a table of engines in Markdown, to be pasted into a document."""
    heads, rows = engine_text(table)
    rule = markdown_line(["---", "---", *("---:" for _ in heads[2:])])
    lines = [markdown_line(heads), rule, *map(markdown_line, rows)]
    return "\n".join([*lines, "", " ".join(engine_notes(plan, table))]) + "\n"


def _row(arm: str, name: str, target: str, seeds: dict[int, ArmSeed]) -> EngineRow:
    whats = TWIN_SHARES if name == TWIN else (*ENGINE_SHARES, *ENGINE_COSTS)
    cells = []
    for what in whats:
        values = values_of(f"{name}.{what}", seeds)
        if values:
            twins = {} if name == TWIN or what in AGREEMENTS else values_of(f"{TWIN}.{what}", seeds)
            cells.append(
                cell_of(
                    f"{name}.{what}",
                    values,
                    images=next(seeds[seed].engine_images for seed in values),
                    baseline=twins,
                )
            )
    return EngineRow(
        arm=arm,
        engine=name,
        target=target,
        seeds=tuple(sorted({seed for cell in cells for seed in cell.seeds})),
        cells=tuple(cells),
    )
