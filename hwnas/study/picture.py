"""Pictures of a study: arms with their intervals, differences to the baseline, the front."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.transforms import Bbox

from hwnas.report.drawing import (
    BLUE,
    GRAY,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    SMALL_POINTS,
    Picture,
    new_figure,
    picture_from_figure,
)
from hwnas.report.numbers import TimeUnit, fixed
from hwnas.study.figures import (
    CLEAN,
    MEASURED_MS,
    WORST,
    difference_text,
    interval_text,
    is_share,
    label,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

    from hwnas.study.records import ArmRow, Cell, StudyTable

_SERIES = ((ORANGE, "o", PAPER), (BLUE, "s", BLUE), (GREEN, "D", GREEN))
"""Color, marker and filling of the figures of one arm."""
_ROW_INCHES = 0.2

_SIDES = (
    *(((x, y), "left" if x > 0 else "right") for x in (6, -6) for y in (6, -6)),
    *(((0, y), "center") for y in (9, -9)),
    *(((x, y), "left" if x > 0 else "right") for x in (6, -6) for y in (15, -15)),
)
"""Where a point's name can be, in points from it, the first the best; and its alignment."""
_CLEARANCE_PIXELS = 2.0
_BETWEEN_NAMES_PIXELS = 6.0
_OUTSIDE = 10.0
"""How much worse it is for a name to leave the axes than to cover something."""


def study_pictures(table: StudyTable) -> tuple[Picture, ...]:
    """Draw what there is to draw of a table. Within `hwnas.report.drawing.drawing_style`."""
    drawn = (arms_picture(table), differences_picture(table), front_picture(table))
    return tuple(picture for picture in drawn if picture is not None)


def arms_picture(table: StudyTable) -> Picture | None:
    """Draw every arm's accuracies: means with t intervals over seeds, and each seed.

    Args:
        table: The table. Drawn are clean accuracy and the worst case under each threat, or, where
            the table shows none of these, its main figure.

    Returns:
        The picture; None where no arm has such a figure.
    """
    series = _series(table)
    if not series:
        return None
    figure = new_figure(len(table.rows) * _ROW_INCHES * (len(series) + 0.4) + 0.8)
    axes = figure.add_subplot()
    for place, row in enumerate(table.rows):
        for index, name in enumerate(series):
            cell = row.cell(name)
            if cell is not None:
                y = place + (index - (len(series) - 1) / 2) * 0.27
                _share(axes, cell, y, *_SERIES[index])
    for index, name in enumerate(series):
        color, marker, face = _SERIES[index]
        axes.plot(
            [], [], marker, color=color, markerfacecolor=face, markersize=4.5, label=label(name)
        )
    _arm_axis(axes, [_arm_label(row) for row in table.rows])
    axes.set_xlim(0, 112)  # room for the labels behind 100 %
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy, % (mean and 95 % t interval over seeds; strokes: seeds)")
    figure.legend(loc="outside upper right", ncols=len(series))
    said = "; ".join(
        f"{row.arm}: "
        + ", ".join(
            f"{label(name).removesuffix(', %')} {text(name, cell.over_seeds.mean)} %"
            for name in series
            if (cell := row.cell(name))
        )
        for row in table.rows
    )
    return picture_from_figure(
        figure,
        name="arms",
        title="Arms",
        caption=f"All arms are judged on the same {table.images} test images. Of one seed there is "
        "no interval; one that leaves 0 to 100 % is cut there.",
        alt=f"Accuracy of each arm. {said}.",
    )


def differences_picture(table: StudyTable) -> Picture | None:
    """Draw how far each arm's main figure is from the baseline's; None where none is compared."""
    compared = [(row, cell) for row in table.rows if (cell := row.cell(table.main))]
    compared = [(row, cell) for row, cell in compared if cell.difference is not None]
    if not compared or not is_share(table.main):
        return None
    figure = new_figure(len(compared) * _ROW_INCHES * 1.6 + 0.7)
    axes = figure.add_subplot()
    axes.axvline(0, color=MUTED, linewidth=0.8)
    for place, (_, cell) in enumerate(compared):
        found = cell.difference
        assert found is not None
        if found.low is not None and found.high is not None:
            axes.plot([100 * found.low, 100 * found.high], [place] * 2, color=BLUE, linewidth=1.6)
        axes.plot([100 * found.mean], [place], "s", color=BLUE, markersize=4.5)
        axes.annotate(
            difference_text(table.main, found.mean), (100 * found.mean, place), xytext=(0, 5),
            textcoords="offset points", ha="center", fontsize=SMALL_POINTS, color=INK,
        )  # fmt: skip
    _arm_axis(axes, [_arm_label(row) for row, _ in compared])
    axes.margins(x=0.08)
    axes.set_xlabel(f"{label(table.main).removesuffix(', %')}: points above {table.baseline}")
    said = "; ".join(
        f"{row.arm} {difference_text(table.main, cell.difference.mean)} points, interval "
        f"{interval_text(table.main, cell.difference.low, cell.difference.high) or 'none'}"
        for row, cell in compared
        if cell.difference
    )
    return picture_from_figure(
        figure,
        name="differences",
        title=f"Differences to {table.baseline}",
        caption="Paired by seed, with 95 % paired t intervals, not corrected for the number of "
        "arms. Where an interval holds 0, these seeds do not tell the arms apart.",
        alt=f"Differences to {table.baseline}. {said}.",
    )


def front_picture(table: StudyTable) -> Picture | None:
    """Draw the main figure over measured latency, and the front; None where none was measured."""
    points = [
        (row, latency, main)
        for row in table.rows
        if (latency := row.cell(MEASURED_MS)) and (main := row.cell(table.main))
    ]
    if not points or not is_share(table.main):
        return None
    unit = TimeUnit.for_ms(max(latency.over_seeds.mean for _, latency, _ in points))
    figure = new_figure(3.2)
    axes = figure.add_subplot()
    places = {
        row.arm: (unit.value_ms(latency.over_seeds.mean), 100 * main.over_seeds.mean)
        for row, latency, main in points
    }
    front = [places[arm] for arm in table.front if arm in places]
    for row, latency, main in points:
        color = BLUE if row.arm in table.front else GRAY
        x, y = places[row.arm]
        _bars(axes, x, y, latency, main, unit, color)
    axes.margins(x=0.1, y=0.14)
    _labels(axes, places, table.front)
    axes.plot(*zip(*front, strict=True), color=BLUE, linewidth=0.8, drawstyle="steps-post",
              linestyle=(0, (2, 2)), zorder=1)  # fmt: skip
    axes.set_xlabel(f"measured latency, {unit.name}")
    axes.set_ylabel(label(table.main))
    said = "; ".join(
        f"{arm} {fixed(y, 1)} % at {unit.text_ms(x / unit.per_ms)}"
        for arm, (x, y) in places.items()
    )
    return picture_from_figure(
        figure,
        name="front",
        title="What a millisecond buys",
        caption="Means over seeds; lines are 95 % t intervals. Blue: no other arm is as fast and "
        "more robust. All networks were timed side by side, in one session.",
        alt=f"{label(table.main)} over measured latency. {said}. On the front: "
        f"{', '.join(table.front)}.",
    )


def _series(table: StudyTable) -> list[str]:
    """Return the figures that an arm is drawn with, three at most."""
    chosen = [name for name in table.figures if name == CLEAN or name.endswith(f".{WORST}")]
    if table.main not in chosen and is_share(table.main):
        chosen.append(table.main)
    return [name for name in chosen if any(row.cell(name) for row in table.rows)][: len(_SERIES)]


def _share(axes: Axes, cell: Cell, y: float, color: str, marker: str, face: str) -> None:
    found = cell.over_seeds
    mean = 100 * found.mean
    end = mean
    if found.low is not None and found.high is not None:
        low, high = max(100 * found.low, 0.0), min(100 * found.high, 100.0)
        axes.plot([low, high], [y, y], color=color, linewidth=1.4, solid_capstyle="butt")
        end = high
    seeds = [100 * value for value in cell.values]
    if len(seeds) > 1:
        axes.plot(seeds, [y] * len(seeds), "|", color=color, markersize=5, markeredgewidth=0.8)
    axes.plot(
        [mean], [y], marker, color=color, markerfacecolor=face, markersize=4.5, markeredgewidth=1.1
    )
    axes.annotate(
        fixed(mean, 1), (max([end, *seeds]), y), xytext=(4, 0), textcoords="offset points",
        va="center", fontsize=SMALL_POINTS, color=INK,
    )  # fmt: skip


def _bars(
    axes: Axes, x: float, y: float, latency: Cell, main: Cell, unit: TimeUnit, color: str
) -> None:
    robust, time = main.over_seeds, latency.over_seeds
    if robust.low is not None and robust.high is not None:
        axes.plot([x, x], [max(100 * robust.low, 0), min(100 * robust.high, 100)], color=color,
                  linewidth=1.0)  # fmt: skip
    if time.low is not None and time.high is not None:
        axes.plot([unit.value_ms(time.low), unit.value_ms(time.high)], [y, y], color=color,
                  linewidth=1.0)  # fmt: skip
    axes.plot([x], [y], "o", color=color, markersize=4.5)


def _labels(axes: Axes, places: dict[str, tuple[float, float]], front: Sequence[str]) -> None:
    """Name the points, each at the side where its name covers least of points, lines and names."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # positions are known only once the axes have their place
    drawn = [line.get_window_extent().padded(_CLEARANCE_PIXELS) for line in axes.lines]
    for arm in sorted(places, key=lambda arm: arm not in front):
        name = axes.annotate(
            arm, places[arm], xytext=_SIDES[0][0], textcoords="offset points",
            fontsize=SMALL_POINTS, color=INK if arm in front else MUTED,
        )  # fmt: skip

        def put(side: int, name: Annotation = name) -> Bbox:
            offset, across = _SIDES[side]
            name.set(position=offset, horizontalalignment=across, verticalalignment="center")
            return name.get_window_extent()

        def covers(side: int) -> float:
            box = put(side)
            return sum(_common_area(box, other) for other in drawn) + _OUTSIDE * (
                box.width * box.height - _common_area(box, axes.bbox)
            )

        chosen = min(range(len(_SIDES)), key=covers)
        drawn.append(put(chosen).padded(_BETWEEN_NAMES_PIXELS))


def _common_area(box: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(box, other)
    return 0.0 if both is None else both.width * both.height


def _arm_axis(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(names) - 0.4, -0.6)


def _arm_label(row: ArmRow) -> str:
    return f"{row.arm}\n{len(row.seeds)} seed{'s' * (len(row.seeds) > 1)}"
