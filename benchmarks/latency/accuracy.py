"""How well tables predict whole networks, beside every simpler predictor, in one run.

For each space and seed: a table is profiled; the fastest network and 47 that are drawn are for
calibration (the first 12 of them are the smaller set), 36 more are held out, and 16 lie between
the ends of the space and what is drawn, where `random` ones hardly ever are but budgets may be. All
are timed together in shuffled rounds.

    python benchmarks/latency/accuracy.py [--spaces mbconv-32,mbconv-224] [--seeds 0,1,2]
                                          [--target onnxruntime-cpu] [--batch 1]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance
from hwnas.latency.baselines import baseline_predictions, relative_least_squares
from hwnas.latency.figures import error_figures
from hwnas.latency.fit import CURVATURES, fit_latency
from hwnas.latency.in_network import OperatorCosts
from hwnas.latency.model import LatencyModel
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.stages.calibrate import (
    drawn_genotypes,
    fastest_genotype,
    operator_counts,
    weights_bytes,
)
from hwnas.stages.profile import make_table
from hwnas_profilers.profiler import profiler_for
from hwnas_profilers.targets import parse_target
from hwnas_profilers.timing import TimingSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.genotype import Genotype
    from hwnas_profilers.records import ErrorFigures
    from hwnas_profilers.workload import OperatorKey

    Floats = NDArray[np.float64]

RESULTS = Path(__file__).parents[1] / "results" / "latency"
CALIBRATION = (12, 48)
HOLDOUT = 36
BETWEEN = 16
PROFILED_CALLS = 50
OURS, WITHOUT_CURVATURE = "hwnas", "hwnas_straight"


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--spaces", default="mbconv-32,mbconv-224")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--batch", type=int, default=1)
    given = parser.parse_args()
    for name in given.spaces.split(","):
        precision = parse_target(given.target).runtime.precision
        space = space_from_spec(space_spec(name), batch=given.batch, dtype=precision)
        runs = [one_run(space, given.target, seed) for seed in map(int, given.seeds.split(","))]
        report(runs)
        suffix = "" if given.batch == 1 else f"-b{given.batch}"
        path = RESULTS / f"accuracy-{given.target}-{name}{suffix}.json"
        document = {"benchmark": "latency/accuracy", "runs": runs, "provenance": provenance()}
        write_atomically(path, encode_json(document, indent=1))


def one_run(space: ChainSpace, target: str, seed: int) -> dict[str, object]:
    """Profile, time networks, fit on some, and judge on the others."""
    name = space.spec.name
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        timing = TimingSettings(relative_width=0.01, seed=seed)
        table = make_table(space, target, Path(folder) / "table.jsonl", threads=1, settings=timing)
        table_s = time.perf_counter() - began
    latency = LatencyModel(space, table)
    fastest = fastest_genotype(latency)
    drawn = dict.fromkeys(drawn_genotypes(space, max(CALIBRATION), generator, first=(fastest,)))
    while len(drawn) < max(CALIBRATION) + HOLDOUT:  # held-out ones are uniformly random
        drawn[space.random_genotype(generator)] = None
    genotypes = [*drawn, *between_ends(latency, generator)]
    keys = list(table.measurements)
    with profiler_for(target) as profiler:
        began = time.perf_counter()
        settings = TimingSettings.for_networks(seed=seed)
        timings = profiler.time_networks([space.workload(each) for each in genotypes], settings)
        networks_s = time.perf_counter() - began
        log = profiler.log
    measured_us = np.array([each.statistics.median_us for each in timings])
    first, second = (
        np.array([getattr(each, half) for each in timings]) for half in ("first_us", "second_us")
    )
    counts = operator_counts(space, genotypes, keys)
    macs = np.array([space.macs(each) for each in genotypes], dtype=np.float64)
    costs = OperatorCosts(table)
    node_sums_us = node_sums(space, keys) if target == "onnxruntime-cpu" else None
    held = slice(max(CALIBRATION), max(CALIBRATION) + HOLDOUT)
    floor_percent = float(100 * np.mean(np.abs(first - second)[held] / measured_us[held]))
    new = slice(held.start, None)
    figures = {}
    predictions = {}
    for count in CALIBRATION:
        predicted = predict(
            keys=keys,
            bytes_=weights_bytes(space, keys),
            isolated_us=np.array([table.latency_us(key) for key in keys]),
            prior_us=np.array([costs.prior_us(key) for key in keys]),
            node_sums_us=node_sums_us,
            counts=counts[:count],
            macs=macs[:count],
            measured_us=measured_us[:count],
            counts_new=counts[new],
            macs_new=macs[new],
        )
        predictions[str(count)] = {each: values.tolist() for each, values in predicted.items()}
        figures[str(count)] = {
            each: error_figures(values[:HOLDOUT], measured_us[held])
            for each, values in predicted.items()
        }
        figures[f"{count}, between the ends"] = {
            each: error_figures(values[HOLDOUT:], measured_us[held.stop :])
            for each, values in predicted.items()
        }
    sys.stdout.write(
        f"{name} {target} seed {seed}: table of {len(keys)} operators and {len(table.pairs)} pairs "
        f"{table_s:.1f} s, {len(timings)} networks {networks_s:.1f} s; "
        f"floor {floor_percent:.2f} %\n"
    )
    sys.stdout.flush()
    return {
        "space": name,
        "target": target,
        "batch": space.batch,
        "seed": seed,
        "table_s": table_s,
        "networks_s": networks_s,
        "noise_floor_percent": floor_percent,
        "rounds": {
            "kept": log.kept,
            "disturbed": log.disturbed,
            "noisy": log.noisy,
            "reasons": log.reasons,
        },
        "timing": asdict(timing),
        "network_timing": asdict(settings),
        "choices": [space.choices(each) for each in genotypes],
        "measured_us": measured_us.tolist(),
        "first_us": first.tolist(),
        "second_us": second.tolist(),
        "predicted_us": predictions,
        "figures": figures,
    }


def predict(
    *,
    keys: Sequence[OperatorKey],
    bytes_: Floats,
    isolated_us: Floats,
    prior_us: Floats,
    node_sums_us: Floats | None,
    counts: Floats,
    macs: Floats,
    measured_us: Floats,
    counts_new: Floats,
    macs_new: Floats,
) -> dict[str, Floats]:
    """Predict the held-out networks by every rival."""
    predicted = baseline_predictions(
        counts=counts,
        isolated_us=isolated_us,
        in_network_us=prior_us,
        macs=macs,
        measured_us=measured_us,
        counts_new=counts_new,
        macs_new=macs_new,
    )
    if node_sums_us is not None:
        predicted["node_sum"] = counts_new @ node_sums_us
        columns, new = (
            np.column_stack([np.ones(len(each)), each @ node_sums_us])
            for each in (counts, counts_new)
        )
        predicted["node_sum_affine"] = new @ relative_least_squares(columns, measured_us)
    for name, curvatures in ((WITHOUT_CURVATURE, (0.0,)), (OURS, CURVATURES)):
        fit = fit_latency(keys, prior_us, bytes_, counts, measured_us, curvatures=curvatures)
        predicted[name] = fit.predict(counts_new)
    return predicted


def between_ends(latency: LatencyModel, generator: np.random.Generator) -> list[Genotype]:
    """Mix the fastest network with the slowest one, and with random ones, in even shares."""
    space, cost = latency.space, latency.cost_us
    fast, slow = cost.cheapest(), cost.dearest()
    assert fast is not None
    assert slow is not None
    mixed = []
    for place in range(BETWEEN):
        other = slow if place % 2 else space.choices(space.random_genotype(generator))
        share = (place + 0.5) / BETWEEN
        takes = generator.random(len(fast)) < share
        mixed.append(
            space.genotype_of_choices(
                [
                    theirs if take else own
                    for take, own, theirs in zip(takes, fast, other, strict=True)
                ]
            )
        )
    return mixed


def node_sums(space: ChainSpace, keys: Sequence[OperatorKey]) -> Floats:
    """Sum the nodes of each operator as ONNX Runtime's own profile times them, (K,).

    The runtime writes whole microseconds, cut off, so half of one is added to each node.
    """
    operators = {operator.key: operator for operator in space.operators()}
    generator = np.random.default_rng(0)
    sums_us = []
    with profiler_for("onnxruntime-cpu") as profiler, tempfile.TemporaryDirectory() as folder:
        profiler.models.export(operators.values())
        for key in keys:
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            model = profiler.models.model_of(operators[key])
            session = ort.InferenceSession(model.SerializeToString(), options)
            shape = operators[key].input_shape
            feed = {"images": generator.standard_normal(shape, dtype=np.float32)}
            for _ in range(PROFILED_CALLS):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text())
            nodes = defaultdict(list)
            for event in events:
                if event["name"].endswith("_kernel_time"):
                    nodes[event["name"]].append(event["dur"] + 0.5)
            sums_us.append(sum(float(np.median(durations)) for durations in nodes.values()))
    return np.array(sums_us)


def report(runs: Sequence[dict[str, object]]) -> None:
    """Print the mean over seeds of each rival's figures."""
    for space in dict.fromkeys(str(run["space"]) for run in runs):
        own = [run for run in runs if run["space"] == space]
        floor = np.mean([run["noise_floor_percent"] for run in own])
        sys.stdout.write(f"\n{space}: {len(own)} seeds, noise floor {floor:.2f} %\n")
        for group in own[0]["figures"]:  # type: ignore[attr-defined]
            sys.stdout.write(f"  {group}: networks of calibration\n")
            by_seed: list[dict[str, ErrorFigures]] = [run["figures"][group] for run in own]  # type: ignore[index]
            for rival in by_seed[0]:
                found = [each[rival] for each in by_seed]
                mape = [each.mape_percent for each in found]
                spearman = np.mean([each.spearman for each in found if each.spearman is not None])
                within = np.mean([each.within_5_percent for each in found])
                sys.stdout.write(
                    f"    {rival:<18} MAPE {np.mean(mape):5.2f} % "
                    f"({min(mape):.2f} to {max(mape):.2f})  Spearman {spearman:.4f}  "
                    f"within 5 %: {within:5.1f} %\n"
                )


if __name__ == "__main__":
    main()
