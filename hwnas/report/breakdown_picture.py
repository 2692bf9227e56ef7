"""The picture of a breakdown: the nodes of a model in the order of execution, and their latency.

It stands on its own, outside of any page: colors are written as they are, and an SVG file brings a
style sheet that turns them over where the reader's screen is dark.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.patches import Patch

from hwnas.report.drawing import (
    BLUE,
    GRAY,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    SMALL_POINTS,
    WIDTH_INCHES,
    Picture,
    drawing_style,
    new_figure,
    picture_from_figure,
)
from hwnas.report.numbers import TimeUnit, fixed, percent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from hwnas_profilers.breakdown.values import Breakdown, NodeLatency

MAX_ROWS = 40
"""Of a model of more nodes, the slowest are drawn and the others summed up in one row."""

PIXELS = 1200
"""Width of the PNG file."""

ROW_INCHES = 0.165
_NAME_LETTERS = 30

# The page's colors, and two more of Okabe and Ito's. They keep apart on light and on dark; their
# sky blue would be the blue of dark screens.
_COLORS = (BLUE, ORANGE, GREEN, "#cc79a7", "#e69f00")
_OTHER_KINDS = "other kinds"

# What the page's style sheet has for screens that are dark.
_DARK = {
    INK: "#e6e9ec",
    MUTED: "#a0a9b3",
    GRID: "#333a43",
    PAPER: "#1b2026",
    GRAY: "#7f8a96",
    BLUE: "#56a7dc",
    ORANGE: "#f0803c",
    GREEN: "#2fbf95",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One bar."""

    label: str
    kind: str
    latency_us: float
    share_percent: float


def breakdown_picture(breakdown: Breakdown) -> Picture:
    """Draw a breakdown for a page. The style must be held: `drawing_style`."""
    return picture_from_figure(
        _figure(breakdown),
        name="breakdown",
        title="Where the latency goes",
        caption=_caption(breakdown),
        alt=_alt(breakdown),
    )


def breakdown_svg(breakdown: Breakdown) -> bytes:
    """Draw a breakdown as a file of its own, which follows a reader's dark mode."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with drawing_style(), mpl.rc_context({"svg.hashsalt": "breakdown"}):
        figure = _figure(breakdown)
        figure.set_facecolor(PAPER)
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    rules = "".join(
        f'[style*="{name}: {light}"]{{{name}:{dark} !important}}'
        for light, dark in _DARK.items()
        for name in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{{rules}}}</style>"
    head, end, rest = buffer.getvalue().partition("<defs>")
    assert end
    return f"{head}{style}\n {end}{rest}".encode()


def breakdown_png(breakdown: Breakdown) -> bytes:
    """Draw a breakdown as a PNG file, 1200 pixels wide, on a light ground."""
    buffer = io.BytesIO()
    with drawing_style():
        figure = _figure(breakdown)
        figure.set_facecolor(PAPER)
        figure.savefig(buffer, format="png", dpi=PIXELS / WIDTH_INCHES)
    return buffer.getvalue()


def _figure(breakdown: Breakdown) -> Figure:
    rows = _rows(breakdown.nodes)
    colors = _colors(breakdown)
    legend_rows = (len(colors) + 2) // 2
    figure = new_figure((len(rows) + legend_rows) * ROW_INCHES + 0.95)
    axes = figure.add_subplot()
    widest = max(row.latency_us for row in rows)
    unit = TimeUnit.for_ms(widest / 1e3)  # not the title's: nodes are much shorter than a call
    decimals = max(0, 2 - math.floor(math.log10(unit.value_us(widest))))
    for y, row in enumerate(rows):
        axes.barh(
            y, unit.value_us(row.latency_us), height=0.72, linewidth=0,
            color=colors.get(row.kind, GRAY),
        )  # fmt: skip
        latency = fixed(unit.value_us(row.latency_us), decimals)
        axes.annotate(
            f"{latency} ({percent(row.share_percent / 100)})",
            (unit.value_us(row.latency_us), y), xytext=(3, 0), textcoords="offset points",
            va="center", fontsize=SMALL_POINTS, color=MUTED,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, unit.value_us(widest) * 1.3)  # room for the figures behind the bars
    axes.set_xlabel(f"latency, {unit.name}, in the order of execution")
    figure.suptitle(_title(breakdown), x=0.01, ha="left", fontsize=SMALL_POINTS + 1.5, color=INK)
    figure.legend(
        handles=[
            Patch(facecolor=color, label=label) for label, color in _legend(breakdown, colors)
        ],
        loc="outside lower left",
        ncols=2,
        handlelength=1.0,
        columnspacing=1.4,
    )
    return figure


def _title(breakdown: Breakdown) -> str:
    unit = TimeUnit.for_ms(breakdown.latency_us / 1e3)
    low, high = (unit.value_us(value) for value in (breakdown.low_us, breakdown.high_us))
    decimals = max(1, 3 - len(str(int(low)))) if low < 1000 else 0
    model = _shortened(breakdown.model.replace("\\", "/").rpartition("/")[2], 44)
    return (
        f"{model} on {breakdown.target}: {unit.text_us(breakdown.latency_us)} per call\n"
        f"95 % interval {fixed(low, decimals)} to {fixed(high, decimals)} {unit.name}, "
        f"n = {breakdown.n}; {len(breakdown.nodes)} nodes"
    )


def _rows(nodes: Sequence[NodeLatency]) -> list[_Row]:
    """Return the bars: all nodes, or the slowest and one for the rest."""
    drawn = sorted(nodes, key=lambda node: -node.latency_us)
    drawn, rest = (drawn, []) if len(nodes) <= MAX_ROWS else (drawn[:MAX_ROWS], drawn[MAX_ROWS:])
    rows = [
        _Row(
            label=f"{_shortened(node.node.name, _NAME_LETTERS)}  #{node.index}",
            kind=node.node.kind,
            latency_us=node.latency_us,
            share_percent=node.share_percent,
        )
        for node in sorted(drawn, key=lambda node: node.index)
    ]
    if rest:
        rows.append(
            _Row(
                label=f"the other {len(rest)} nodes, each shorter",
                kind="",
                latency_us=sum(node.latency_us for node in rest),
                share_percent=sum(node.share_percent for node in rest),
            )
        )
    return rows


def _colors(breakdown: Breakdown) -> dict[str, str]:
    """Give the costliest kinds a color each; the others are gray."""
    kinds = [row.kind for row in breakdown.by_type]
    return dict(zip(kinds, _COLORS, strict=False))


def _legend(breakdown: Breakdown, colors: Mapping[str, str]) -> list[tuple[str, str]]:
    entries = [
        (f"{row.kind} ({row.nodes}): {percent(row.share_percent / 100)}", colors[row.kind])
        for row in breakdown.by_type
        if row.kind in colors
    ]
    others = [row for row in breakdown.by_type if row.kind not in colors]
    if others:
        share = sum(row.share_percent for row in others) / 100
        nodes = sum(row.nodes for row in others)
        entries.append((f"{_OTHER_KINDS} ({nodes}): {percent(share)}", GRAY))
    return entries


def _caption(breakdown: Breakdown) -> str:
    unit = TimeUnit.for_ms(breakdown.latency_us / 1e3)
    slowest = breakdown.slowest[0]
    return (
        f"Each node as {breakdown.runtime} fused it, in the order of execution; {slowest.name} "
        f"({slowest.kind}) costs most, {percent(slowest.share_percent / 100)} of "
        f"{unit.text_us(breakdown.latency_us)}. Shares are of a profile of "
        f"{breakdown.profiled_calls} calls, whose nodes sum to "
        f"{unit.text_us(breakdown.profiled_sum_us)}; the latency was timed without it."
    )


def _alt(breakdown: Breakdown) -> str:
    unit = TimeUnit.for_ms(breakdown.latency_us / 1e3)
    kinds = ", ".join(
        f"{row.kind} {percent(row.share_percent / 100)}" for row in breakdown.by_type[:4]
    )
    return (
        f"Bar chart of the latency of {len(breakdown.nodes)} nodes, "
        f"{unit.text_us(breakdown.latency_us)} in all: {kinds}."
    )


def _shortened(text: str, letters: int) -> str:
    """Take letters out of the middle: names of nodes tell most at both ends.

    >>> _shortened("/features/features.1/conv/Conv", 15)
    '/featur…nv/Conv'
    """
    if len(text) <= letters:
        return text
    head = (letters - 1) // 2
    return f"{text[:head]}…{text[len(text) - (letters - 1 - head) :]}"
