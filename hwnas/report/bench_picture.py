"""The picture of `hwnas bench`: each engine's latency beside its rivals', by size of batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.patches import Patch

from hwnas.deploy.rivals import EAGER
from hwnas.report.drawing import (
    BLUE,
    GRAY,
    INK,
    MUTED,
    SMALL_POINTS,
    Picture,
    drawing_style,
    new_figure,
    picture_from_figure,
    svg_file_from_picture,
)
from hwnas.report.numbers import TIMES, TimeUnit, count, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hwnas.deploy.race import Lane

_ROW_INCHES = 0.19
_PANEL_INCHES = 0.42
_EDGE_INCHES = 0.72
_ROOM_FOR_FIGURES = 1.8
"""The axis goes this many times as far as the longest bar: figures stand behind the bars."""


def bench_picture(lanes: Sequence[Lane], device: str) -> Picture:
    """Draw a race for a page. The style must be held: `drawing_style`.

    Args:
        lanes: Who was timed; at least one.
        device: Name of the processor.
    """
    return picture_from_figure(
        _figure(lanes, device),
        name="bench",
        title="Engines beside their rivals",
        caption=_caption(lanes),
        alt=_alt(lanes),
    )


def bench_svg(lanes: Sequence[Lane], device: str) -> bytes:
    """Draw a race as a file of its own. See `bench_picture` for the arguments."""
    with drawing_style():
        return svg_file_from_picture(bench_picture(lanes, device))


def _figure(lanes: Sequence[Lane], device: str) -> Figure:
    batches = list(dict.fromkeys(lane.batch for lane in lanes))
    groups = [[lane for lane in lanes if lane.batch == batch] for batch in batches]
    heights = [len(group) * _ROW_INCHES + _PANEL_INCHES for group in groups]
    figure = new_figure(sum(heights) + _EDGE_INCHES)
    panels = figure.subplots(len(groups), squeeze=False, height_ratios=heights)[:, 0]
    for axes, group in zip(panels, groups, strict=True):
        _draw(axes, group)
    figure.suptitle(
        f"Latency of a call on {device}", x=0.01, ha="left", fontsize=SMALL_POINTS + 1.5, color=INK
    )
    figure.legend(
        handles=[
            Patch(facecolor=BLUE, label="engine"),
            Patch(facecolor=GRAY, label="rival"),
        ],
        loc="outside lower left",
        ncols=2,
        handlelength=1.0,
    )
    return figure


def _draw(axes: Axes, group: Sequence[Lane]) -> None:
    """Draw the bars of one size of batch: the median, and a line over its 95 % interval.

    Not from the 10th to the 90th percentile: on a busy machine that is many times as long as the
    bars, and says nothing of who is faster.
    """
    longest_us = max(lane.latency.high_us for lane in group)
    unit = TimeUnit.for_ms(longest_us / 1e3)
    eager_us = _eager_us(group)
    for y, lane in enumerate(group):
        found = lane.latency
        middle, low, high = map(unit.value_us, (found.median_us, found.low_us, found.high_us))
        color = BLUE if lane.kind == "engine" else GRAY
        axes.barh(y, middle, height=0.7, linewidth=0, color=color)
        axes.plot((low, high), (y, y), color=INK, linewidth=1.0, solid_capstyle="butt")
        ratio = f", {number(eager_us / found.median_us)}{TIMES}" if eager_us else ""
        axes.annotate(
            f"{unit.text_us(found.median_us)}, {count(round(lane.images_per_s))}/s{ratio}",
            (high, y), xytext=(3, 0), textcoords="offset points", va="center",
            fontsize=SMALL_POINTS, color=MUTED,
        )  # fmt: skip
    axes.set_yticks(range(len(group)), [lane.name for lane in group])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(group) - 0.4, -0.6)
    axes.set_xlim(0, unit.value_us(longest_us) * _ROOM_FOR_FIGURES)
    batch = group[0].batch
    axes.set_title(f"{batch} image{'' if batch == 1 else 's'} per call, {unit.name}")


def _eager_us(group: Sequence[Lane]) -> float | None:
    return next((lane.latency.median_us for lane in group if lane.name == EAGER), None)


def _caption(lanes: Sequence[Lane]) -> str:
    least = min(lane.latency.n for lane in lanes)
    return (
        "Median latency of a call, with a line over its 95 % interval; behind it images "
        f"per second, and how many times as fast as {EAGER}. All of one size of batch were "
        f"timed in one interleaved run, n at least {least}."
    )


def _alt(lanes: Sequence[Lane]) -> str:
    texts = []
    for lane in lanes:
        unit = TimeUnit.for_ms(lane.latency.median_us / 1e3)
        texts.append(f"{lane.name}, batch {lane.batch}: {unit.text_us(lane.latency.median_us)}")
    return f"Bar chart of latencies. {'; '.join(texts)}."
