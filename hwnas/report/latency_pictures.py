"""Pictures of latency: the derived network's stack, predicted against measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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
from hwnas.report.numbers import fixed, number, percent
from hwnas.report.operator_labels import channels, kind_of, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas.latency.model import LatencyModel
    from hwnas.report.numbers import TimeUnit
    from hwnas.report.run_files import RunFiles
    from hwnas_profilers.records import NetworkMeasurement


_OPTION_LETTERS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one operator adds to a network's predicted latency."""

    name: str
    latency_us: float


def network_shares(run: RunFiles, latency: LatencyModel) -> list[Share]:
    """Split the derived network's predicted latency over its blocks, in order.

    A skipped block runs no operator and has no share.
    """
    genotype = run.derivation.genotype
    chosen = (0, *latency.space.choices(genotype), 0)
    before = (0, *chosen[:-1])
    options = ("", *genotype.options, "")
    names = ("", *latency.space.block_names, "")
    shares = []
    for place, (link, costs, i, j) in enumerate(
        zip(latency.space.transitions, latency.links_us, before, chosen, strict=True)
    ):
        entry, option = link[i][j], options[place]
        if not entry:
            continue
        name = names[place] or ", ".join(dict.fromkeys(map(kind_of, entry)))
        if isinstance(option, str) and option:  # a width is told anyway
            name += f" {shortened(option, _OPTION_LETTERS)}"
        # What stands for several places of the network has channels of several numbers.
        told = channels(entry[0]) if len(entry) == 1 else f"{len(entry)} operators"
        shares.append(Share(name=f"{name}, {told}", latency_us=float(costs[i, j])))
    return shares


def stack_picture(run: RunFiles, latency: LatencyModel, unit: TimeUnit) -> Picture:
    """Draw how the operators of the derived network add up to its latency, beside the budget."""
    shares = network_shares(run, latency)
    steps = [unit.value_us(share.latency_us) for share in shares]
    names = [share.name for share in shares]
    if latency.is_calibrated:
        steps.append(unit.value_us(latency.intercept_us))
        names.append("intercept")
    if latency.cost_us.curvature > 0:
        predicted_ms = latency.predict_ms(run.derivation.genotype)
        steps.append(unit.value_ms(predicted_ms) - sum(steps))
        names.append("curvature")
    ends = np.cumsum(steps)
    starts = ends - np.array(steps)
    predicted = float(ends[-1])
    budget = unit.value_ms(run.derivation.budget_ms)
    results = [("predicted", predicted, INK), *_measured(run, unit)]

    figure = new_figure((len(steps) + len(results) + 1) * 0.19 + 0.6)
    axes = figure.add_subplot()
    right = max(float(ends.max()), budget, *(value for _, value, _ in results))
    for y, (start, step) in enumerate(zip(starts, steps, strict=True)):
        axes.barh(
            y, step, left=start, height=0.66, color=BLUE if y < len(shares) else ORANGE,
            alpha=0.85, linewidth=0,
        )  # fmt: skip
        axes.text(
            max(start, start + step) + right * 0.012, y, fixed(step, _decimals(step)),
            va="center", fontsize=SMALL_POINTS, color=MUTED, zorder=4,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8},  # over the budget's line
        )  # fmt: skip
    first_result = len(steps) + 0.4
    for index, (_, value, color) in enumerate(results):
        y_result = first_result + index
        axes.barh(y_result, value, height=0.66, color=color, alpha=0.85, linewidth=0)
        axes.text(
            right * 0.012, y_result, f"{fixed(value, _decimals(value))} {unit.name}",
            va="center", fontsize=SMALL_POINTS, color=PAPER, fontweight="bold",
        )  # fmt: skip
    axes.axhline(first_result - 0.7, color=GRAY, linewidth=0.6)
    axes.axvline(budget, color=ORANGE, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.annotate(
        f"budget {fixed(budget, _decimals(budget))}", (budget, 0),
        xycoords=("data", "axes fraction"), xytext=(3, 4), textcoords="offset points",
        fontsize=SMALL_POINTS, color=ORANGE,
    )  # fmt: skip
    axes.set_yticks(
        [*range(len(steps)), *(first_result + i for i in range(len(results)))],
        [*names, *(name for name, _, _ in results)],
    )
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(first_result + len(results) - 0.3, -0.7)
    axes.set_xlim(0, right * 1.16)
    axes.set_xlabel(f"latency, {unit.name}")

    def bar(place: int) -> str:
        return f"{fixed(steps[place], _decimals(steps[place]))} {unit.name}"

    largest = max(shares, key=lambda share: share.latency_us)
    total = sum(share.latency_us for share in shares)
    caption = (
        f"Where the predicted {fixed(predicted, _decimals(predicted))} {unit.name} of the derived "
        f"network come from: {largest.name.split(',')[0]} costs most, "
        f"{percent(largest.latency_us / total, 0)} of what its operators cost."
    )
    if latency.is_calibrated:
        caption += (
            " Each stands for what it takes within the network: its latency alone, less the call "
            "and the layout that it pays for only there, as whole networks corrected it; the "
            f"intercept ({bar(len(shares))}) is what no operator accounts for."
        )
    if latency.cost_us.curvature > 0:
        caption += (
            f" The curvature ({bar(-1)}) is what they take longer for being together in a network "
            "of this size: its weights and tensors leave the cache."
        )
    alt = (
        "Waterfall chart: "
        + ", ".join(
            f"{name.split(',')[0]} {fixed(step, _decimals(step))}"
            for name, step in zip(names, steps, strict=True)
        )
        + f" {unit.name}; "
        + ", ".join(f"{name} {fixed(value, _decimals(value))}" for name, value, _ in results)
        + f"; budget {fixed(budget, _decimals(budget))} {unit.name}."
    )
    return picture_from_figure(
        figure,
        name="stack",
        title="Latency of the derived network, operator by operator",
        caption=caption,
        alt=alt,
    )


def predictions_picture(run: RunFiles, latency: LatencyModel, unit: TimeUnit) -> Picture | None:
    """Draw predicted against measured latency of whole networks; None without a calibration."""
    calibration = run.table.calibration
    if calibration is None:
        return None
    figure = new_figure(4.0)
    axes = figure.add_subplot()
    fit = _points(calibration.networks, latency, unit)
    holdout = _points(calibration.holdout_networks, latency, unit)
    predicted = unit.value_ms(run.derivation.predicted_ms)
    own = _measured(run, unit)
    values = [*fit.ravel(), *holdout.ravel(), predicted, *(value for _, value, _ in own)]
    low, high = 0.94 * min(values), 1.06 * max(values)
    line = np.array([low, high])
    axes.fill_between(line, 0.95 * line, 1.05 * line, color=GRAY, alpha=0.2, linewidth=0)
    axes.plot(line, line, color=GRAY, linewidth=0.9)
    axes.plot(
        fit[:, 0], fit[:, 1], "o", color=GRAY, markerfacecolor=PAPER, markersize=4.5,
        markeredgewidth=1.0, label=f"fitted ({len(fit)})",
    )  # fmt: skip
    axes.plot(
        holdout[:, 0], holdout[:, 1], "o", color=BLUE, markersize=4.5, alpha=0.85,
        markeredgewidth=0, label=f"held out ({len(holdout)})",
    )  # fmt: skip
    if len(own) > 1:
        axes.plot(
            [predicted] * len(own), [value for _, value, _ in own], color=ORANGE, linewidth=0.8
        )
    for marker, (name, value, _) in zip("^D", own, strict=False):
        axes.plot(
            [predicted], [value], marker, color=ORANGE, markersize=6, markeredgewidth=0,
            label=f"derived network, {name}",
        )  # fmt: skip
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.set_xlabel(f"predicted latency, {unit.name}")
    axes.set_ylabel(f"measured latency, {unit.name}")
    # The points lie along the diagonal, so the upper left is free.
    axes.legend(loc="upper left", borderaxespad=0.2, labelspacing=0.35)
    axes.text(
        high - 0.015 * (high - low), low + 0.02 * (high - low), "band: within 5 %",
        ha="right", fontsize=SMALL_POINTS, color=MUTED,
    )  # fmt: skip
    errors = calibration.holdout
    caption = (
        f"Whole random networks, measured on the target: the table predicts {errors.n} that it "
        f"never saw with a mean error of {number(errors.mape_percent, 2)} %, and "
        f"{fixed(errors.within_5_percent, 0)} % of them within 5 %."
    )
    if own:
        gaps = ", ".join(
            f"{percent(value / predicted - 1, sign=True)} {name}" for name, value, _ in own
        )
        caption += f" The derived network itself, against its prediction: {gaps}."
    alt = (
        f"Scatter plot of measured against predicted latency with the identity line and a 5 % "
        f"band: {len(fit)} fitted and {len(holdout)} held-out networks"
        f"{', and the derived network' if own else ''}. Mean error of the held-out ones: "
        f"{number(errors.mape_percent, 2)} %."
    )
    return picture_from_figure(
        figure,
        name="predictions",
        title="Predicted against measured",
        caption=caption,
        alt=alt,
    )


def _measured(run: RunFiles, unit: TimeUnit) -> list[tuple[str, float, str]]:
    """Return the derived network's measurements that there are: name, value, color."""
    found = []
    if run.derivation.measured_ms is not None:
        found.append(("when derived", unit.value_ms(run.derivation.measured_ms), GREEN))
    if run.verification.latency is not None:
        found.append(("when verified", unit.value_us(run.verification.latency.median_us), GREEN))
    return found


def _points(
    networks: Sequence[NetworkMeasurement], latency: LatencyModel, unit: TimeUnit
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return each network's predicted and measured latency, (N, 2)."""
    points = [
        (
            unit.value_ms(latency.predict_ms(latency.space.genotype_of_choices(network.choices))),
            unit.value_us(network.statistics.median_us),
        )
        for network in networks
    ]
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def _decimals(value: float) -> int:
    return 1 if abs(value) >= 10 else 2
