"""Pictures of the search: its curves, the widths that it weighed, the tutors that it chose."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.patches import Rectangle

from hwnas.report.drawing import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    SMALL_POINTS,
    Picture,
    epochs_axis,
    new_figure,
    picture_from_figure,
)
from hwnas.report.numbers import fixed, number, percent
from hwnas.space.registry import space_from_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from hwnas.report.numbers import TimeUnit
    from hwnas.report.run_files import History, RunFiles

# Ink on the darkest cell is still read easily, in light and in dark mode.
_DARKEST = 0.72


def curves_picture(run: RunFiles, unit: TimeUnit) -> Picture:
    """Draw the search's losses, expected latency, multiplier, entropy and temperature."""
    history, record = run.search_history, run.search
    figure = new_figure(5.0)
    grid = figure.subplots(3, 2, sharex=True)
    panels = (
        ("loss", "loss, weights (log)", True),
        ("choice_loss", "loss, choices (log)", True),
        ("expected_ms", f"expected latency, {unit.name}", False),
        ("multiplier", "multiplier of the budget", False),
        ("entropy", "entropy of the choices, nat", False),
        ("temperature", "Gumbel temperature (log)", True),
    )
    for axes, (name, title, is_log) in zip(grid.flat, panels, strict=True):
        scale = unit.per_ms if name == "expected_ms" else 1.0
        _curve(axes, history, name, scale=scale, is_log=is_log)
        axes.set_title(title)
        epochs_axis(axes, label=axes in grid[-1])
    latency = grid[1, 0]
    budget = unit.value_ms(record.budget_ms)
    latency.axhline(budget, color=ORANGE, linewidth=1.2, linestyle=(0, (4, 2)))
    latency.annotate(
        f"budget {fixed(budget, 1)}", (1, budget), xycoords=("axes fraction", "data"),
        xytext=(0, 3), textcoords="offset points", ha="right", fontsize=SMALL_POINTS, color=ORANGE,
    )  # fmt: skip
    latency.margins(y=0.18)
    over = sum(figures.get("expected_ms", 0.0) > record.budget_ms for figures in history)
    caption = (
        f"{len(history)} epochs of search: the expected latency of the supernet ends at "
        f"{unit.text_ms(record.expected_ms)}, with a budget of {unit.text_ms(record.budget_ms)} "
        f"(after {over} of the epochs it was above it)."
    )
    warmup = sum("choice_loss" not in figures for figures in history)
    if warmup:
        caption += f" The choices rest during the first {warmup} epochs."
    alt = (
        f"Six line charts over {len(history)} epochs: two losses, expected latency with the budget "
        f"line, multiplier, entropy and temperature. Expected latency ends at "
        f"{unit.text_ms(record.expected_ms)}."
    )
    return picture_from_figure(
        figure,
        name="search",
        title="Search under the budget",
        caption=caption,
        alt=alt,
    )


def widths_picture(run: RunFiles) -> Picture:
    """Draw the probability of each block's widths, and which was derived."""
    record, widths = run.search, run.derivation.genotype.widths
    options = space_from_spec(record.space).options
    rows = [[math.exp(value) for value in row] for row in record.log_probabilities]
    columns = max(map(len, rows))
    figure = new_figure(len(rows) * 0.25 + 0.5)
    axes = figure.add_subplot()
    likeliest = 0
    for y, (row, of_block, width) in enumerate(zip(rows, options, widths, strict=True)):
        chosen = of_block.index(width)
        likeliest += row[chosen] == max(row)
        for x, (probability, option) in enumerate(zip(row, of_block, strict=True)):
            _cell(axes, x, y, probability / max(map(max, rows)), is_chosen=x == chosen)
            axes.text(
                x - 0.42, y, f"{'▸ ' if x == chosen else ''}{option}", va="center",
                fontweight="bold" if x == chosen else "normal",
            )  # fmt: skip
            axes.text(
                x + 0.42, y, percent(probability, 0), va="center", ha="right",
                fontsize=SMALL_POINTS, color=INK,
            )  # fmt: skip
    axes.set_xticks(
        range(columns),
        ["widest", *("" for _ in range(columns - 2)), "narrowest"][:columns],
    )
    axes.set_yticks(range(len(rows)), [f"block {y + 1}" for y in range(len(rows))])
    _bare(axes, columns, len(rows))
    caption = (
        f"Channels that each block may have, with the probability that the search gave them; "
        f"framed and marked ▸, the derived ones. {likeliest} of {len(rows)} blocks got "
        "their likeliest width"
        + (": the budget leaves room for all of them." if likeliest == len(rows) else
           ", the others gave way to the budget.")
    )  # fmt: skip
    alt = "Chosen widths with their probabilities: " + "; ".join(
        f"block {y + 1}: {width} ({percent(row[of_block.index(width)], 0)})"
        for y, (row, of_block, width) in enumerate(zip(rows, options, widths, strict=True))
    )
    return picture_from_figure(
        figure,
        name="widths",
        title="Widths the search weighed, and chose",
        caption=caption,
        alt=alt,
    )


def tutors_picture(run: RunFiles) -> Picture:
    """Draw the probability of each teacher layer as tutor of each student layer."""
    record, tutors = run.search, run.derivation.tutors
    students, teachers = record.student_layers, record.teacher_layers
    largest = max(max(row) for row in record.tutor_probabilities)
    figure = new_figure(len(students) * 0.17 + 1.0)
    axes = figure.add_subplot()
    for y, (row, tutor) in enumerate(zip(record.tutor_probabilities, tutors, strict=True)):
        for x, probability in enumerate(row):
            _cell(axes, x, y, probability / largest, is_chosen=x == tutor)
            if x == tutor:
                axes.text(
                    x, y, percent(probability, 0), ha="center", va="center", fontweight="bold",
                    fontsize=SMALL_POINTS,
                )  # fmt: skip
    axes.set_xticks(range(len(teachers)), teachers, rotation=35, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(students)), students)
    _bare(axes, len(teachers), len(students))
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("layer of the teacher", color=MUTED, fontsize=SMALL_POINTS)
    axes.set_ylabel("layer of the student", color=MUTED, fontsize=SMALL_POINTS)
    used = sorted({teachers[tutor] for tutor in tutors}, key=teachers.index)
    surest = max(range(len(students)), key=lambda y: max(record.tutor_probabilities[y]))
    caption = (
        f"Which teacher layer each student layer learns from; framed, the chosen tutor with its "
        f"probability. {len(used)} of {len(teachers)} teacher layers teach; the surest choice is "
        f"{teachers[tutors[surest]]} for {students[surest]} "
        f"({percent(max(record.tutor_probabilities[surest]), 0)}; an even split would be "
        f"{percent(1 / len(teachers), 0)})."
    )
    alt = "Heat map of tutor probabilities. Chosen tutors: " + "; ".join(
        f"{student}: {teachers[tutor]}" for student, tutor in zip(students, tutors, strict=True)
    )
    return picture_from_figure(
        figure,
        name="tutors",
        title="Tutor map",
        caption=caption,
        alt=alt,
    )


def _curve(axes: Axes, history: History, name: str, *, scale: float, is_log: bool) -> None:
    points = [
        (epoch, scale * figures[name])
        for epoch, figures in enumerate(history, start=1)
        if name in figures
    ]
    axes.plot([x for x, _ in points], [y for _, y in points], color=BLUE)
    if is_log and points and min(y for _, y in points) > 0:
        axes.set_yscale("log")
        _plain_log_ticks(axes, [y for _, y in points])


def _plain_log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Label a logarithmic axis with two to four plain numbers rather than powers."""
    low, high = math.log10(min(values)), math.log10(max(values))
    steps = (1, 2, 5) if high - low < 1.6 else (1,)
    ticks = [
        step * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        for step in steps
        if low - 0.15 <= math.log10(step * 10.0**power) <= high + 0.15
    ]
    axes.set_yticks(ticks, [number(tick) for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(10 ** (low - 0.15), 10 ** (high + 0.15))


def _cell(axes: Axes, x: int, y: int, share: float, *, is_chosen: bool) -> None:
    axes.add_patch(
        Rectangle(
            (x - 0.48, y - 0.46), 0.96, 0.92, facecolor=BLUE, alpha=_DARKEST * share, linewidth=0
        )
    )
    if is_chosen:
        axes.add_patch(
            Rectangle(
                (x - 0.48, y - 0.46), 0.96, 0.92, facecolor="none", edgecolor=INK, linewidth=1.2,
                zorder=3,
            )
        )  # fmt: skip


def _bare(axes: Axes, columns: int, rows: int) -> None:
    """Leave of the axes only the labels, at the top and the left."""
    axes.set_xlim(-0.52, columns - 0.48)
    axes.set_ylim(rows - 0.48, -0.52)
    axes.grid(visible=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
