"""The picture of a Pareto front: what a millisecond more is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hwnas.report.drawing import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    SMALL_POINTS,
    Picture,
    new_figure,
    picture_from_figure,
)
from hwnas.report.numbers import TimeUnit, count, number, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from hwnas.search.front_records import FrontPoint, FrontRecord

_DOTS = 200
"""Up to so many networks have a dot each; more would be a band that hides the line."""


def front_picture(front: FrontRecord) -> Picture:
    """Draw score over latency; where networks were measured, those latencies beside them.

    Args:
        front: The front, of at least one point.
    """
    unit = TimeUnit.for_ms(front.points[-1].predicted_ms)
    figure = new_figure(3.0)
    axes = figure.add_subplot()
    latencies = np.array([unit.value_ms(point.predicted_ms) for point in front.points])
    scores = np.array([point.score for point in front.points])
    if front.complete and len(front.points) == front.networks:
        axes.step(latencies, scores, where="post", color=BLUE, linewidth=1.0, alpha=0.7)
    if len(front.points) <= _DOTS or not front.complete:
        axes.plot(latencies, scores, "o", color=BLUE, markersize=2.6)
    axes.set_ylabel("log-probability of the network")
    measured = [point for point in front.points if point.measured is not None]
    axes.set_xlabel(f"{'' if measured else 'predicted '}latency, {unit.name}")
    if measured:
        axes.plot([], [], "o", color=BLUE, markersize=2.6, label="predicted")
        _draw_measured(axes, measured, unit)
    _label_end(axes, front.points[0], unit, is_left=True)
    if len(front.points) > 1:
        _label_end(axes, front.points[-1], unit, is_left=False)
    axes.margins(x=0.06, y=0.12)
    return picture_from_figure(
        figure,
        name="front",
        title="Pareto front",
        caption=_caption(front, measured, unit),
        alt=_alt(front, measured, unit),
    )


def mean_error_percent(points: Sequence[FrontPoint]) -> float | None:
    """Return by how much predictions are off measurements, in percent of these, on average."""
    errors = [
        abs(point.predicted_ms * 1e3 / point.measured.median_us - 1)
        for point in points
        if point.measured is not None
    ]
    return 100 * sum(errors) / len(errors) if errors else None


def _draw_measured(axes: Axes, points: Sequence[FrontPoint], unit: TimeUnit) -> None:
    """Draw medians with their 95 % intervals, each joined to its prediction."""
    for index, point in enumerate(points):
        statistics = point.measured
        assert statistics is not None
        at = unit.value_us(statistics.median_us)
        axes.plot(
            [unit.value_ms(point.predicted_ms), at], [point.score] * 2, color=ORANGE, linewidth=0.7
        )
        axes.errorbar(
            at, point.score, color=ORANGE, marker="D", markersize=3.4, elinewidth=1.0,
            xerr=[
                [unit.value_us(statistics.median_us - statistics.low_us)],
                [unit.value_us(statistics.high_us - statistics.median_us)],
            ],
            label="measured" if index == 0 else "_",
        )  # fmt: skip
    axes.legend(loc="lower right")


def _label_end(axes: Axes, point: FrontPoint, unit: TimeUnit, *, is_left: bool) -> None:
    axes.annotate(
        unit.text_ms(point.predicted_ms),
        (unit.value_ms(point.predicted_ms), point.score),
        xytext=(0, -11 if is_left else 5),
        textcoords="offset points",
        ha="left" if is_left else "right",
        fontsize=SMALL_POINTS,
        color=INK if is_left else MUTED,
    )


def _caption(front: FrontRecord, measured: Sequence[FrontPoint], unit: TimeUnit) -> str:
    first, last = front.points[0], front.points[-1]
    what = (
        f"{count(front.networks)} networks that no other of {front.space} beats in both"
        if front.complete
        else f"{count(front.networks)} networks, each the best within its latency, others between"
    )
    text = (
        f"{what}: from {unit.text_ms(first.predicted_ms)} to {unit.text_ms(last.predicted_ms)} on "
        f"{front.target} ({front.device}), the network's log-probability rises from "
        f"{number(first.score)} to {number(last.score)}."
    )
    error = mean_error_percent(measured)
    if error is not None:
        text += (
            f" Of {len(measured)} that were measured, predictions are off by "
            f"{percent(error / 100)} on average."
        )
    return text


def _alt(front: FrontRecord, measured: Sequence[FrontPoint], unit: TimeUnit) -> str:
    first, last = front.points[0], front.points[-1]
    also = f" {len(measured)} diamonds show measured latencies." if measured else ""
    return (
        f"Rising curve of log-probability over predicted latency: {number(first.score)} at "
        f"{unit.text_ms(first.predicted_ms)}, {number(last.score)} at "
        f"{unit.text_ms(last.predicted_ms)}, {front.networks} networks.{also}"
    )
