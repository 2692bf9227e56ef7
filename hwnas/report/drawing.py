"""How pictures look, and how they become part of the page.

Colors are written by Matplotlib as fixed codes and replaced by the page's CSS variables, so that
pictures follow its light and dark mode and its print style. Text stays text, in the reader's fonts.
"""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

# Okabe and Ito's colors tell apart for all common kinds of color blindness; shapes do too here.
INK = "#20262e"
MUTED = "#66707c"
GRID = "#dde1e6"
PAPER = "#fefefe"
BLUE = "#0072b2"
ORANGE = "#d55e00"
GREEN = "#009e73"
GRAY = "#9aa3ad"

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    GRAY: "--gray",
}

WIDTH_INCHES = 5.0
FONT_POINTS = 8.5
SMALL_POINTS = 7.5

# `Any`, as Matplotlib's stubs name every setting, and others in each of its versions.
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRAY,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": FONT_POINTS,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": FONT_POINTS,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    # The metrics are DejaVu's, which ships with Matplotlib: equal on every machine, and wider than
    # the reader's fonts, so nothing that fits here overlaps there.
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": FONT_POINTS,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "legend.fontsize": SMALL_POINTS,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.3,
    "text.color": INK,
    "xtick.color": GRAY,
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": SMALL_POINTS,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "xtick.minor.size": 0.0,
    "ytick.color": GRAY,
    "ytick.labelcolor": MUTED,
    "ytick.labelsize": SMALL_POINTS,
    "ytick.major.size": 2.5,
    "ytick.major.width": 0.6,
    "ytick.minor.size": 0.0,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
}

_FONT = re.compile(r"'DejaVu Sans'[^;\"]*")
_ID = re.compile(r'\b(id="|url\(#|href="#)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture of the page.

    Attributes:
        name: Its anchor.
        title: What it is, in a few words.
        caption: What one sees, and the figure that matters.
        alt: What it shows, for those who do not see it.
        svg: The drawing.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: Markup


@contextlib.contextmanager
def drawing_style() -> Iterator[None]:
    """Hold the style of all pictures. Matplotlib knows it only as global settings; put back."""
    with mpl.rc_context(_STYLE):
        yield


def new_figure(height_inches: float) -> Figure:
    """Make an empty figure of the page's column width."""
    return Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")


def picture_from_figure(
    figure: Figure, *, name: str, title: str, caption: str, alt: str
) -> Picture:
    """Make a picture of a drawn figure. See `Picture` for the arguments."""
    svg = svg_from_figure(figure, name, alt)
    return Picture(name=name, title=title, caption=caption, alt=alt, svg=svg)


def svg_from_figure(figure: Figure, name: str, alt: str) -> Markup:
    """Write a figure as SVG that lies within a page: equal figures give equal text.

    Args:
        figure: The figure.
        name: Goes before every id in it, as ids are unique in a page.
        alt: The drawing's description.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Its style sheet would hold for the whole page, which has the rule itself.
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)
    text = _ID.sub(lambda match: f"{match[0]}{name}-", text)
    text = _FONT.sub("system-ui, sans-serif", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    opening, _, rest = text.partition(">")
    view_box = re.search(r'viewBox="[^"]*"', opening)
    assert view_box is not None
    head = Markup('<svg role="img" aria-label="{}" xmlns="http://www.w3.org/2000/svg" ').format(alt)
    xlink = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    # Matplotlib escapes the text that it writes, and nothing else in it comes from outside.
    return head + Markup(f"{view_box[0]} {xlink}>{rest}")


def svg_file_from_picture(picture: Picture) -> bytes:
    """Write a picture as a file of its own, on paper, in the light colors of the page."""
    colors = ";".join(f"{variable}:{color}" for color, variable in _VARIABLES.items())
    style = f"<style>svg{{{colors};background:{PAPER}}}</style>"
    opening, _, rest = str(picture.svg).partition(">")
    return f"{opening}>{style}{rest}\n".encode()


def epochs_axis(axes: Axes, *, label: bool = True) -> None:
    """Give an axis of epochs whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))
    if label:
        axes.set_xlabel("epoch")
