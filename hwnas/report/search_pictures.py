"""Pictures of the search: how it went, epoch by epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.report.drawing import (
    BLUE,
    ORANGE,
    SMALL_POINTS,
    Picture,
    epochs_axis,
    new_figure,
    picture_from_figure,
)
from hwnas.report.numbers import number
from hwnas.search.budget import ADDED_COSTS, Budgets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from hwnas.report.numbers import TimeUnit
    from hwnas.report.run_files import History, RunFiles

_TITLES = {
    "loss": "loss, weights (log)",
    "choice_loss": "loss, choices (log)",
    "objective": "robustness objective",
    "multiplier": "multiplier of the budget",
    "entropy": "entropy of the choices, nat",
    "temperature": "Gumbel temperature (log)",
}
_COSTS = {
    "weights_kib": "weights, KiB",
    "energy_mj": "sum of energies, mJ",
    "macs_m": "MACs, millions",
    "params_k": "parameters, thousands",
}
"""Short names of costs by their budgets: a title has no room for their units written out."""
_LOG = ("loss", "choice_loss", "temperature")
_FORBIDDEN = "expected_forbidden_operators"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One line chart of the search.

    Attributes:
        name: What the history calls the figure.
        title: What it is.
        scale: What the history's figures are multiplied by.
        bound: A budget on it, scaled; None without one.
    """

    name: str
    title: str
    scale: float = 1.0
    bound: float | None = None


def curves_picture(run: RunFiles, unit: TimeUnit) -> Picture:
    """Draw the search's losses, its expected costs with their budgets, and how it chooses."""
    history, record = run.search_history, run.search
    panels = panels_of(run, unit)
    rows = (len(panels) + 1) // 2
    figure = new_figure(0.5 + 1.5 * rows)
    grid = figure.subplots(rows, 2, sharex=True, squeeze=False)
    for index, axes in enumerate(grid.flat):
        if index >= len(panels):
            axes.set_axis_off()
            continue
        panel = panels[index]
        _curve(axes, history, panel)
        axes.set_title(panel.title)
        is_last = index + 2 >= len(panels)
        epochs_axis(axes, label=is_last)
        axes.tick_params(axis="x", labelbottom=is_last)
    over = sum(figures.get("expected_ms", 0.0) > record.budget_ms for figures in history)
    caption = (
        f"{len(history)} epochs of search: the expected latency of the supernet ends at "
        f"{unit.text_ms(record.expected_ms)}, with a budget of {unit.text_ms(record.budget_ms)} "
        f"(after {over} of the epochs it was above it)."
    )
    warmup = sum("choice_loss" not in figures for figures in history)
    if warmup:
        first = "first epoch" if warmup == 1 else f"first {warmup} epochs"
        caption += f" The choices rest during the {first}."
    alt = (
        f"{len(panels)} line charts over {len(history)} epochs: "
        f"{', '.join(panel.title for panel in panels)}. Expected latency ends at "
        f"{unit.text_ms(record.expected_ms)}, with a budget of {unit.text_ms(record.budget_ms)}."
    )
    return picture_from_figure(
        figure,
        name="search",
        title="Search under the budget",
        caption=caption,
        alt=alt,
    )


def panels_of(run: RunFiles, unit: TimeUnit) -> list[Panel]:
    """Return what there is to draw: what the history holds, each budget beside its cost."""
    record = run.search
    names = {name for figures in run.search_history for name in figures}
    budgets = record.budgets or Budgets(latency_ms=record.budget_ms)
    latency = Panel(
        name="expected_ms",
        title=f"expected latency, {unit.name}",
        scale=unit.per_ms,
        bound=unit.value_ms(record.budget_ms),
    )
    others = [
        Panel(
            name=cost.figure,
            title=f"expected {_COSTS.get(cost.budget, cost.units)}",
            bound=getattr(budgets, cost.budget),
        )
        for cost in ADDED_COSTS
        if cost.figure != latency.name
    ]
    forbidden = Panel(name=_FORBIDDEN, title="expected forbidden operators", bound=0.0)
    plain = {name: Panel(name=name, title=title) for name, title in _TITLES.items()}
    order = [
        plain["loss"],
        plain["choice_loss"],
        plain["objective"],
        latency,
        plain["multiplier"],
        *others,
        forbidden,
        plain["entropy"],
        plain["temperature"],
    ]
    return [panel for panel in order if panel.name in names]


def _curve(axes: Axes, history: History, panel: Panel) -> None:
    points = [
        (epoch, panel.scale * figures[panel.name])
        for epoch, figures in enumerate(history, start=1)
        if panel.name in figures
    ]
    values = [y for _, y in points]
    axes.plot([x for x, _ in points], values, color=BLUE)
    if panel.name in _LOG and min(values) > 0:
        axes.set_yscale("log")
        _plain_log_ticks(axes, values)
    if panel.bound is None:
        return
    axes.axhline(panel.bound, color=ORANGE, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.annotate(
        f"budget {number(panel.bound, 4)}", (1, panel.bound), xycoords=("axes fraction", "data"),
        xytext=(0, 3), textcoords="offset points", ha="right", fontsize=SMALL_POINTS, color=ORANGE,
    )  # fmt: skip
    axes.margins(y=0.18)


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
