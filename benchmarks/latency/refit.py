"""What the curvature does for the shipped tables: fit anew to the networks that they hold.

    python benchmarks/latency/refit.py

Nothing is measured: a table's calibration keeps its networks' latencies. Each half is predicted by
fits to the other, with and without a curvature: the held-out networks from those of the fit, and
the other way around.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance
from hwnas.latency.figures import error_figures
from hwnas.latency.fit import CURVATURES, fit_latency
from hwnas.latency.in_network import OperatorCosts
from hwnas.stages.calibrate import operator_counts, weights_bytes
from hwnas.stages.spaces import space_of_table
from hwnas_profilers.table import LatencyTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas_profilers.records import NetworkMeasurement

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "latency" / "refit.json"


def main() -> None:
    """Fit, print and write."""
    rows = [
        row
        for path in sorted((ROOT / "latency_tables").rglob("*.jsonl"))
        for row in refit(path, path.relative_to(ROOT))
    ]
    document = {"benchmark": "latency/refit", "rows": rows, "provenance": provenance()}
    write_atomically(RESULT, encode_json(document, indent=1))


def refit(path: Path, name: Path) -> list[dict[str, object]]:
    """Fit a table's networks; none where it has no calibration."""
    table = LatencyTable.read(path)
    calibration = table.calibration
    if calibration is None:
        return []
    space, keys, costs = space_of_table(table), list(table.measurements), OperatorCosts(table)
    prior_us = np.array([costs.prior_us(key) for key in keys])
    bytes_ = weights_bytes(space, keys)

    def of(networks: Sequence[NetworkMeasurement]) -> tuple[np.ndarray, np.ndarray]:
        genotypes = [space.genotype_of_choices(list(each.choices)) for each in networks]
        measured_us = np.array([each.statistics.median_us for each in networks])
        return operator_counts(space, genotypes, keys), measured_us

    halves = (of(calibration.networks), of(calibration.holdout_networks))
    rows = []
    for (counts, measured_us), (held, held_us) in (halves, halves[::-1]):
        for curvatures in ((0.0,), CURVATURES):
            fit = fit_latency(keys, prior_us, bytes_, counts, measured_us, curvatures=curvatures)
            errors = error_figures(fit.predict(held), held_us)
            rows.append(
                {
                    "table": str(name),
                    "fit_to": len(measured_us),
                    "predicted": errors.n,
                    "may_bend": len(curvatures) > 1,
                    "curvature_per_us": fit.curvature_per_us,
                    "mape_percent": errors.mape_percent,
                    "noise_floor_percent": calibration.noise_floor_percent,
                }
            )
            sys.stdout.write(f"{rows[-1]}\n")
    return rows


if __name__ == "__main__":
    main()
