"""How a search's costs grow with its space: blocks times options, in one interleaved run.

    python benchmarks/search/scaling.py [--blocks 6,12,24,36,48,60] [--options 2,4,8,16]
        [--batch 32] [--samples 9] [--threads 1] [--picture FILE.svg]

Channel spaces of equal blocks: 8x8 features, 32 channels at the widest, and of each block the first
so many widths of 32, 31, ... So the widest network depends on the number of blocks alone, and what
options cost beyond it is seen by itself. Timed are a step of the weights, a step of the choices,
the latency's term alone, and a derivation under a budget midway between the fastest and the slowest
network, from random scores and made-up latencies, by labels (what `derive` does).

Each cost is fitted, by least squares, to lines in the number of blocks, of blocks times options
(the logits to be learned) and of the table's entries; the R^2 of each says what it is linear in.
The exponent is the slope of a line through logarithms: about 1 where a cost is proportional.
"""

from __future__ import annotations

import argparse
import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from _shared import (
    IMAGES,
    ReadySteps,
    middle_budget,
    new_teacher,
    random_scores,
    say,
    timed_ms,
    write_result,
)

from hwnas.core.artifacts import write_atomically
from hwnas.core.threads import torch_threads
from hwnas.report.drawing import (
    BLUE,
    GRAY,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    WIDTH_INCHES,
    drawing_style,
    new_figure,
)
from hwnas.search.derive import best_genotype
from hwnas.search.rnas_cl import SearchConfig
from hwnas.space.channel.spec import ChannelSpec, StageSpec
from hwnas.space.registry import space_from_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from _shared import Floats

WIDEST = 32
IS_A_LINE = 0.95
"""R^2 from which a cost is drawn with its line in the number of blocks."""

COSTS = ("weight step", "choice step", "latency term", "derivation")
COLORS = (BLUE, ORANGE, GREEN, MUTED, INK)
MARKERS = ("o", "s", "^", "D", "v")

Point = tuple[int, int]  # blocks, options


def main() -> None:
    """Measure, print, draw, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", default="6,12,24,36,48,60")
    parser.add_argument("--options", default="2,4,8,16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few spaces, few samples")
    parser.add_argument("--out", type=Path, help="another file for the figures")
    parser.add_argument("--picture", type=Path, default=IMAGES / "search-scaling.svg")
    given = parser.parse_args()
    if given.quick:
        given.blocks, given.options, given.batch, given.samples = "4,8,12", "2,4", 4, 6
    blocks, options = (
        [int(count) for count in each.split(",")] for each in (given.blocks, given.options)
    )
    points: list[Point] = list(itertools.product(blocks, options))
    with torch_threads(given.threads):
        samples_ms = measure(points, given.batch, given.samples)
    medians = {
        cost: np.array([np.median(samples_ms[cost, point]) for point in points]) for cost in COSTS
    }
    fits = {cost: fits_of(points, times_ms) for cost, times_ms in medians.items()}
    report(fits, medians, points)
    document = {
        "facts": {
            "batch": given.batch,
            "threads": given.threads,
            "widest": WIDEST,
            "quick": given.quick,
        },
        "points": [{"blocks": count, "options": each} for count, each in points],
        "median_ms": {cost: each.tolist() for cost, each in medians.items()},
        "fits": fits,
        "samples_ms": {
            cost: [samples_ms[cost, point].tolist() for point in points] for cost in COSTS
        },
    }
    write_result("scaling", document, given.out)
    draw(medians, fits, points, given.picture)
    say(f"written: {given.picture}")


def measure(points: Sequence[Point], batch: int, samples: int) -> dict[tuple[str, Point], Floats]:
    """Time all costs of all spaces together, so that drift meets all of them alike."""
    calls: dict[tuple[str, Point], Callable[[], object]] = {}
    for point in points:
        spec = spec_of(*point)
        space = space_from_spec(spec)
        config = SearchConfig(batch=batch, attention_size=8)
        teacher = new_teacher(space, 8, (1,), config.attention_size, "fp32")
        steps = ReadySteps(space, teacher, config)
        calls["weight step", point] = steps.step_weights
        calls["choice step", point] = steps.step_choices
        calls["latency term", point] = steps.latency_term
        calls["derivation", point] = derivation(steps)
    # One run for each kind: short ones would else be timed in the wake of long ones.
    timed: dict[tuple[str, Point], Floats] = {}
    for cost in COSTS:
        named = {f"{point}": calls[cost, point] for point in points}
        found = timed_ms(named, samples)
        timed |= {(cost, point): found[f"{point}"] for point in points}
    return timed


def spec_of(blocks: int, options: int) -> ChannelSpec:
    """Describe a space of equal blocks, of so many widths each."""
    return ChannelSpec(
        name=f"{blocks}x{options}",
        image_shape=(3, 16, 16),
        classes=10,
        stem=WIDEST,
        stem_stride=2,
        stages=(StageSpec(blocks=blocks, widths=tuple(range(WIDEST, WIDEST - options, -1))),),
    )


def derivation(steps: ReadySteps) -> Callable[[], object]:
    """Return the derivation of the best network within the middle of the latencies."""
    costs = steps.costs
    scores, budgets = random_scores(costs.space, seed=0), middle_budget(costs)
    return lambda: best_genotype(costs, scores, budgets)


def fits_of(points: Sequence[Point], times_ms: Floats) -> dict[str, dict[str, float]]:
    """Fit a cost to lines and to powers of what it may grow with."""
    blocks, options = (np.array(each, dtype=np.float64) for each in zip(*points, strict=True))
    sizes = {
        "blocks": blocks,
        "blocks x options": blocks * options,
        "table entries (blocks x options^2)": blocks * options**2,
    }
    found = {}
    for name, size in sizes.items():
        slope, intercept = np.polyfit(size, times_ms, 1)
        residual = times_ms - (slope * size + intercept)
        exponent = np.polyfit(np.log(size), np.log(times_ms), 1)[0]
        found[name] = {
            "ms_each": float(slope),
            "ms_fixed": float(intercept),
            "r2": float(1 - residual @ residual / np.sum((times_ms - times_ms.mean()) ** 2)),
            "exponent": float(exponent),
        }
    # Both at once, in logarithms: how it grows with one while the other is held.
    columns = np.column_stack([np.ones(len(blocks)), np.log(blocks), np.log(options)])
    _, by_blocks, by_options = np.linalg.lstsq(columns, np.log(times_ms))[0]
    found["both, as powers"] = {"blocks": float(by_blocks), "options": float(by_options)}
    return found


def report(
    fits: Mapping[str, Mapping[str, Mapping[str, float]]],
    medians: Mapping[str, Floats],
    points: Sequence[Point],
) -> None:
    """Print, of each cost, its ends and how it grows."""
    ends = [min(points), max(points)]
    for cost, of_cost in fits.items():
        low, high = (medians[cost][points.index(end)] for end in ends)
        powers = of_cost["both, as powers"]
        lines = "  ".join(
            f"{name}: R^2 {fit['r2']:.3f}" for name, fit in of_cost.items() if "r2" in fit
        )
        say(
            f"{cost:<13} {low:9.3f} ms at {ends[0][0]}x{ends[0][1]}, {high:9.3f} ms at "
            f"{ends[1][0]}x{ends[1][1]}  ~ blocks^{powers['blocks']:.2f} "
            f"options^{powers['options']:.2f}  lines in {lines}"
        )


def draw(
    medians: Mapping[str, Floats],
    fits: Mapping[str, Mapping[str, Mapping[str, float]]],
    points: Sequence[Point],
    path: Path,
) -> None:
    """Draw each cost over the number of blocks, by the number of options, and the fitted line."""
    by_options = sorted({options for _, options in points})
    with drawing_style():
        figure = new_figure(WIDTH_INCHES * 0.8)
        figure.set_facecolor(PAPER)
        grid = figure.subplots(2, 2, sharex=True)
        for axes, cost in zip(grid.flat, COSTS, strict=True):
            line = fits[cost]["blocks"]
            powers = fits[cost]["both, as powers"]
            if line["r2"] >= IS_A_LINE:
                ends = np.array([0, max(points)[0]])
                fitted_ms = line["ms_fixed"] + line["ms_each"] * ends
                axes.plot(ends, fitted_ms, color=GRAY, linestyle="--", linewidth=0.8)
                grows = f"line in blocks, R\u00b2 = {line['r2']:.3f}"
            else:
                grows = f"~ blocks^{powers['blocks']:.1f} options^{powers['options']:.1f}"
            axes.set_title(f"{cost}, ms\n{grows}")
            for index, options in enumerate(by_options):
                places = [
                    (blocks, time_ms)
                    for (blocks, own), time_ms in zip(points, medians[cost], strict=True)
                    if own == options
                ]
                axes.plot(
                    *zip(*places, strict=True),
                    color=COLORS[index % len(COLORS)],
                    marker=MARKERS[index % len(MARKERS)],
                    markersize=3,
                    label=f"{options} options",
                )
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
        for axes in grid[-1]:
            axes.set_xlabel("blocks")
        grid[0, 0].legend(loc="upper left")
        with mpl.rc_context({"svg.hashsalt": "search-scaling"}):
            drawing = io.BytesIO()
            no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(drawing, format="svg", metadata=no_metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, drawing.getvalue())


if __name__ == "__main__":
    main()
