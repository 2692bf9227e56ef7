"""Pictures of accuracy: under attack before and after export, and while training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.report.drawing import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    SMALL_POINTS,
    Picture,
    epochs_axis,
    new_figure,
    picture_from_figure,
)
from hwnas.report.numbers import fixed, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hwnas.report.run_files import History, RunFiles, Trained
    from hwnas.robustness.evaluate import Accuracy


def attacks_picture(run: RunFiles) -> Picture:
    """Draw accuracy with intervals, clean and under each attack, of twin and engine."""
    found = run.verification
    threat, box = found.threat, found.black_box
    attack = f"PGD-{threat.steps}"
    rows: list[tuple[str, Accuracy | None, Accuracy]] = [
        ("clean", found.clean_accuracy.twin, found.clean_accuracy.engine),
        (f"{attack}, replayed", found.robust_accuracy.twin, found.robust_accuracy.engine),
        ("Square, on the engine", None, box.square),
        ("worst of both", None, box.worst_case),
    ]
    if box.replay.n != found.robust_accuracy.engine.n:
        rows.insert(2, (f"{attack}, images of Square", None, box.replay))
    figure = new_figure(len(rows) * 0.5 + 0.75)
    axes = figure.add_subplot()
    for y, (_, twin, engine) in enumerate(rows):
        if twin is not None:
            _accuracy(axes, twin, y - 0.17, color=ORANGE, marker="o", face=PAPER)
        _accuracy(axes, engine, y + (0.17 if twin is not None else 0), color=BLUE, marker="s")
    axes.plot(
        [], [], "o", color=ORANGE, markerfacecolor=PAPER, markersize=5, label="twin (before export)"
    )
    axes.plot([], [], "s", color=BLUE, markersize=5, label="engine (after export)")
    chance = 100 / len(run.card.class_names)
    axes.axvline(chance, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.annotate(
        "guessing", (chance, 0), xycoords=("data", "axes fraction"), xytext=(3, 3),
        textcoords="offset points", fontsize=SMALL_POINTS, color=MUTED,
    )  # fmt: skip
    axes.set_yticks(range(len(rows)), [f"{name}\nn = {engine.n}" for name, _, engine in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 119)  # room for the labels behind 100 %
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy on test images, % (95 % Wilson interval)")
    figure.legend(loc="outside upper right", ncols=2)
    clean, robust = found.clean_accuracy.engine, found.robust_accuracy
    caption = (
        f"Images changed by at most {number(threat.eps_pixels)} per pixel (of 1): the engine falls "
        f"from {percent(clean.value)} to {percent(robust.engine.value)} on examples crafted on its "
        f"twin (twin: {percent(robust.twin.value)}), and to {percent(box.worst_case.value)} where "
        f"the black box may try too."
    )
    alt = "Accuracy with 95 % intervals. " + "; ".join(
        f"{name} (n = {engine.n}): "
        + (f"twin {percent(twin.value)}, " if twin is not None else "")
        + f"engine {percent(engine.value)}"
        for name, twin, engine in rows
    )
    return picture_from_figure(
        figure,
        name="attacks",
        title="Accuracy under attack, before and after export",
        caption=caption,
        alt=alt,
    )


def training_picture(run: RunFiles) -> Picture:
    """Draw loss and validation accuracy of teacher and network over their epochs."""
    columns = [("network", run.network_history, run.network)]
    if run.teacher_history:
        columns.insert(0, ("teacher", run.teacher_history, run.teacher))
    figure = new_figure(3.2)
    grid = figure.subplots(2, len(columns), squeeze=False, sharex="col", sharey="row")
    for column, (name, history, trained) in enumerate(columns):
        _losses(grid[0, column], history, title=f"{name}: training loss")
        _accuracies(grid[1, column], history, trained, title=f"{name}: validation accuracy, %")
    parts = "; ".join(
        f"the {name} ends at {percent(trained.clean_accuracy)} clean and "
        f"{percent(trained.robust_accuracy)} under PGD-{trained.steps}"
        for name, _, trained in columns
    )
    size = run.network.n
    caption = (
        f"On {size} validation images {parts} (broken line). Their losses are not of one kind, and "
        "not to be compared."
    )
    if not run.teacher_history:
        caption = (
            f"On {size} validation images {parts} (broken line). The teacher was given, not "
            "trained here."
        )
    began = run.network.initial_accuracy
    if began is not None:
        caption += f" As cut out of the supernet, the network began with {percent(began)} clean."
    alt = f"Training loss and validation accuracy per epoch. On {size} validation images {parts}."
    return picture_from_figure(
        figure,
        name="training",
        title="Training",
        caption=caption,
        alt=alt,
    )


def _accuracy(
    axes: Axes, accuracy: Accuracy, y: float, *, color: str, marker: str, face: str | None = None
) -> None:
    low, value, high = (100 * part for part in (accuracy.low, accuracy.value, accuracy.high))
    axes.plot([low, high], [y, y], color=color, linewidth=1.6, solid_capstyle="butt")
    axes.plot(
        [value], [y], marker, color=color, markerfacecolor=face or color, markersize=5,
        markeredgewidth=1.2,
    )  # fmt: skip
    axes.annotate(
        f"{fixed(value, 1)} %", (high, y), xytext=(4, 0), textcoords="offset points", va="center",
        fontsize=SMALL_POINTS, color=INK,
    )  # fmt: skip


def _losses(axes: Axes, history: History, *, title: str) -> None:
    values = [figures["loss"] for figures in history]
    axes.plot(range(1, len(values) + 1), values, color=BLUE)
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    epochs_axis(axes, label=False)


def _accuracies(axes: Axes, history: History, trained: Trained, *, title: str) -> None:
    values = [100 * figures["validation_accuracy"] for figures in history]
    axes.plot(range(1, len(values) + 1), values, color=BLUE)
    robust = 100 * trained.robust_accuracy
    axes.axhline(robust, color=ORANGE, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.annotate(
        f"PGD-{trained.steps}, at the end: {fixed(robust, 1)} %", (1, robust),
        xycoords=("axes fraction", "data"), xytext=(0, -3), textcoords="offset points",
        ha="right", va="top", fontsize=SMALL_POINTS, color=ORANGE,
    )  # fmt: skip
    axes.set_ylim(0, 102)
    axes.set_title(title)
    epochs_axis(axes)
