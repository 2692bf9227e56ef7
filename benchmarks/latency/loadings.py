"""How much a network's latency depends on where a loading puts it, and what is done about it.

    python benchmarks/latency/loadings.py [--space rnas-cl-s3] [--loadings 30] [--seeds 3]
        [--target onnxruntime-cpu] [--quick]

In each seed four networks, drawn at random, are loaded again and again into one process, and all of
these are timed in the same shuffled rounds, as whole networks are by default. How far a loading's
median is from the middle of its network's is compared with what `without_odd_loadings` makes of
three loadings that share the samples of one.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance
from hwnas.core.progress import SILENT
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas_profilers.profiler import profiler_for
from hwnas_profilers.timing import LOADINGS, Timed, TimingSettings, without_odd_loadings

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESULTS = Path(__file__).parents[1] / "results" / "latency"
NETWORKS = 4
FAR_PERCENT = 2.0


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--space", default="rnas-cl-s3")
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--loadings", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few samples, nothing is written")
    asked = parser.parse_args()
    settings = TimingSettings.quick() if asked.quick else TimingSettings.for_networks()
    # Every loading takes all samples; those that are put together a third of them each.
    settings = replace(settings, min_samples=settings.max_samples)
    space = space_from_spec(space_spec(asked.space))
    networks: list[dict[str, Any]] = []
    for seed in range(asked.seeds):
        generator = np.random.default_rng(seed)
        drawn = [space.random_genotype(generator) for _ in range(NETWORKS)]
        loaded = [space.workload(genotype) for genotype in drawn for _ in range(asked.loadings)]
        with profiler_for(asked.target) as profiler:
            timed = profiler.time(loaded, replace(settings, seed=seed), progress=SILENT)
        for place, genotype in enumerate(drawn):
            own = timed[place * asked.loadings : (place + 1) * asked.loadings]
            networks.append(
                {
                    "seed": seed,
                    "options": space.choices(genotype),
                    **_medians([each for each in own if each is not None]),
                }
            )
    figures = {name: _figures(networks, name) for name in ("single_us", "together_us")}
    document = {
        "benchmark": "latency/loadings",
        "facts": {
            "space": asked.space,
            "target": asked.target,
            "threads": 1,
            "loadings": asked.loadings,
            "samples of a loading": settings.max_samples,
            "put together": LOADINGS,
        },
        "figures": figures,
        "networks": networks,
        "provenance": provenance(),
    }
    for name, found in figures.items():
        sys.stdout.write(f"{asked.space} {name}: {found}\n")
    if not asked.quick:
        path = RESULTS / f"loadings-{asked.space}.json"
        write_atomically(path, encode_json(document, indent=1))
        sys.stdout.write(f"{path}\n")


def _medians(loadings: list[Timed]) -> dict[str, list[float]]:
    """Return the median of each loading, and of each three that share their samples."""
    shared = [_share(each, index % LOADINGS) for index, each in enumerate(loadings)]
    together = without_odd_loadings(shared[: len(shared) // LOADINGS * LOADINGS], LOADINGS)
    return {
        "single_us": [float(np.median(each.samples_us)) for each in loadings],
        "together_us": [float(np.median(each.samples_us)) for each in together],
    }


def _share(timed: Timed, which: int) -> Timed:
    """Return every third round, from one of the first three on."""
    return Timed(rounds=timed.rounds[which::LOADINGS], cores_ns=timed.cores_ns[which::LOADINGS])


def _figures(networks: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Sum up how far medians are from the middle of their network's, in percent of it."""
    off: list[NDArray[np.float64]] = []
    for network in networks:
        medians = np.array(network[name])
        off.append(100 * np.abs(medians / np.median(network["single_us"]) - 1))
    far = np.concatenate(off)
    return {
        "n": int(far.size),
        "median_percent": float(np.median(far)),
        "p90_percent": float(np.quantile(far, 0.9)),
        "max_percent": float(far.max()),
        f"above_{FAR_PERCENT:g}_percent": int((far > FAR_PERCENT).sum()),
    }


if __name__ == "__main__":
    main()
