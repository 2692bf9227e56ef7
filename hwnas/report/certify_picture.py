"""What is proven, what is refuted, and what lies between, over the radius."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hwnas.report.drawing import (
    BLUE,
    GRAY,
    MUTED,
    ORANGE,
    SMALL_POINTS,
    Picture,
    new_figure,
    picture_from_figure,
)
from hwnas.report.numbers import count, number, percent
from hwnas.robustness.threat import parse_eps

if TYPE_CHECKING:
    from hwnas.robustness.bounds.records import CertifyRecord

_PER_PIXEL = 255


def certify_picture(record: CertifyRecord) -> Picture:
    """Draw the certified share over the radius, and PGD's; the drawing style must be held."""
    figure = new_figure(3.2)
    axes = figure.add_subplot()
    radii = np.array([0.0, *(parse_eps(line.eps) for line in record.lines)]) * _PER_PIXEL
    left = 100 * np.array([record.clean, *(line.attacked for line in record.lines)])
    # Each image's own radius says where it leaves the curve of what is proven.
    proven = np.array([radius * _PER_PIXEL for _, radius in record.samples])
    at = np.unique(np.append(radii, proven))
    right = [100 * record.clean, *(100 * float(np.mean(proven >= radius)) for radius in at[1:])]
    # What PGD refutes at a radius it refutes at every larger one, up to the next that it tried.
    refuted = left[np.searchsorted(radii, at[:-1], side="right") - 1]
    axes.stairs(refuted, at, baseline=right[1:], fill=True, color=GRAY, alpha=0.25, linewidth=0)
    axes.step(radii, left, "o-", where="post", color=ORANGE, markersize=3,
              label=f"PGD-{record.steps} leaves")  # fmt: skip
    axes.step(at, right, where="pre", color=BLUE, label=f"certified ({record.method})")
    for color, lows, highs in (
        (ORANGE, "attacked_low", "attacked_high"), (BLUE, "certified_low", "certified_high"),
    ):  # fmt: skip
        low, high = ([100 * getattr(line, name) for line in record.lines] for name in (lows, highs))
        axes.vlines(radii[1:], low, high, color=color, linewidth=1.0, alpha=0.6)
    axes.annotate(
        "between: undecided", (0.99, 0.97), xycoords="axes fraction", ha="right", va="top",
        fontsize=SMALL_POINTS, color=MUTED,
    )  # fmt: skip
    axes.set_xlabel("radius, 1/255 (l_inf)")
    axes.set_ylabel("share of test images, %")
    axes.set_ylim(0, 102)
    axes.set_xlim(0, radii[-1] * 1.02)
    figure.legend(loc="outside upper right", ncols=2)
    last = record.lines[-1]
    return picture_from_figure(
        figure,
        name="certified",
        title="What is proven, and what is refuted",
        caption=f"{count(record.n)} test images. No attack can bring the accuracy below the blue "
        f"line, and no proof can bring it above the orange one. Median certified radius: "
        f"{number(record.radii.median)}/255. Bars: 95 % Wilson intervals.",
        alt=f"Falling curves over the radius from {percent(record.clean)}; at {last.eps} "
        f"{percent(last.certified)} are certified, and PGD leaves {percent(last.attacked)}.",
    )
