"""Whether robustness objectives find more robust networks than a plain search, at equal latency.

    python benchmarks/robustness/dsrna.py --work FOLDER [--table TABLE] [--data digits]
        [--space rnas-cl-xs] [--seeds 3] [--jobs 2] [--search-epochs 12] [--train-epochs 10]
        [--budget 0.5] [--eps-plain 0.02] [--eps-robust 0.1] [--images 256] [--quick]

Arms: a plain search and one with each objective (all without tutors, so that the objective is what
differs), and, as a control, random networks of the same latency. For each arm and seed:

1. Search, with the seed, under the same budget by the same table, and derive the best network. The
   control draws networks until one is predicted within --window below the budget.
2. Train it from scratch, twice, identically for all arms: by plain cross-entropy, and by PGD.
3. On test images: clean accuracy, PGD-20 and APGD-CE, at --eps-plain for the one training and at
   --eps-robust for the other (at one eps, one of them would tell nothing), and the objectives' own
   measures: R_Jac with all rows, and the certified one with interval bounds, both as a search has
   them. Nothing before has seen the test images.

A figure of an arm is the mean over the seeds, with the 95 % t-interval of so few; beside it stands
the mean difference from the plain search of the same seed, with its own. With 3 seeds an interval
that leaves out 0 is rare: read what is not told apart as not told apart.

Each finished part is kept in --work, and a run that was killed goes on there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import stats

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance
from hwnas.core.threads import torch_threads
from hwnas.data.images import pixels_from_bytes
from hwnas.data.sources import DataConfig, load_data
from hwnas.latency.resources import SpaceCosts
from hwnas.robustness.attacks.table import run_attacks
from hwnas.robustness.bounds import margin_lower_bounds
from hwnas.robustness.jacobian import jacobian_bound, logit_scale
from hwnas.robustness.threat import ThreatModel, parse_eps
from hwnas.search.objectives import signed_log
from hwnas.search.rnas_cl import SearchConfig
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.stages.config import BudgetConfig, RunConfig, TableConfig, TargetConfig
from hwnas.stages.derive import make_derivation
from hwnas.stages.profile import make_table
from hwnas.stages.search import make_search
from hwnas.stages.spaces import space_of_table
from hwnas.stages.teacher import make_teacher
from hwnas.training.fit import FitSettings, fit
from hwnas.training.robust import robust_loss
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.timing import TimingSettings

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.search.budget import Budgets
    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.genotype import Genotype
    from hwnas.space.supernet import SlimNetwork
    from hwnas.training.robust_guard import Attack

RESULT = Path(__file__).parents[1] / "results" / "robustness" / "dsrna.json"
OBJECTIVES: tuple[Literal["none", "jacobian", "certified", "combined"], ...] = (
    "none",
    "jacobian",
    "certified",
    "combined",
)
PLAIN, RANDOM = "plain", "random"
ARMS = (PLAIN, *OBJECTIVES[1:], RANDOM)
TRAININGS: tuple[Literal["none", "pgd-at"], ...] = ("none", "pgd-at")
ATTACKS = ("pgd", "apgd-ce")
RATED = 64
"""Test images whose own measures are taken."""


def main() -> None:
    """Search, derive, train, attack, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="where finished parts are kept")
    parser.add_argument("--table", type=Path, help="a latency table; else one is measured, once")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--space", default="rnas-cl-xs")
    parser.add_argument("--image-size", type=int, default=16, help="of digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--budget", type=float, default=0.5, help="place of it, as in a [budget]")
    parser.add_argument("--window", type=float, default=0.05, help="of the control's latency")
    parser.add_argument("--search-epochs", type=int, default=12)
    parser.add_argument("--train-epochs", type=int, default=10)
    parser.add_argument("--teacher-epochs", type=int, default=8)
    parser.add_argument("--weight", type=float, default=SearchConfig().objective_weight)
    parser.add_argument("--eps-plain", default="0.02")
    parser.add_argument("--eps-robust", default="0.1")
    parser.add_argument("--images", type=int, default=256, help="test images that are attacked")
    parser.add_argument("--quick", action="store_true", help="few epochs, seeds and images")
    parser.add_argument("--out", type=Path, default=RESULT, help="another file for the figures")
    given = parser.parse_args()
    if given.quick:
        given.search_epochs, given.train_epochs, given.teacher_epochs = 3, 1, 1
        given.seeds, given.images = 2, 32
    began = time.monotonic()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.table is None:
        given.table = measured_table(given)
    with torch_threads(max(1, given.jobs)):
        make_teacher(config_of(given, 0), given.work / "teacher")
    parts = [(given, arm, seed) for seed in range(given.seeds) for arm in ARMS]
    if given.jobs > 1:
        # Spawned: a fork would inherit the threads of torch.
        with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
            for _ in pool.imap_unordered(one_part, parts):
                pass
    else:
        for part in parts:
            one_part(part)
    found = {
        arm: [json.loads(part_path(given, arm, seed).read_text()) for seed in range(given.seeds)]
        for arm in ARMS
    }
    summary = summarized(found)
    report(summary, given)
    document = {
        "benchmark": "robustness/dsrna",
        "facts": {key: str(value) for key, value in vars(given).items()},
        "settings": {"search": config_of(given, 0).search, "train": fit_settings(given, "pgd-at")},
        "table": LatencyTable.read(given.table).header,
        "summary": summary,
        "networks": found,
        "seconds_of_this_run": time.monotonic() - began,
        "provenance": provenance(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out, encode_json(document, indent=1))
    say(f"written: {given.out}")


def say(text: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def config_of(given: argparse.Namespace, seed: int, objective: Any = "none") -> RunConfig:
    """Return the settings of a search; data and teacher are the same for all."""
    data = DataConfig(source=given.data)
    if given.data == "digits":
        data = replace(data, image_size=given.image_size)
    search = SearchConfig(
        epochs=given.search_epochs, tutors="none", attention_size=8, objective=objective
    )
    if objective != "none":
        search = replace(search, objective_weight=given.weight)
    config = RunConfig(
        seed=seed,
        training_threads=1,
        accelerator="cpu",
        target=TargetConfig(),
        data=data,
        threat=ThreatModel(eps=given.eps_robust),
        table=TableConfig(path=str(given.table or "")),
        budget=BudgetConfig(fraction=given.budget),
        search=search,
    )
    return replace(config, teacher=replace(config.teacher, epochs=given.teacher_epochs))


def measured_table(given: argparse.Namespace) -> Path:
    """Measure the operators of the space, or find that done."""
    data = load_data(config_of(given, 0).data)
    spec = space_spec(given.space, image_shape=data.image_shape, classes=len(data.class_names))
    path: Path = given.work / "table.jsonl"
    timing = TimingSettings.quick() if given.quick else TimingSettings()
    make_table(space_from_spec(spec), TargetConfig().name, path, threads=1, settings=timing)
    return path


def part_path(given: argparse.Namespace, arm: str, seed: int) -> Path:
    """Return where what came of an arm and seed is kept."""
    path: Path = given.work / f"{arm}-{seed}.json"
    return path


def one_part(part: tuple[argparse.Namespace, str, int]) -> None:
    """Find a network, train it and measure it, unless that is done."""
    given, arm, seed = part
    path = part_path(given, arm, seed)
    if path.exists():
        return
    began = time.monotonic()
    table = LatencyTable.read(given.table)
    space = space_of_table(table)
    costs = SpaceCosts(space, table)
    with torch_threads(1):
        config = config_of(given, seed, "none" if arm in (PLAIN, RANDOM) else arm)
        budgets = config.budget.resolve(costs)
        if arm == RANDOM:
            genotype, history = random_genotype(space, costs, budgets, given.window, seed), None
        else:
            genotype, history = searched_genotype(given, config, budgets, arm, seed)
        search_s = time.monotonic() - began
        trained = {
            method: trained_figures(given, config, space, genotype, method, f"{arm}-{seed}")
            for method in TRAININGS
        }
    document = {
        "arm": arm,
        "seed": seed,
        "genotype": genotype,
        "budget_ms": budgets.latency_ms,
        "predicted_ms": costs.latency.predict_ms(genotype),
        "macs": space.macs(genotype),
        "search_history": history,
        "search_seconds": search_s,
        "trained": trained,
        "seconds": time.monotonic() - began,
    }
    write_atomically(path, encode_json(document, indent=1))
    say(
        f"{arm} seed {seed}: {document['predicted_ms']:.4f} of {budgets.latency_ms:.4f} ms, "
        f"{document['seconds']:.0f} s"
    )


def searched_genotype(
    given: argparse.Namespace, config: RunConfig, budgets: Budgets, arm: str, seed: int
) -> tuple[Genotype, Any]:
    """Search, and derive the best network within the budget as predicted."""
    folder = given.work / f"search-{arm}-{seed}"
    make_search(config, given.table, given.work / "teacher", folder)
    derivation = make_derivation(
        folder,
        given.table,
        budgets,
        given.work / f"derived-{arm}-{seed}.json",
        measure=False,
        settings=TimingSettings.quick(),
    )
    return derivation.genotype, json.loads((folder / "history.json").read_text())


def random_genotype(
    space: ChainSpace, costs: SpaceCosts, budgets: Budgets, window: float, seed: int
) -> Genotype:
    """Draw networks until one is as slow as the budget allows, within the window."""
    generator = np.random.default_rng(seed)
    for _ in range(100_000):
        genotype = space.random_genotype(generator)
        share = costs.latency.predict_ms(genotype) / budgets.latency_ms
        if 1 - window <= share <= 1:
            return genotype
    raise SystemExit(f"no network of 100,000 is within {window:g} below the budget")


def fit_settings(given: argparse.Namespace, method: Literal["none", "pgd-at"]) -> FitSettings:
    """Return how derived networks are trained."""
    return FitSettings(robust=method, epochs=given.train_epochs, held_out_images=0, guard=False)


def trained_figures(
    given: argparse.Namespace,
    config: RunConfig,
    space: ChainSpace,
    genotype: Genotype,
    method: Literal["none", "pgd-at"],
    name: str,
) -> dict[str, Any]:
    """Train a network from scratch, and measure it on test images."""
    threat = ThreatModel(eps=given.eps_plain if method == "none" else given.eps_robust)
    settings = fit_settings(given, method)
    data = load_data(config.data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = space.network(genotype)
    network.normalize.set_statistics(*data.pixel_statistics())

    def loss(images: Tensor, labels: Tensor, attack: Attack, generator: torch.Generator) -> Tensor:
        return robust_loss(
            attack.method,
            network,
            network.train,
            images,
            labels,
            None,
            settings=attack.settings,
            eps=threat.eps_pixels,
            generator=generator,
        )

    checkpoint = given.work / f"training-{name}-{method}"
    history = fit(
        name,
        network,
        loss,
        data,
        config.data,
        threat,
        settings,
        seed=config.seed,
        checkpoint=checkpoint,
        depends_on={"genotype": genotype.label, "method": method, "epochs": settings.epochs},
    )
    network.eval()
    # The same test images for all arms and seeds.
    chosen = data.test.subset(given.images, torch.Generator().manual_seed(0))
    images, labels = pixels_from_bytes(chosen.images), chosen.labels
    outcome = run_attacks(
        network,
        images.numpy(),
        labels.numpy(),
        threat,
        attacks=ATTACKS,
        seed=config.seed,
        batch=128,
    )
    checkpoint.unlink()
    return {
        "table": outcome.table,
        "history": history,
        **own_measures(network, images[:RATED], labels[:RATED]),
    }


def own_measures(network: SlimNetwork, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Measure what the objectives raise, on a network by itself."""
    network.requires_grad_(requires_grad=False)
    eps = parse_eps(SearchConfig().objective_eps)
    with torch.no_grad():
        jacobian = jacobian_bound(network, images)
        margins = margin_lower_bounds(network, images, labels, eps=eps, method="ibp")
        smallest = margins.scatter(1, labels[:, None], float("inf")).amin(1)
        certified = signed_log(smallest / logit_scale(network(images))).mean()
    return {"jacobian": float(jacobian), "certified": float(certified), "rated": len(images)}


def figures_of(part: dict[str, Any]) -> dict[str, float]:
    """Return the figures of one arm and seed by name."""
    found = {"latency, share of budget": part["predicted_ms"] / part["budget_ms"]}
    for method, trained in part["trained"].items():
        table = trained["table"]
        values = {"clean": table["clean"]["value"]}
        values |= {row["attack"]: row["accuracy"]["value"] for row in table["rows"]}
        values |= {key: trained[key] for key in ("jacobian", "certified")}
        found |= {f"{method}: {key}": value for key, value in values.items()}
    return found


def summarized(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return means over seeds with intervals, and those of the differences from the plain arm."""
    figures = {arm: [figures_of(part) for part in parts] for arm, parts in found.items()}
    summary: dict[str, dict[str, Any]] = {}
    for name in figures[PLAIN][0]:
        values = {arm: np.array([each[name] for each in parts]) for arm, parts in figures.items()}
        summary[name] = {
            arm: {
                "values": each.tolist(),
                "mean": interval(each),
                "less_plain": None if arm == PLAIN else interval(each - values[PLAIN]),
            }
            for arm, each in values.items()
        }
    return summary


def interval(values: Any) -> dict[str, float | None]:
    """Return the mean of one value per seed, and its 95 % t-interval; None of a single one."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return {"value": mean, "low": None, "high": None, "n": n}
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return {"value": mean, "low": mean - half, "high": mean + half, "n": n}


def report(summary: dict[str, dict[str, Any]], given: argparse.Namespace) -> None:
    """Print every figure of every arm."""
    say(
        f"{given.data}, {given.space}, {given.seeds} seeds, {given.images} test images; "
        f"networks trained plainly are attacked at {given.eps_plain}, by PGD at {given.eps_robust}"
    )
    for name, arms in summary.items():
        say(name)
        for arm, each in arms.items():
            difference = each["less_plain"]
            beside = "" if difference is None else f"   less plain {text_of(difference)}"
            say(f"  {arm:<10} {text_of(each['mean'])}{beside}")


def text_of(figure: dict[str, Any]) -> str:
    """Write a figure with its interval."""
    if figure["low"] is None:
        return f"{figure['value']:.4g}"
    return f"{figure['value']:.4g} [{figure['low']:.4g}, {figure['high']:.4g}]"


if __name__ == "__main__":
    main()
