"""Heat maps: cells whose shade is a share, one or more of them framed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.patches import Rectangle

from hwnas.report.drawing import BLUE, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Ink on the darkest cell is still read easily, in light and in dark mode.
_DARKEST = 0.72
_GAP = 0.04


def cell(
    axes: Axes, left: float, y: int, share: float, *, width: float = 1.0, is_framed: bool = False
) -> None:
    """Draw a cell.

    Args:
        axes: Where to draw; see `bare`.
        left: Its left end, in columns.
        y: Its row.
        share: How dark it is, in [0, 1].
        width: Its width, in columns.
        is_framed: Frame it.
    """
    place, size = (left + _GAP / 2, y - 0.46), (width - _GAP, 0.92)
    axes.add_patch(Rectangle(place, *size, facecolor=BLUE, alpha=_DARKEST * share, linewidth=0))
    if is_framed:
        axes.add_patch(
            Rectangle(place, *size, facecolor="none", edgecolor=INK, linewidth=1.2, zorder=3)
        )


def bare(axes: Axes, columns: float, rows: int) -> None:
    """Leave of the axes only the labels, at the top and the left."""
    axes.set_xlim(-_GAP / 2, columns + _GAP / 2)
    axes.set_ylim(rows - 0.48, -0.52)
    axes.grid(visible=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
