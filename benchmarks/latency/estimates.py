"""How well unseen operators are estimated, by which regression, and whether intervals hold.

    python benchmarks/latency/estimates.py [TABLE...]

Without tables: the shipped ones of ONNX Runtime. Two questions, each for operators left out at
random and for all operators of a shape left out together:

- Which regression is nearest? Ten-fold cross-validation of each on the features that
  `hwnas_profilers.estimate` uses.
- Does a 90 % interval cover 90 %? A sixth of the table is left out in turn, and estimated by
  `estimator_from_table` from the rest.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingRegressor,
    HistGradientBoostingRegressor,
    RandomForestRegressor,
)
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance
from hwnas_profilers.estimate import estimator_from_table
from hwnas_profilers.estimate_features import OperatorFeatures
from hwnas_profilers.table import LatencyTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "latency" / "estimates.json"
FOLDS, PARTS, SEED = 10, 6, 5
RIVALS: dict[str, Callable[[], Any]] = {
    "gradient boosting": lambda: GradientBoostingRegressor(
        n_estimators=400, learning_rate=0.05, subsample=0.7, random_state=0
    ),
    "histogram gradient boosting": lambda: HistGradientBoostingRegressor(
        min_samples_leaf=5, max_iter=300, learning_rate=0.05, random_state=0
    ),
    "random forest": lambda: RandomForestRegressor(300, random_state=0),
    "extremely random trees": lambda: ExtraTreesRegressor(300, random_state=0),
    "ridge": lambda: make_pipeline(StandardScaler(), RidgeCV(np.logspace(-4, 2, 13))),
}


def main(arguments: list[str]) -> None:
    """Judge estimates from each table, print the figures and write them."""
    shipped = sorted((ROOT / "latency_tables").rglob("onnxruntime-cpu-*.jsonl"))
    paths = [Path(each) for each in arguments] or shipped
    found = {path.stem: judged(LatencyTable.read(path)) for path in paths}
    document = {"benchmark": "estimates", "tables": found, "provenance": provenance()}
    if not arguments:
        write_atomically(RESULT, encode_json(document, indent=1))
    sys.stdout.write(encode_json(found, indent=1).decode())


def judged(table: LatencyTable) -> dict[str, object]:
    """Return errors of all regressions on one table, and the coverage of ours."""
    keys = list(table.measurements)
    features = OperatorFeatures(keys).of(keys)
    logs = np.log([table.latency_us(key) for key in keys])
    generator = np.random.default_rng(SEED)
    shapes = sorted({(key.in_shape, key.out_shape) for key in keys})
    order = dict(zip(shapes, generator.permutation(len(shapes)), strict=True))
    by_shape = np.array([order[key.in_shape, key.out_shape] for key in keys])
    ways = {"at random": generator.permutation(len(keys)), "whole shapes": by_shape}
    estimator = estimator_from_table(table)
    own = {"at random": estimator.error, "whole shapes": estimator.error_of_new_shapes}
    with threadpool_limits(1):
        return {
            way: {
                "mape_percent": {
                    "ours": own[way].mape_percent,
                    **{
                        name: left_out_error(make, features, logs, places % FOLDS)
                        for name, make in RIVALS.items()
                    },
                },
                "intervals": coverage(table, places % PARTS),
            }
            for way, places in ways.items()
        }


def left_out_error(
    make: Callable[[], Any],
    features: NDArray[np.float64],
    logs: NDArray[np.float64],
    fold_of: NDArray[np.int64],
) -> float:
    """Return the mean absolute percentage error of a regression on folds that it did not see."""
    off = np.empty_like(logs)
    for fold in np.unique(fold_of):
        inside = fold_of == fold
        off[inside] = (
            make().fit(features[~inside], logs[~inside]).predict(features[inside]) - logs[inside]
        )
    return float(100 * np.abs(np.expm1(off)).mean())


def coverage(table: LatencyTable, part_of: NDArray[np.int64]) -> dict[str, object]:
    """Estimate each part from the others; return what is within its interval, and its width."""
    rows = []
    for part in np.unique(part_of):
        kept = dict(
            each
            for each, own in zip(table.measurements.items(), part_of, strict=True)
            if own != part
        )
        kinds = {key.kind for key in kept}
        gone = [key for key in table.measurements if key not in kept and key.kind in kinds]
        for each in estimator_from_table(replace(table, measurements=kept)).estimate(gone):
            truth_us = table.latency_us(each.key)
            rows.append(
                (
                    each.extrapolated,
                    each.low_us <= truth_us <= each.high_us,
                    each.width_percent,
                    100 * abs(each.median_us / truth_us - 1),
                )
            )
    figures = {}
    for name, flagged in (("within ranges", False), ("extrapolated", True)):
        own = np.array([row[1:] for row in rows if row[0] is flagged], dtype=np.float64)
        if len(own):
            figures[name] = {
                "n": len(own),
                "coverage_percent": float(100 * own[:, 0].mean()),
                "median_width_percent": float(np.median(own[:, 1])),
                "mape_percent": float(own[:, 2].mean()),
            }
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
