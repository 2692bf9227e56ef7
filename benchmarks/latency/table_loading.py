"""How long a latency table takes to load: as hwnas wrote it, edited by others, and longer.

    python benchmarks/latency/table_loading.py

Every sample is one `LatencyTable.read` of a file that is in the page cache.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # what all benchmarks share

from _results import compare

from hwnas.core.environment import provenance
from hwnas_profilers.pairs import PAIRS_PER_SHAPE
from hwnas_profilers.records import Measurement, PairMeasurement, TableHeader
from hwnas_profilers.statistics import summarize
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.table_merge import table_bytes
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Callable

OPERATORS = 5_000
LARGE = 20_000
SHAPES = 100
SAMPLES = 20


def made_up_table(operators: int) -> LatencyTable:
    """Return a table of drawn figures, with pairs as a space of `SHAPES` shapes has them."""
    generator = np.random.default_rng(0)
    keys = [
        OperatorKey(
            kind="mbconv",
            in_shape=(16 + index % SHAPES, 14, 14),
            out_shape=(16 + index % SHAPES, 14, 14),
            kernel=3,
            hidden=96 + index,
            variant="hswish",
        )
        for index in range(operators)
    ]
    statistics = [summarize(generator.lognormal(4, 0.1, size=60)) for _ in keys]
    pairs = [(keys[i], keys[i + SHAPES]) for i in range(PAIRS_PER_SHAPE * SHAPES)]
    return LatencyTable(
        path=Path("made-up.jsonl"),
        header=TableHeader(
            target="onnxruntime-cpu",
            space="made-up",
            space_spec={},
            space_fingerprint="made-up",
            threads=1,
            batch=1,
            dtype="fp32",
            settings={},
            provenance=provenance(),
        ),
        measurements={
            key: Measurement(key=key, statistics=each, weights_bytes=1, peak_activation_bytes=1)
            for key, each in zip(keys, statistics, strict=True)
        },
        calibration=None,
        pairs={
            pair: PairMeasurement(before=pair[0], after=pair[1], statistics=each)
            for pair, each in zip(pairs, statistics, strict=False)
        },
    )


def main() -> None:
    """Write the tables, and time reading them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = made_up_table(OPERATORS)
        files = {
            f"{OPERATORS} operators": table_bytes(replace(table, pairs={})),
            f"{OPERATORS} and pairs": table_bytes(table),
            f"{OPERATORS} reformatted": table_bytes(table).replace(b",", b", "),
            f"{LARGE} and pairs": table_bytes(made_up_table(LARGE)),
        }
        rivals: dict[str, Callable[[], object]] = {}
        for title, data in files.items():
            path = folder / f"{title}.jsonl"
            path.write_bytes(data)
            rivals[title] = partial(LatencyTable.read, path)
        compare(
            "latency/table_loading",
            rivals,
            baseline=f"{OPERATORS} and pairs",
            samples=SAMPLES,
            facts={"bytes": {title: len(data) for title, data in files.items()}},
        )


if __name__ == "__main__":
    main()
