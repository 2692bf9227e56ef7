"""The tutor map: which teacher layer each layer of the student learns from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.report.drawing import (
    GRAY,
    INK,
    MUTED,
    SMALL_POINTS,
    Picture,
    new_figure,
    picture_from_figure,
)
from hwnas.report.heat_map import bare, cell
from hwnas.report.numbers import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from hwnas.report.run_files import RunFiles

_ROW_INCHES = 0.17
# More columns than these are too narrow for a figure in them, or a name that leans over them.
_ROOMY = 14
# Fewer rows are lower than the label beside them is long.
_ROWS_OF_LABEL = 7


def tutors_sentence(run: RunFiles) -> str:
    """Say how tutors were selected, where a map of them would show nothing more; else empty."""
    selection, teachers = run.derivation.selection, run.derivation.teacher_layers
    if not run.derivation.student_layers:
        return "The network has no layer that could learn from a tutor: all of them were skipped."
    said = {
        "none": "none: there are no tutors. The network learns from the teacher's predictions, and "
        "from no layer of it.",
        "uniform": f"uniform: every layer. All {len(teachers)} layers of the teacher teach each of "
        f"the network's {len(run.derivation.student_layers)}, each as much; nothing was searched.",
        "last": f"last: each of the network's {len(run.derivation.student_layers)} layers learns "
        f"from {teachers[-1]}, the last of the teacher's {len(teachers)}; nothing was searched.",
    }
    return said.get(selection, "")


def tutors_picture(run: RunFiles) -> Picture | None:
    """Draw the weight of each teacher layer for each student layer; None where a sentence does."""
    if tutors_sentence(run):
        return None
    record, derivation = run.search, run.derivation
    tutors = dict(zip(derivation.student_layers, derivation.tutors, strict=True))
    is_searched = derivation.selection == "searched"
    rows = [
        (name, row)
        for name, row in zip(record.student_layers, record.tutor_probabilities, strict=True)
        if is_searched or name in tutors  # what is not searched says nothing of skipped layers
    ]
    figure = new_figure(len(rows) * _ROW_INCHES + _head_inches(derivation.teacher_layers))
    axes = figure.add_subplot()
    _map(axes, rows, derivation.teacher_layers, tutors, with_figures=is_searched)
    text, alt = _texts(run, rows, tutors)
    return picture_from_figure(figure, name="tutors", title="Tutor map", caption=text, alt=alt)


def _head_inches(teachers: Sequence[str]) -> float:
    longest = max(map(len, teachers))
    return 0.45 + 0.075 * longest * (0.6 if len(teachers) <= _ROOMY else 1.0)


def _map(
    axes: Axes,
    rows: Sequence[tuple[str, Sequence[float]]],
    teachers: Sequence[str],
    tutors: dict[str, int],
    *,
    with_figures: bool,
) -> None:
    largest = max(max(row) for _, row in rows)
    is_roomy = len(teachers) <= _ROOMY
    for y, (name, row) in enumerate(rows):
        tutor = tutors.get(name)
        for x, probability in enumerate(row):
            cell(axes, x, y, probability / largest, is_framed=x == tutor)
        if tutor is not None and with_figures:
            axes.text(
                tutor + 0.5 if is_roomy else len(teachers) + 0.4, y, percent(row[tutor], 0),
                ha="center" if is_roomy else "left", va="center", fontsize=SMALL_POINTS,
                fontweight="bold" if is_roomy else "normal",
            )  # fmt: skip
    places = [x + 0.5 for x in range(len(teachers))]
    if is_roomy:
        axes.set_xticks(places, teachers, rotation=35, ha="left", rotation_mode="anchor")
    else:
        axes.set_xticks(places, teachers, rotation=90)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    room = 0.0 if is_roomy or not with_figures else 0.1 * len(teachers)
    bare(axes, len(teachers) + room, len(rows))
    for tick, (name, _) in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(INK if name in tutors else GRAY)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("layer of the teacher", color=MUTED, fontsize=SMALL_POINTS)
    if len(rows) >= _ROWS_OF_LABEL:
        axes.set_ylabel("layer of the student", color=MUTED, fontsize=SMALL_POINTS)


def _texts(
    run: RunFiles, rows: Sequence[tuple[str, Sequence[float]]], tutors: dict[str, int]
) -> tuple[str, str]:
    """Return caption and alternative text."""
    derivation = run.derivation
    teachers = derivation.teacher_layers
    used = {teachers[tutor] for tutor in tutors.values()}
    alt = "Tutors: " + "; ".join(f"{name}: {teachers[tutor]}" for name, tutor in tutors.items())
    if derivation.selection != "searched":
        how = {
            "random": "random: each student layer has one tutor, drawn once by the seed.",
            "depth": "depth: each student layer has the tutor at the same relative depth.",
        }[derivation.selection]
        return (
            f"{how} Nothing was searched. {len(used)} of {len(teachers)} teacher layers teach.",
            f"Map of tutors, not searched. {alt}",
        )
    probabilities = dict(rows)
    surest = max(tutors, key=lambda name: probabilities[name][tutors[name]])
    share = probabilities[surest][tutors[surest]]
    caption = (
        f"Which teacher layer each student layer learns from; framed, the chosen tutor with its "
        f"probability. {len(used)} of {len(teachers)} teacher layers teach; the surest choice is "
        f"{teachers[tutors[surest]]} for {surest} ({percent(share, 0)}; an even split would be "
        f"{percent(1 / len(teachers), 0)})."
    )
    skipped = len(rows) - len(tutors)
    if skipped:
        caption += (
            f" Gray, without a frame: {skipped} layers of the supernet that the derived network "
            "does not have."
        )
    return caption, f"Heat map of tutor probabilities. {alt}"
