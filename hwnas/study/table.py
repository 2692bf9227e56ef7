"""The table of a study: arms by figures, each over its seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hwnas.core.errors import DataError
from hwnas.study.figures import (
    MEASURED_MS,
    difference_text,
    has_binomial_interval,
    has_seed_interval,
    interval_text,
    is_attacked,
    is_share,
    label,
    text,
)
from hwnas.study.records import ArmRow, Cell, FailedCheck, StudyTable
from hwnas.study.statistics import (
    interval_over_images,
    mean_over_seeds,
    paired_difference,
    pareto_places,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from hwnas.study.records import ArmSeed
    from hwnas.study.statistics import SeedMean


def study_table(
    results: Sequence[ArmSeed],
    *,
    arms: Mapping[str, str],
    figures: Sequence[str],
    baseline: str = "",
    engines: Collection[str] = (),
) -> StudyTable:
    """Bring the figures of arms and seeds together.

    Args:
        results: One per arm and seed that is finished, in any order; at least one.
        arms: Description of each arm by name, in the order of the table.
        figures: Names of the figures to show, in order. The first share under attack is the main
            one, which the front is of; without any, the first share or figure is.
        baseline: The arm to compare with; empty for none.
        engines: What engines and their twin are called, in the names of their figures.

    Returns:
        The table; an arm without results, and a figure that an arm has not, are left out.

    Raises:
        DataError: There is no result, an arm and seed comes twice, or shares are of different
            numbers of images.
    """
    by_arm: dict[str, dict[int, ArmSeed]] = {name: {} for name in arms}
    for result in results:
        if result.seed in by_arm[result.arm]:
            raise DataError(f"arm {result.arm} has two results for seed {result.seed}")
        by_arm[result.arm][result.seed] = result
    sizes = {result.images for result in results}
    if len(sizes) != 1:
        raise DataError(f"results over different numbers of images, {sorted(sizes)}, or none")
    (images,) = sizes
    compared = by_arm.get(baseline, {})
    rows = tuple(
        _row(
            arm,
            arms[arm],
            seeds,
            figures,
            images=images,
            baseline={} if arm == baseline else compared,
            engines=engines,
        )
        for arm, seeds in by_arm.items()
        if seeds
    )
    main = main_figure(figures)
    return StudyTable(
        figures=tuple(figures),
        baseline=baseline,
        main=main,
        images=images,
        rows=rows,
        front=_front(rows, main),
        checks=sum(len(found) for result in results for found in result.checks.values()),
        failed=tuple(
            FailedCheck(arm=arm, seed=seed, threat=threat, check=check)
            for arm, seeds in by_arm.items()
            for seed in sorted(seeds)
            for threat, found in seeds[seed].checks.items()
            for check in found
            if not check.passed
        ),
    )


def main_figure(figures: Sequence[str]) -> str:
    """Return the figure that pictures and front show.

    >>> main_figure(["params", "clean", "pixel.worst", "pixel.pgd"])
    'pixel.worst'
    >>> main_figure(["clean", "int8.clean", "int8.agreement", "int8.worst"])
    'int8.worst'
    """
    shares = [figure for figure in figures if is_share(figure)]
    attacked = [figure for figure in figures if is_attacked(figure)]
    return [*attacked, *shares, *figures][0]


def markdown_from_table(table: StudyTable) -> str:
    """Write a table in Markdown, to be pasted into a document."""
    heads = ["arm", "seeds", *(label(figure) for figure in table.figures)]
    compares = any(cell.difference for row in table.rows for cell in row.cells)
    if compares:
        heads.append(f"{label(table.main)}: to {table.baseline}")
    lines = [markdown_line(heads), markdown_line(["---", *("---:" for _ in heads[1:])])]
    for row in table.rows:
        cells = [f"**{row.arm}**" if row.arm in table.front else row.arm, str(len(row.seeds))]
        cells += [cell_text(figure, row.cell(figure)) for figure in table.figures]
        if compares:
            cells.append(cell_difference(row.cell(table.main)))
        lines.append(markdown_line(cells))
    return "\n".join([*lines, "", *_markdown_notes(table)]) + "\n"


def failed_checks(table: StudyTable) -> list[str]:
    """Name each check of an evaluation that failed, with what it means."""
    return [
        f"{each.arm}, seed {each.seed}, threat {each.threat}: {each.check}: {each.check.meaning}."
        for each in table.failed
    ]


def notes(table: StudyTable) -> list[str]:
    """Say how a table is to be read, sentence by sentence."""
    seeds = sorted({len(row.seeds) for row in table.rows})
    span = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    said = [
        f"Each figure is the mean over {span} seed{'s' * (seeds[-1] > 1)} and, in brackets, its "
        "95 % t interval over seeds" + ("; of one seed there is none." if seeds[0] == 1 else "."),
        f"Accuracies are of the same {table.images} test images in every arm and seed.",
    ]
    if any(cell.difference for row in table.rows for cell in row.cells):
        said.append(
            f"Differences to {table.baseline} are paired by seed, with a 95 % paired t interval "
            "that is not corrected for the number of arms."
        )
    if table.front:
        said.append(
            f"Bold: on the Pareto front of {label(table.main).removesuffix(', %')} over measured "
            "latency."
        )
    if table.checks:
        failed = len(table.failed) or "none"
        said.append(
            f"Attacks were checked against each other {table.checks} times, and {failed} of these "
            "checks failed."
        )
    return said


def _row(
    arm: str,
    description: str,
    seeds: Mapping[int, ArmSeed],
    figures: Sequence[str],
    *,
    images: int,
    baseline: Mapping[int, ArmSeed],
    engines: Collection[str],
) -> ArmRow:
    cells = []
    for figure in figures:
        values = values_of(figure, seeds)
        if not values:
            continue
        of_engine = figure.partition(".")[0] in engines
        cells.append(
            cell_of(
                figure,
                values,
                images=seeds[min(values)].engine_images if of_engine else images,
                baseline=values_of(figure, baseline),
            )
        )
    return ArmRow(arm=arm, description=description, seeds=tuple(sorted(seeds)), cells=tuple(cells))


def cell_of(
    figure: str, values: Mapping[int, float], *, images: int, baseline: Mapping[int, float]
) -> Cell:
    """Bring a figure's seeds together.

    Args:
        figure: Its name.
        values: Its value by seed; at least one.
        images: Test images behind it, if it is a share.
        baseline: What it is compared with, by seed; empty for nothing.
    """
    low = high = None
    if has_binomial_interval(figure):
        low, high = interval_over_images(list(values.values()), images)
    return Cell(
        figure=figure,
        seeds=tuple(values),
        values=tuple(values.values()),
        over_seeds=_over_seeds(figure, list(values.values())),
        low_images=low,
        high_images=high,
        difference=paired_difference(values, baseline),
    )


def _over_seeds(figure: str, values: Sequence[float]) -> SeedMean:
    """Return the mean over seeds; an interval of a share ends where shares do."""
    found = mean_over_seeds(values)
    if not is_share(figure) or found.low is None or found.high is None:
        return found
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def values_of(figure: str, seeds: Mapping[int, ArmSeed]) -> dict[int, float]:
    """Return a figure by seed, of the seeds that have it."""
    return {
        seed: seeds[seed].figures[figure] for seed in sorted(seeds) if figure in seeds[seed].figures
    }


def _front(rows: Sequence[ArmRow], main: str) -> tuple[str, ...]:
    """Return the arms on the front of the main figure over latency, by means."""
    points = [
        (row.arm, latency.over_seeds.mean, robust.over_seeds.mean)
        for row in rows
        if (latency := row.cell(MEASURED_MS)) and (robust := row.cell(main))
    ]
    places = pareto_places([point[1] for point in points], [point[2] for point in points])
    return tuple(points[place][0] for place in places)


def cell_text(figure: str, cell: Cell | None) -> str:
    """Write a figure with its interval over seeds."""
    if cell is None:
        return text(figure, None)
    found = cell.over_seeds
    interval = seed_interval(cell)
    return text(figure, found.mean) + (f" ({interval})" if interval else "")


def seed_interval(cell: Cell) -> str:
    """Write a figure's interval over seeds; nothing where it says nothing."""
    if not has_seed_interval(cell.figure) or len(set(cell.values)) == 1:
        return ""
    return interval_text(cell.figure, cell.over_seeds.low, cell.over_seeds.high)


def cell_difference(cell: Cell | None) -> str:
    """Write a figure's difference to the baseline, with its interval; nothing without one."""
    if cell is None or cell.difference is None:
        return ""
    found = cell.difference
    interval = interval_text(cell.figure, found.low, found.high)
    return difference_text(cell.figure, found.mean) + (f" ({interval})" if interval else "")


def markdown_line(cells: Sequence[str]) -> str:
    """Write a row of a table."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _markdown_notes(table: StudyTable) -> list[str]:
    said = [" ".join(notes(table))]
    if table.failed:
        said += ["", "Checks of the evaluation that failed:", ""]
        said += [f"- {line}" for line in failed_checks(table)]
    return said
