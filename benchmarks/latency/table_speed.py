"""How long a table takes, export and compilation included, and that it grows linearly.

Tables of 75, 150 and 300 operators at 32 px, at 2 % intervals, each from nothing; three times, in
shuffled order. What neighbors take as pairs is part of it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance
from hwnas.space.mbconv.spec import MBCONV_SPACES
from hwnas.space.registry import space_from_spec
from hwnas_profilers.operators import profile_operators
from hwnas_profilers.profiler import profiler_for
from hwnas_profilers.records import TableHeader
from hwnas_profilers.timing import TimingSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas_profilers.workload import Operator

RESULTS = Path(__file__).parents[1] / "results" / "latency"
SIZES = (75, 150, 300)
REPEATS = 3


def main() -> None:
    """Measure, print, and write what was measured."""
    generator = np.random.default_rng(0)
    spec = MBCONV_SPACES["mbconv-32"]
    wider = replace(
        spec,
        name="mbconv-32-wide",
        stages=tuple(replace(stage, widths=(stage.widths[0] + 8,)) for stage in spec.stages),
    )
    operators = [each for one in (spec, wider) for each in space_from_spec(one).operators()]
    distinct = list({operator.key: operator for operator in operators}.values())
    runs = [size for size in SIZES for _ in range(REPEATS)]
    found: dict[int, list[dict[str, object]]] = {size: [] for size in SIZES}
    one_table(distinct[:4])  # what is loaded once, e.g. the exporter, is not a table's cost
    for size in map(int, generator.permutation(runs)):
        chosen = [distinct[index] for index in generator.permutation(len(distinct))[:size]]
        result = one_table(chosen)
        found[size].append(result)
        sys.stdout.write(f"{size} operators: {result}\n")
        sys.stdout.flush()
    for size, results in found.items():
        seconds = [float(str(each["seconds"])) for each in results]
        sys.stdout.write(
            f"{size} operators: median {np.median(seconds):.1f} s "
            f"({min(seconds):.1f} to {max(seconds):.1f}), "
            f"{1e3 * np.median(seconds) / size:.0f} ms an operator\n"
        )
    document = {"benchmark": "latency/table_speed", "runs": found, "provenance": provenance()}
    document["runs"] = {str(size): results for size, results in found.items()}
    write_atomically(RESULTS / "table_speed.json", encode_json(document, indent=1))


def one_table(operators: Sequence[Operator]) -> dict[str, object]:
    """Profile operators into a new table."""
    settings = TimingSettings(relative_width=0.02)
    with tempfile.TemporaryDirectory() as folder, profiler_for("onnxruntime-cpu") as profiler:
        header = TableHeader(
            target="onnxruntime-cpu",
            space="benchmark",
            space_spec={},
            space_fingerprint="benchmark",
            threads=1,
            batch=1,
            dtype="fp32",
            settings={},
            provenance=provenance(),
        )
        began = time.perf_counter()
        table = profile_operators(
            operators,
            profiler=profiler,
            path=Path(folder) / "table.jsonl",
            header=header,
            settings=settings,
        )
        seconds = time.perf_counter() - began
        widths = [
            (each.statistics.high_us - each.statistics.low_us) / each.statistics.median_us
            for each in table.measurements.values()
        ]
        return {
            "seconds": round(seconds, 2),
            "pairs": len(table.pairs),
            "reached_2_percent": float(np.mean(np.array(widths) < 0.02)),
            "disturbed_rounds": profiler.log.disturbed,
            "noisy_rounds": profiler.log.noisy,
            "rounds": profiler.log.kept,
        }


if __name__ == "__main__":
    main()
