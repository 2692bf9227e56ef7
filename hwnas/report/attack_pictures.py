"""What attacks left of the accuracy: a row for each at one eps, a curve over several."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

from hwnas.report.drawing import (
    BLUE,
    GRAY,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    SMALL_POINTS,
    Picture,
    new_figure,
    picture_from_figure,
)
from hwnas.report.numbers import fixed, percent
from hwnas.robustness.attack_records import CLEAN, WORST_CASE
from hwnas.robustness.threat import parse_eps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hwnas.robustness.attack_records import AttackLine, AttackRecord

_COLORS = {"model": BLUE, "engine": BLUE, "twin": ORANGE}
_MARKERS = {"model": "s", "engine": "s", "twin": "o"}
_OTHER_MARKERS = {"model": "^", "engine": "^", "twin": "v"}
"""Where there are more attacks than colors: those of the second round."""
_TWINS_STROKE = (0, (3, 1.5))
_CURVES = (BLUE, ORANGE, GREEN, GRAY, MUTED)


def attack_picture(record: AttackRecord) -> Picture:
    """Draw the accuracies of a record; the drawing style must be held."""
    return _rows_picture(record) if len(_bounds(record)) == 1 else _curves_picture(record)


def _bounds(record: AttackRecord) -> list[str]:
    """Return each eps once, in the order of the table."""
    return list(dict.fromkeys(line.eps for line in record.lines))


def _rows_picture(record: AttackRecord) -> Picture:
    lines = record.lines
    figure = new_figure(len(lines) * 0.3 + 0.9)
    axes = figure.add_subplot()
    for y, line in enumerate(lines):
        _interval(axes, line, y)
    _chance(axes.axvline, record)
    axes.annotate(
        "guessing", (100 * record.majority, 1), xycoords=("data", "axes fraction"),
        xytext=(3, 2), textcoords="offset points", fontsize=SMALL_POINTS, color=MUTED,
    )  # fmt: skip
    names = [_name(line, both=record.parity is not None) for line in lines]
    axes.set_yticks(range(len(lines)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(0, 119)  # room for the labels behind 100 %
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy, % (95 % Wilson interval)")
    first = lines[0]
    return picture_from_figure(
        figure,
        name="attacks",
        title="Accuracy under each attack",
        caption=f"{first.n} test images, {first.norm}, eps {_with_protocol(first)}. The worst case "
        "counts an image as right only where no attack breaks it.",
        alt="Accuracy with 95 % intervals. "
        + "; ".join(f"{_name(line, both=True)}: {percent(line.accuracy)}" for line in lines),
    )


def _curves_picture(record: AttackRecord) -> Picture:
    keys = list(
        dict.fromkeys((line.attack, line.on) for line in record.lines if line.attack != CLEAN)
    )
    figure = new_figure(3.4)
    axes = figure.add_subplot()
    names = dict.fromkeys(attack for attack, _ in keys if attack != WORST_CASE)
    colors = dict(zip(names, cycle(_CURVES), strict=False))
    second_round = list(names)[len(_CURVES) :]
    ends = []
    for attack, on in keys:
        # Without a perturbation every attack leaves the clean accuracy.
        clean = next(line for line in record.lines if (line.attack, line.on) == (CLEAN, on))
        lines = [line for line in record.lines if (line.attack, line.on) == (attack, on)]
        lines.sort(key=lambda line: parse_eps(line.eps, line.norm))
        sizes = [0.0, *(parse_eps(line.eps, line.norm) for line in lines)]
        worst = attack == WORST_CASE
        markers = _OTHER_MARKERS if attack in second_round else _MARKERS
        axes.plot(
            sizes, [100 * line.accuracy for line in (clean, *lines)],
            color=INK if worst else colors[attack], linewidth=1.8 if worst else 1.2,
            linestyle=_TWINS_STROKE if on == "twin" else "-", marker=markers[on], markersize=3,
            label=_name(lines[0], both=record.parity is not None),
        )  # fmt: skip
        if worst:
            axes.fill_between(
                sizes, [100 * line.low for line in (clean, *lines)],
                [100 * line.high for line in (clean, *lines)],
                color=INK, alpha=0.12, linewidth=0,
            )  # fmt: skip
        ends.append(f"{_name(lines[-1], both=True)}: {percent(lines[-1].accuracy)}")
    _chance(axes.axhline, record)
    bounds = {parse_eps(line.eps, line.norm): line.eps for line in record.lines}
    axes.set_xticks([0.0, *bounds], ["0", *bounds.values()])
    axes.set_ylim(0, 102)
    first = record.lines[0]
    axes.set_xlabel(f"eps ({first.norm})")
    axes.set_ylabel("accuracy, %")
    figure.legend(loc="outside right upper")
    return picture_from_figure(
        figure,
        name="attacks",
        title="Accuracy over eps",
        caption=f"{first.n} test images, {first.norm}, {_protocol(first)}. The band is the 95 % "
        "Wilson interval of the worst case; the broken line is what guessing reaches.",
        alt=f"Accuracy over eps; at {first.norm} eps {max(bounds)}: " + "; ".join(ends),
    )


def _interval(axes: Axes, line: AttackLine, y: int) -> None:
    low, value, high = (100 * part for part in (line.low, line.accuracy, line.high))
    color = INK if line.attack == WORST_CASE else _COLORS[line.on]
    axes.plot([low, high], [y, y], color=color, linewidth=1.6, solid_capstyle="butt")
    axes.plot(
        [value], [y], _MARKERS[line.on], color=color, markersize=5, markeredgewidth=1.2,
        markerfacecolor=PAPER if line.on == "twin" else color,
    )  # fmt: skip
    axes.annotate(
        f"{fixed(value, 1)} %", (high, y), xytext=(4, 0), textcoords="offset points", va="center",
        fontsize=SMALL_POINTS, color=INK,
    )  # fmt: skip


def _chance(draw: object, record: AttackRecord) -> None:
    assert callable(draw)
    draw(100 * record.majority, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))


def _name(line: AttackLine, *, both: bool) -> str:
    return f"{line.attack}, {line.on}" if both and line.on != "model" else line.attack


def _with_protocol(line: AttackLine) -> str:
    return f"{line.eps} {_protocol(line)}"


def _protocol(line: AttackLine) -> str:
    if line.protocol == "pixel":
        return "in pixel units"
    return "under the normalized protocol: to be compared with tables of papers alone"
