"""The whole loop from Python, without the command line.

    python examples/python_api.py [FOLDER]

It does what `hwnas run examples/digits.toml` does, stage by stage, with a log of its own: every
stage is one function of `hwnas.api`, with the names and defaults of its command. Started again, it
goes on where it stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hwnas.api

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG = Path(__file__).with_name("digits.toml")


class PrintedLog:
    """Any object with this method takes the figures of every epoch: see `hwnas.core.metrics`."""

    def log(self, name: str, figures: Mapping[str, float], *, epoch: int) -> None:
        """Take the figures of one epoch."""
        shown = ", ".join(f"{figure} {value:.3g}" for figure, value in figures.items())
        sys.stdout.write(f"{name} {epoch}: {shown}\n")


def main(out: Path) -> None:
    """Go from this machine to a verified engine."""
    out.mkdir(parents=True, exist_ok=True)
    table = out / "table.jsonl"
    hwnas.api.profile("rnas-cl-xs", "onnxruntime-cpu", table)
    if hwnas.api.table_show(table).calibration is None:
        hwnas.api.calibrate(table)
    hwnas.api.teacher(out / "teacher", config=CONFIG)
    hwnas.api.search(table, out / "teacher", out / "search", config=CONFIG, log=PrintedLog())

    # One search serves many budgets, and needs no new training for any of them.
    front = hwnas.api.pareto(out / "search", table, out / "front")
    budget_ms = (front.points[0].predicted_ms + front.points[-1].predicted_ms) / 2
    derived = hwnas.api.derive(out / "search", table, out / "genotype.json", budget_ms=budget_ms)
    sys.stdout.write(f"derived: {derived.measured_ms:.3f} ms of {budget_ms:.3f} ms\n")

    hwnas.api.train(
        out / "genotype.json",
        out / "teacher",
        out / "network",
        search=out / "search",
        config=CONFIG,
    )
    hwnas.api.export(out / "network", out / "bundle")
    verified = hwnas.api.verify(out / "bundle")
    sys.stdout.write(f"verified: {verified.passed}, bundle in {out / 'bundle'}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/python-api"))
