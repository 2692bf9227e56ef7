"""What an ensemble is worth: beside one wider network, and beside children of one genotype."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.report.drawing import (
    BLUE,
    GRAY,
    INK,
    MUTED,
    SMALL_POINTS,
    Picture,
    new_figure,
    picture_from_figure,
)
from hwnas.report.numbers import fixed
from hwnas.study.figures import CLEAN, MEASURED_MS, difference_text, interval_text, label
from hwnas.study.statistics import PairedDifference, paired_difference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hwnas.study.ensemble_arms import Lineup
    from hwnas.study.records import ArmSeed

_ROW_INCHES = 0.42
_TOP_INCHES = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One arm beside another, seed by seed.

    Attributes:
        arm: The arm.
        against: What it is compared with.
        latency_ratio: Measured latency of the arm over the other's: geometric mean over the seeds.
        farthest_ratio: That of the seed in which they are farthest apart.
        comparable: Whether they are within the tolerance in every seed.
        differences: By figure, the arm's less the other's.
    """

    arm: str
    against: str
    latency_ratio: float
    farthest_ratio: float
    comparable: bool
    differences: dict[str, PairedDifference]


def pairs(lineup: Lineup) -> list[tuple[str, str]]:
    """Return which arms are compared.

    Every ensemble is compared with the wider network of its source; and one of random networks with
    that of children of one genotype, combined alike.
    """
    found = []
    for source in lineup.sources:
        wider = lineup.wider(source).name
        found += [(arm.name, wider) for arm in lineup.ensembles(source)]
    children = {arm.combination: arm.name for arm in lineup.ensembles("genotype")}
    found += [
        (arm.name, children[arm.combination])
        for arm in lineup.ensembles("random")
        if arm.combination in children
    ]
    return found


def comparisons(
    results: Sequence[ArmSeed],
    asked: Iterable[tuple[str, str]],
    figures: Sequence[str],
    *,
    tolerance: float,
) -> tuple[Comparison, ...]:
    """Compare arms in the seeds that both have.

    Args:
        results: The figures of every arm and seed, measured latency among them.
        asked: Which arms.
        figures: What is compared: shares of images.
        tolerance: Share by which latencies may differ.

    Returns:
        Those that have a seed in common, and were measured.
    """
    by_arm: dict[str, dict[int, Mapping[str, float]]] = {}
    for result in results:
        by_arm.setdefault(result.arm, {})[result.seed] = result.figures
    found = []
    for arm, against in asked:
        own, other = by_arm.get(arm, {}), by_arm.get(against, {})
        ratios = [
            own[seed][MEASURED_MS] / other[seed][MEASURED_MS]
            for seed in sorted(own.keys() & other.keys())
            if MEASURED_MS in own[seed] and MEASURED_MS in other[seed]
        ]
        if not ratios:
            continue
        logs = [math.log(ratio) for ratio in ratios]
        farthest = max(logs, key=abs)
        differences = {
            figure: paired_difference(_values(own, figure), _values(other, figure))
            for figure in figures
        }
        found.append(
            Comparison(
                arm=arm,
                against=against,
                latency_ratio=math.exp(math.fsum(logs) / len(logs)),
                farthest_ratio=math.exp(farthest),
                comparable=abs(farthest) <= math.log1p(tolerance),
                differences={name: each for name, each in differences.items() if each is not None},
            )
        )
    return tuple(found)


def comparisons_picture(found: Sequence[Comparison], main: str, tolerance: float) -> Picture | None:
    """Draw by how much arms are above what they are compared with; None where none is compared.

    Draw within `hwnas.report.drawing.drawing_style`.

    Args:
        found: The comparisons.
        main: The figure under attack; clean accuracy is drawn beside it.
        tolerance: Share by which latencies may differ.
    """
    shown = [each for each in found if main in each.differences]
    if not shown:
        return None
    figure = new_figure(_TOP_INCHES + _ROW_INCHES * len(shown))
    axes = figure.add_subplot()
    axes.axvline(0, color=MUTED, linewidth=0.8)
    drawn = ((main, BLUE, "s", 0.14), (CLEAN, GRAY, "o", -0.14))
    for place, each in enumerate(shown):
        for name, color, marker, lift in drawn:
            if name not in each.differences:
                continue
            difference = each.differences[name]
            y = place - lift
            if difference.low is not None and difference.high is not None:
                ends = [100 * difference.low, 100 * difference.high]
                axes.plot(ends, [y, y], color=color, linewidth=1.4)
            face = color if each.comparable else "none"
            axes.plot(
                [100 * difference.mean], [y], marker, color=color, markerfacecolor=face,
                markersize=4.5, label=label(name).removesuffix(", %") if place == 0 else "_",
            )  # fmt: skip
            axes.annotate(
                difference_text(name, difference.mean), (100 * difference.mean, y),
                xytext=(0, 4 if lift > 0 else -10), textcoords="offset points", ha="center",
                fontsize=SMALL_POINTS, color=INK if name == main else MUTED,
            )  # fmt: skip
    names = [
        f"{each.arm}\nto {each.against}, at {fixed(each.latency_ratio, 2)} of its latency"
        for each in shown
    ]
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.set_xlabel("points above")
    figure.legend(loc="outside upper right", ncols=2)
    return picture_from_figure(
        figure,
        name="equal-latency",
        title="At equal latency",
        caption="Differences paired by seed, with 95 % paired t intervals, not corrected for the "
        "number of comparisons. Hollow: latencies differ by more than "
        f"{fixed(100 * tolerance, 0)} % in some seed, so that the comparison is not one at equal "
        "latency.",
        alt=f"Points above what each is compared with. {_said(shown, main)}.",
    )


def markdown_from_comparisons(
    found: Sequence[Comparison], figures: Sequence[str], tolerance: float
) -> str:
    """Write comparisons in Markdown.

    Args:
        found: The comparisons.
        figures: What is compared, in the order of the columns.
        tolerance: Share by which latencies may differ.
    """
    heads = ["arm", "to", "seeds", "latency ratio", "farthest", "comparable"]
    heads += [label(figure).replace(", %", ", points") for figure in figures]
    lines = [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2)]
    for each in found:
        cells = [each.arm, each.against, str(_seeds(each)), fixed(each.latency_ratio, 3)]
        cells += [fixed(each.farthest_ratio, 3), "yes" if each.comparable else "no"]
        cells += [_text(figure, each.differences.get(figure)) for figure in figures]
        lines.append(cells)
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    note = (
        "Differences are paired by seed, with 95 % paired t intervals that are not corrected for "
        f"their number. Comparable: within {fixed(100 * tolerance, 0)} % of latency in every seed."
    )
    return "\n".join([*rows, "", note]) + "\n"


def _values(seeds: Mapping[int, Mapping[str, float]], figure: str) -> dict[int, float]:
    return {seed: found[figure] for seed, found in seeds.items() if figure in found}


def _seeds(comparison: Comparison) -> int:
    return max((each.n for each in comparison.differences.values()), default=0)


def _text(figure: str, difference: PairedDifference | None) -> str:
    if difference is None:
        return ""
    interval = interval_text(figure, difference.low, difference.high)
    return difference_text(figure, difference.mean) + (f" ({interval})" if interval else "")


def _said(found: Sequence[Comparison], main: str) -> str:
    return "; ".join(
        f"{each.arm} to {each.against}: {_text(main, each.differences[main])} points in "
        f"{label(main).removesuffix(', %')}, at {fixed(each.latency_ratio, 2)} of its latency"
        for each in found
    )
