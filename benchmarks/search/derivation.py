"""Exact derivation: labels, which find the whole Pareto front, beside HiGHS, on the same questions.

One budget, and fifty budgets evenly over the latencies of a space:

    labels         one budget: as `hwnas derive`; fifty: one front, and look-ups on it
    HiGHS          an integer program per budget, over the same merged states
    HiGHS, whole   the same without the merging: what hwnas solved before, and a proof that owes
                   nothing to the merging; one budget only, as it takes minutes for fifty

The spaces are the largest of hwnas, with times drawn about their multiply-accumulates as widely as
the shipped table's are, and the shipped table itself. Scores are log-probabilities of a softmax:
`indifferent` to the time, or `liking` what takes long, as a search without pressure ends.

    python benchmarks/search/derivation.py [--runs 5] [--budgets 50]
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance
from hwnas.latency.resources import SpaceCosts
from hwnas.search.budget import Budgets
from hwnas.search.chain import state_chain
from hwnas.search.derive import best_by_program, best_genotype
from hwnas.search.feasible import rows_of
from hwnas.search.front import pareto_front, score_of_choices
from hwnas.search.labels import best_paths
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import SPACES
from hwnas.stages.spaces import space_of_table
from hwnas_profilers.records import Measurement, Statistics, TableHeader
from hwnas_profilers.table import LatencyTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hwnas.space.genotype import Genotype

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "latency_tables" / "amd-epyc" / "onnxruntime-cpu-mbconv-224.jsonl"
RESULTS = ROOT / "benchmarks" / "results" / "search"
DRAWN = ("rnas-cl-imagenet", "mbconv-224-widths")
LIKINGS = {"indifferent": 0.0, "liking": 3.0}
WHOLE_RUNS = 2


@dataclass(frozen=True, kw_only=True)
class Question:
    """A space with its costs and scores, and budgets to derive for."""

    name: str
    costs: SpaceCosts
    scores: list[NDArray[np.float64]]
    budgets_ms: list[float]

    @property
    def middle(self) -> Budgets:
        """The budget in the middle."""
        return Budgets(latency_ms=self.budgets_ms[len(self.budgets_ms) // 2])


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--budgets", type=int, default=50)
    arguments = parser.parse_args()
    shipped = LatencyTable.read(SHIPPED)
    tables = [shipped, *(drawn_table(name, shipped) for name in DRAWN)]
    documents = []
    for table in tables:
        space = space_of_table(table) if table is shipped else space_from_spec(
            SPACES[table.header.space]
        )  # fmt: skip
        costs = SpaceCosts(space, table)
        low, high = costs.latency.range_ms()
        for liking, weight in LIKINGS.items():
            question = Question(
                name=f"{space.spec.name}{'' if table is shipped else ', drawn'}, {liking}",
                costs=costs,
                scores=scores_of(costs, weight),
                budgets_ms=np.linspace(low, high, arguments.budgets).tolist(),
            )
            documents.append(asked(question, arguments.runs))
    document = {
        "benchmark": "search/derivation",
        "questions": documents,
        "shipped": SHIPPED.name,
        "provenance": provenance(),
    }
    write_atomically(RESULTS / "derivation.json", encode_json(document, indent=1))


def asked(question: Question, runs: int) -> dict[str, object]:
    """Put one question to all solvers, in shuffled order; print and return what was found."""
    costs, scores = question.costs, question.scores
    every = Budgets(latency_ms=costs.latency.range_ms()[1])
    calls: dict[str, Callable[[], list[Genotype | None]]] = {
        "labels, 1 budget": lambda: [best_genotype(costs, scores, question.middle)],
        "labels, all budgets": lambda: by_front(question, every),
        "HiGHS, 1 budget": lambda: [best_by_program(costs, scores, question.middle)],
        "HiGHS, all budgets": lambda: [
            best_by_program(costs, scores, Budgets(latency_ms=budget))
            for budget in question.budgets_ms
        ],
        "HiGHS, whole, 1 budget": lambda: [
            best_by_program(costs, scores, question.middle, merge=False)
        ],
    }
    order = [name for name in calls for _ in range(WHOLE_RUNS if "whole" in name else runs)]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    found: dict[str, list[float]] = {}
    for name in np.random.default_rng(0).permutation(order).tolist():
        start = time.perf_counter()
        genotypes = calls[name]()
        seconds[name].append(time.perf_counter() - start)
        found[name] = [score_of(question, genotype) for genotype in genotypes]
    ours, theirs = found["labels, all budgets"], found["HiGHS, all budgets"]
    gaps = {
        "all budgets": max(abs(a - b) for a, b in zip(ours, theirs, strict=True)),
        "1 budget": abs(found["labels, 1 budget"][0] - found["HiGHS, 1 budget"][0]),
        "1 budget, whole": abs(found["labels, 1 budget"][0] - found["HiGHS, whole, 1 budget"][0]),
    }
    sizes = sizes_of(question, every)
    sys.stdout.write(f"{question.name}: {sizes}; difference of the scores: {gaps}\n")
    for name, taken in seconds.items():
        sys.stdout.write(
            f"  {name:<24} median {np.median(taken):8.3f} s "
            f"({min(taken):.3f} to {max(taken):.3f}), n={len(taken)}\n"
        )
    sys.stdout.flush()
    return {
        "name": question.name,
        "budgets": len(question.budgets_ms),
        "sizes": sizes,
        "score_differences": gaps,
        "seconds": seconds,
    }


def by_front(question: Question, every: Budgets) -> list[Genotype | None]:
    """Answer all budgets from one front."""
    front = pareto_front(question.costs, question.scores, every)
    return [front.best(budget) for budget in question.budgets_ms]


def sizes_of(question: Question, every: Budgets) -> dict[str, float]:
    """Count what there is to choose from, and what is left of it."""
    costs = question.costs
    rows, allowed = rows_of(costs, every), costs.allowed()
    merged = state_chain(rows, question.scores, allowed)
    whole = state_chain(rows, question.scores, allowed, merge=False)
    return {
        "networks_log10": float(sum(np.log10(len(options)) for options in costs.space.options)),
        "operators": len(costs.space.operators()),
        "arcs": sum(step.costs[0].size for step in whole.steps),
        "arcs_merged": sum(step.costs[0].size for step in merged.steps),
        "states": max(step.state_count for step in merged.steps),
        "networks_on_the_front": len(best_paths(merged).scores),
    }


def score_of(question: Question, genotype: Genotype | None) -> float:
    """Add up a network's score."""
    assert genotype is not None  # no budget is below the fastest network
    return score_of_choices(question.scores, question.costs.space.choices(genotype))


def scores_of(costs: SpaceCosts, liking: float) -> list[NDArray[np.float64]]:
    """Draw log-probabilities, the more `liking` the likelier for what takes long."""
    generator = np.random.default_rng(0)
    scores = []
    for link in costs.latency.links_us[1:-1]:
        takes = np.where(np.isfinite(link), link, 0.0).mean(axis=0).clip(min=0.0)
        logits = generator.normal(0, 0.5, len(takes)) + liking * np.sqrt(takes / takes.max())
        scores.append(logits - np.log(np.exp(logits).sum()))
    return scores


def drawn_table(name: str, like: LatencyTable) -> LatencyTable:
    """Draw a table of a space whose times per multiply-accumulate spread like a measured one's."""
    space, measured_space = space_from_spec(SPACES[name]), space_of_table(like)
    ratios = np.log(
        [
            each.statistics.median_us / max(measured_space.macs_of(key), 1)
            for key, each in like.measurements.items()
        ]
    )
    generator = np.random.default_rng(0)
    measurements = {}
    for operator in space.operators():
        ratio = np.exp(generator.normal(ratios.mean(), ratios.std()))
        us = float(space.macs_of(operator.key) * ratio)
        statistics = Statistics(
            n=20, median_us=us, low_us=us, high_us=us, min_us=us, p10_us=us, p90_us=us
        )
        measurements[operator.key] = Measurement(key=operator.key, statistics=statistics)
    header = TableHeader(
        target="drawn",
        space=name,
        space_spec={},
        space_fingerprint=space.spec.fingerprint,
        threads=1,
        batch=1,
        dtype="fp32",
        settings={},
        provenance=provenance(),
    )
    return LatencyTable(
        path=Path("drawn"), header=header, measurements=measurements, calibration=None
    )


if __name__ == "__main__":
    main()
