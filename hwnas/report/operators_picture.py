"""The picture of a latency table: every operator's latency alone.

Of few operators each has a row with its interval; of more, those that differ in neither shape nor
stride share one, and of very many those of one resolution.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

from hwnas.report.drawing import (
    BLUE,
    GRAY,
    INK,
    MUTED,
    PAPER,
    SMALL_POINTS,
    Picture,
    new_figure,
    picture_from_figure,
)
from hwnas.report.numbers import percent
from hwnas.report.operator_labels import channels, kind_of, operator_labels, shortened
from hwnas.space.user.space import BEGIN, END

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes

    from hwnas.latency.model import LatencyModel
    from hwnas.report.numbers import TimeUnit
    from hwnas.report.run_files import RunFiles
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.workload import OperatorKey

MAX_ROWS = 70
"""Operators that may have a row each."""

MAX_STRIPS = 40
"""Rows of several operators that a page has room for: they are higher."""

_ROW_INCHES = 0.132
_STRIP_INCHES = 0.2
_NAMED = 2
_LONG = 10
_HEADING = 1.35

_ORDER = {"stem": 0, BEGIN: 0, "head": 2, END: 2}

# Rows by what they are called, under their headings.
Rows: TypeAlias = "dict[str, dict[str, list[OperatorKey]]]"


def operators_picture(run: RunFiles, latency: LatencyModel, unit: TimeUnit) -> Picture:
    """Draw every operator's isolated latency; mark those of the network."""
    table = run.table
    used = Counter(latency.space.operators_of(run.derivation.genotype))
    keys = list(table.measurements)
    names = operator_labels(keys)
    rows, is_single = rows_of(sorted(keys, key=table.latency_us), names)
    count = sum(len(each) + _HEADING * bool(title) for title, each in rows.items())
    figure = new_figure(count * (_ROW_INCHES if is_single else _STRIP_INCHES) + 0.55)
    axes = figure.add_subplot()
    y = 0.0
    ticks: list[float] = []
    labels: list[str] = []
    for title, each in rows.items():
        if title:
            axes.annotate(
                title, (0, y), xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=SMALL_POINTS, color=MUTED,
            )  # fmt: skip
            y += 1
        for name, members in each.items():
            _row(axes, table, members, y, unit, used=used)
            if not is_single:
                run_here = [key for key in members if key in used]
                _say_used(axes, y, [_told(key, names, with_channels=not title) for key in run_here])
            is_used = any(key in used for key in members)
            ticks.append(y)
            labels.append(f"{'▸ ' if is_used else ''}{name}")
            y += 1
        y += (_HEADING - 1) * bool(title)
    axes.set_yticks(ticks, labels)
    for tick, label in zip(axes.get_yticklabels(), labels, strict=True):
        if label.startswith("▸"):
            tick.set_color(INK)
            tick.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(y - 0.3, -0.8)
    axes.set_xlim(left=0)
    interval = "median, 95 % interval" if is_single else "median"
    axes.set_xlabel(f"latency alone, {unit.name} ({interval})")
    caption, alt = _texts(table, keys, len(used), unit, rows, is_single=is_single)
    return picture_from_figure(
        figure, name="operators", title="Latency per operator", caption=caption, alt=alt
    )


def rows_of(keys: Sequence[OperatorKey], names: Mapping[OperatorKey, str]) -> tuple[Rows, bool]:
    """Arrange operators in as many rows as a page has room for.

    Args:
        keys: The operators, in the order that rows shall have below their heading.
        names: What tells each from others of its kind and shape.

    Returns:
        The rows by their headings, and whether each is of a single operator. Where there is no
        room for headings, all are below an empty one.
    """
    single = _grouped(keys, lambda key: shortened(f"{channels(key)} {names[key]}".strip()))
    count = sum(len(group) for group in single.values())
    if count == len(keys) and count <= MAX_ROWS:
        return single, True
    by_shape = _grouped(keys, channels)
    if sum(len(group) for group in by_shape.values()) <= MAX_STRIPS:
        return by_shape, False
    by_size: dict[str, list[OperatorKey]] = {}
    for key in sorted(keys, key=_place):
        by_size.setdefault(_title(key), []).append(key)
    return {"": by_size}, False


def _grouped(keys: Sequence[OperatorKey], name: Callable[[OperatorKey], str]) -> Rows:
    rows: Rows = {_title(key): {} for key in sorted(keys, key=_place)}
    for key in keys:
        rows[_title(key)].setdefault(name(key), []).append(key)
    return rows


def _place(key: OperatorKey) -> tuple[int, int, int, str]:
    """Order operators by kind, resolution and stride, the largest images first."""
    kind = kind_of(key)
    return _ORDER.get(kind, 1), -key.in_shape[1] * key.in_shape[2], key.stride, kind


def _title(key: OperatorKey) -> str:
    parts = [kind_of(key), f"{key.in_shape[1]}×{key.in_shape[2]}"]  # noqa: RUF001 - a size
    if key.stride != 1:
        parts.append(f"stride {key.stride}")
    return ", ".join(parts)


def _row(
    axes: Axes,
    table: LatencyTable,
    keys: Sequence[OperatorKey],
    y: float,
    unit: TimeUnit,
    *,
    used: Mapping[OperatorKey, int],
) -> None:
    for key in sorted(keys, key=lambda key: key in used):  # those of the network on top
        statistics = table.measurements[key].statistics
        low, median, high = (
            unit.value_us(value)
            for value in (statistics.low_us, statistics.median_us, statistics.high_us)
        )
        is_used = key in used
        color = BLUE if is_used else GRAY
        if len(keys) == 1:
            axes.plot([low, high], [y, y], color=color, linewidth=1.4, solid_capstyle="butt")
        axes.plot(
            [median], [y], marker="D" if is_used else "o", markersize=3.6 if is_used else 3.2,
            color=color, markerfacecolor=color if is_used else PAPER, markeredgewidth=0.9,
        )  # fmt: skip


def _told(key: OperatorKey, names: Mapping[OperatorKey, str], *, with_channels: bool) -> str:
    return f"{channels(key)} {names[key]}".strip() if with_channels else names[key]


def _say_used(axes: Axes, y: float, names: Sequence[str]) -> None:
    """Name the operators of a row that the network runs, right of it."""
    told = [name for name in names if name]
    if not told:
        return
    named = _NAMED if max(map(len, told)) < _LONG else 1
    more = f" +{len(told) - named}" if len(told) > named else ""
    axes.annotate(
        f"{', '.join(told[:named])}{more}", (1, y), xycoords=("axes fraction", "data"),
        xytext=(4, 0), textcoords="offset points", va="center", fontsize=SMALL_POINTS, color=BLUE,
    )  # fmt: skip


def _texts(
    table: LatencyTable,
    keys: Sequence[OperatorKey],
    used: int,
    unit: TimeUnit,
    rows: Rows,
    *,
    is_single: bool,
) -> tuple[str, str]:
    """Return caption and alternative text."""
    fastest, slowest = min(keys, key=table.latency_us), max(keys, key=table.latency_us)
    span = f"{unit.text_us(table.latency_us(fastest))} to {unit.text_us(table.latency_us(slowest))}"
    every = [table.measurements[key].statistics for key in keys]
    widest = max((one.high_us - one.low_us) / one.median_us for one in every)
    labels = "Labels give kind and input size" if "" in rows else "Labels give channels in → out"
    if not is_single:
        labels += ", and right of a row what the network runs of it"
    narrow = " (most intervals are narrower than their points)" if is_single else ""
    caption = (
        f"All {len(keys)} operators of the space, each timed alone as the runtime compiles it: "
        f"{span}, the least certain to ±{percent(widest / 2)}{narrow}. {labels}; ▸ and diamonds "
        f"mark the {used} that the derived network runs."
    )
    alt = (
        f"Dot plot of the latency of {len(keys)} operators by kind and resolution, from {span}; "
        f"{used} are marked as part of the derived network."
    )
    return caption, alt
