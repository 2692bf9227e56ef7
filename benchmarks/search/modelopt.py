"""NVIDIA modelopt's latency-constrained search and hwnas, side by side: one network, one budget.

    python benchmarks/search/modelopt.py --rival-python VENV/bin/python [--data digits]
        [--space rnas-cl-xs] [--seeds 0,1,2] [--share 0.8] [--epochs 20] [--teacher-epochs 12]
        [--finetuning 16] [--iterations 100] [--rival-spaces default,finer] [--threads 1]

modelopt runs in an environment of its own (--rival-python, or $HWNAS_MODELOPT_PYTHON), made by

    python -m venv VENV && VENV/bin/pip install torch==2.13.0
    VENV/bin/pip install 'nvidia-modelopt[onnx]' requests huggingface_hub
    VENV/bin/pip install --no-deps torchprofile==0.0.4

Alike: the data and its split; the network that both start from, the widest of the space, whose
parameters are counted on both sides; the budget, a share of what that network takes in ONNX Runtime
on the CPU with one thread at batch 1; threads; the images that the supernet is trained on, counted
over all epochs; its optimizer and rate; and the fine-tuning of what was found, from the supernet's
weights, by the same code. Latency and accuracy are those of the final ONNX models, all timed
together, twice, by one measurer.

Not alike, as that is how each works:

- hwnas searches the widths of its space. modelopt makes its own space of the network's modules: by
  default hidden channels in multiples of 32, and depth; `finer` gives it multiples of 8 and four
  ratios in place of three.
- hwnas learns its choices by gradients on the validation split, with a teacher whose training is
  counted here; modelopt samples networks and scores them by accuracy on the validation split. Its
  guide asks for two to three times the epochs of plain training; both get the same here.
- hwnas is given the budget in milliseconds, keeps it by a table of operators, calibrated, and
  measures what it derives. modelopt is given it as a percentage, as its search accepts it, of its
  own reading of the network: it times with the runtime's profiler switched on, so its milliseconds
  are not those of a plain call, and it may refuse a budget in these, as even its smallest network
  reads more. Both readings are reported. It measures nine networks at the start, interpolates over
  multiply-accumulates, and keeps networks of 85 % to 100 % of the budget. Its ONNX Runtime is
  another version. It would use all cores: it is told to use one thread.
- modelopt's default of 5,000 samples takes hours on this network: --iterations are taken instead,
  and the time of one is reported.
- hwnas trains channels last, which modelopt refuses.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _judge import accuracy_of, measured_together_ms
from _shared import say, write_result
from modelopt_rival import train_plainly

from hwnas.core.threads import torch_threads
from hwnas.core.weights import read_weights
from hwnas.data.sources import DataConfig, load_data
from hwnas.search.budget import Budgets
from hwnas.search.rnas_cl import SearchConfig
from hwnas.space.blocks import hidden_width
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.stages.calibrate import make_calibration
from hwnas.stages.config import RunConfig, SpaceConfig, load_config
from hwnas.stages.derive import make_derivation
from hwnas.stages.profile import make_table
from hwnas.stages.search import SUPERNET_FILE, make_search
from hwnas.stages.teacher import make_teacher
from hwnas_export.onnx_export import onnx_from_module
from hwnas_profilers.profiler import profiler_for
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.timing import TimingSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hwnas.data.images import ImageData

TARGET = "onnxruntime-cpu"
RIVAL = Path(__file__).with_name("modelopt_rival.py")
RIVAL_WIDEST = "rival-widest.onnx"
RIVAL_SPACES: dict[str, dict[str, Any] | None] = {
    "default": None,
    "finer": {
        "nn.Conv2d": {"*": {"channels_ratio": [0.5, 0.67, 0.75, 1.0], "channel_divisor": 8}},
        "nn.BatchNorm2d": {},
        "nn.Linear": {},
        "nn.Sequential": {"min_depth": 0},
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one side found with one seed.

    Attributes:
        side: Who.
        seed: The seed.
        model: Its ONNX model.
        params: Its trained parameters.
        seconds: Wall time of each stage.
        own: What else its side says.
    """

    side: str
    seed: int
    model: bytes
    params: int
    seconds: dict[str, float]
    own: dict[str, Any]


def main() -> None:
    """Run both sides, measure what they found together, print and write it."""
    given = arguments()
    rival_python = given.rival_python
    seeds = [int(seed) for seed in given.seeds.split(",")]
    with tempfile.TemporaryDirectory() as folder, torch_threads(given.threads):
        work = Path(folder)
        data = load_data(DataConfig(source=given.data, flip=not given.data.startswith("digits")))
        config = config_of(given)
        spec = space_spec(
            config.space.name, image_shape=data.image_shape, classes=len(data.class_names)
        )
        space = space_from_spec(spec)
        assert isinstance(space, ChannelSpace)
        table, table_s = new_table(space, work / "table.jsonl", quick=given.quick)
        widest_ms = latency_of_widest_ms(space)
        budget_ms = given.share * widest_ms
        say(f"{spec.name}: widest {widest_ms:.4f} ms, budget {budget_ms:.4f} ms")
        found = []
        for seed in seeds:
            found.append(
                run_hwnas(replace(config, seed=seed), space, data, table, budget_ms, work, given)
            )
            say(f"hwnas, seed {seed}: {sum(found[-1].seconds.values()):.1f} s")
            for name in given.rival_spaces.split(","):
                found.append(run_rival(name, rival_python, space, data, seed, work, given))
                say(f"{found[-1].side}, seed {seed}: {sum(found[-1].seconds.values()):.1f} s")
        ours = onnx_from_module(space.workload(space.largest).build(), (1, *spec.image_shape))
        models = [ours.SerializeToString(), (work / RIVAL_WIDEST).read_bytes()]
        models += [each.model for each in found]
        widest_both_ms, rival_widest_ms, *latencies_ms = measured_together_ms(models, given.threads)
        accuracies = [accuracy_of(each.model, data) for each in found]
    rows = [
        {
            "side": each.side,
            "seed": each.seed,
            "budget_ms": budget_ms,
            "latency_ms": both,
            "share_of_budget": float(np.mean(both)) / budget_ms,
            "accuracy": accuracy,
            "n_test": len(data.test),
            "params": each.params,
            "seconds": each.seconds,
            "own": each.own,
        }
        for each, both, accuracy in zip(found, latencies_ms, accuracies, strict=True)
    ]
    say(
        f"widest, timed with what was found: {np.mean(widest_both_ms):.4f} ms, as modelopt's side "
        f"builds and exports it {np.mean(rival_widest_ms):.4f} ms"
    )
    report(rows, table_s)
    document = {
        "facts": {
            "space": spec.name,
            "data": given.data,
            "widest_ms": widest_ms,
            "budget_ms": budget_ms,
            "widest_again_ms": widest_both_ms,
            "widest_of_rival_again_ms": rival_widest_ms,
            "table_and_calibration_s": table_s,
            "train_images": len(data.train),
            "validation_images": len(data.validation),
            "search": asdict(config.search),
            "finetuning": finetuning_of(given),
            "rival_epochs": rival_epochs(config.search, data),
            "rival_iterations": given.iterations,
            "rival_spaces": {name: RIVAL_SPACES[name] for name in given.rival_spaces.split(",")},
            "threads": given.threads,
            "quick": given.quick,
        },
        "rows": rows,
    }
    write_result("modelopt", document, given.out)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rival-python", default=os.environ.get("HWNAS_MODELOPT_PYTHON", ""))
    parser.add_argument("--data", default="digits", help="as in hwnas: digits, cifar10:FOLDER")
    parser.add_argument("--space", default="rnas-cl-xs")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--share", type=float, default=0.8, help="of what the widest takes")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--finetuning", type=int, default=16, help="epochs")
    parser.add_argument("--iterations", type=int, default=100, help="networks that modelopt draws")
    parser.add_argument("--rival-spaces", default="default,finer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs and iterations")
    parser.add_argument("--out", type=Path, help="another file for the figures")
    given = parser.parse_args()
    if not given.rival_python or not Path(given.rival_python).is_file():
        parser.error(
            "--rival-python names the Python of an environment with nvidia-modelopt; how it is "
            f"made is told at the top of {Path(__file__).name}"
        )
    unknown = set(given.rival_spaces.split(",")) - set(RIVAL_SPACES)
    if unknown:
        parser.error(f"unknown --rival-spaces {unknown}; known: {', '.join(RIVAL_SPACES)}")
    if given.quick:
        given.seeds, given.epochs, given.teacher_epochs = "0", 3, 1
        given.finetuning, given.iterations, given.rival_spaces = 2, 2, "default"
    return given


# Our side


def config_of(given: argparse.Namespace) -> RunConfig:
    """Return the settings of our side."""
    config = load_config(
        None,
        data=given.data,
        teacher={"epochs": given.teacher_epochs},
        search={"epochs": given.epochs, "attention_size": 8},
    )
    return replace(
        config,
        space=SpaceConfig(name=given.space),
        data=replace(config.data, flip=not given.data.startswith("digits")),
        training_threads=given.threads,
        accelerator="cpu",
    )


def new_table(space: ChannelSpace, path: Path, *, quick: bool) -> tuple[LatencyTable, float]:
    """Profile and calibrate; one table serves all seeds."""
    began = time.perf_counter()
    settings = TimingSettings.quick() if quick else TimingSettings()
    make_table(space, TARGET, path, threads=1, settings=settings)
    make_calibration(
        path,
        networks=4 if quick else 12,
        holdout=4 if quick else 24,
        settings=settings if quick else TimingSettings.for_networks(),
        seed=0,
    )
    return LatencyTable.read(path), time.perf_counter() - began


def latency_of_widest_ms(space: ChannelSpace) -> float:
    """Measure the network that both sides start from."""
    with profiler_for(TARGET) as profiler:
        (timing,) = profiler.time_networks(
            [space.workload(space.largest)], TimingSettings.for_networks()
        )
    return timing.statistics.median_us / 1e3


def run_hwnas(
    config: RunConfig,
    space: ChannelSpace,
    data: ImageData,
    table: LatencyTable,
    budget_ms: float,
    work: Path,
    given: argparse.Namespace,
) -> Found:
    """Teacher, search, derivation, fine-tuning: the stages as `hwnas run` composes them."""
    folder = work / f"hwnas-{config.seed}"
    folder.mkdir()
    seconds: dict[str, float] = {}

    @contextmanager
    def clocked(stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[stage] = time.perf_counter() - began

    budget = replace(config.budget, ms=budget_ms, fraction=None)
    config = replace(config, budget=budget)
    with clocked("teacher"):
        make_teacher(config, folder / "teacher")
    with clocked("supernet"):
        make_search(config, table.path, folder / "teacher", folder / "search")
    with clocked("search"):  # all that is left of it: choices are learned with the supernet
        derivation = make_derivation(
            folder / "search",
            table.path,
            Budgets(latency_ms=budget_ms),
            folder / "genotype.json",
            measure=True,
            settings=TimingSettings.for_networks(),
        )
    supernet = space.supernet()
    read_weights(folder / "search" / SUPERNET_FILE, supernet)
    network = space.network(derivation.genotype)
    network.load_state_dict(supernet.slim_state(derivation.genotype))
    with clocked("fine-tuning"):
        train_plainly(
            network,
            data.train.images,
            data.train.labels,
            **finetuning_of(given),
            seed=config.seed,
        )
    with clocked("export"):
        model = onnx_from_module(network.eval(), (1, *space.spec.image_shape))
    return Found(
        side="hwnas",
        seed=config.seed,
        model=model.SerializeToString(),
        params=derivation.params,
        seconds=seconds,
        own={
            "predicted_ms": derivation.predicted_ms,
            "measured_ms": derivation.measured_ms,
            "attempts": len(derivation.attempts),
            "genotype": derivation.genotype,
        },
    )


def finetuning_of(given: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the fine-tuning of both sides: half the supernet's rate."""
    return {**training_of(SearchConfig(), given), "epochs": given.finetuning, "learning_rate": 2e-3}


def training_of(search: SearchConfig, given: argparse.Namespace) -> dict[str, Any]:
    """Return how a supernet is trained, besides for how long."""
    return {
        "batch": search.batch,
        "learning_rate": search.learning_rate,
        "weight_decay": search.weight_decay,
        "pad": DataConfig().pad,
        "flip": not given.data.startswith("digits"),
    }


# Their side


def rival_epochs(search: SearchConfig, data: ImageData) -> int:
    """Return the epochs that see as many images as our search does over both its splits."""
    ours = search.epochs * len(data.train)
    ours += (search.epochs - search.warmup) * len(data.validation)
    return math.ceil(ours / len(data.train))


def run_rival(
    name: str,
    python: str,
    space: ChannelSpace,
    data: ImageData,
    seed: int,
    work: Path,
    given: argparse.Namespace,
) -> Found:
    """Hand modelopt its task, run it in its own environment, and take what it found."""
    folder = work / f"modelopt-{name}-{seed}"
    folder.mkdir()
    search = config_of(given).search
    mean, std = data.pixel_statistics()
    arrays = {
        f"{split}_{part}": getattr(getattr(data, split), part).numpy()
        for split in ("train", "validation")  # the test images stay here
        for part in ("images", "labels")
    }
    np.savez(folder / "data.npz", mean=np.float32(mean), std=np.float32(std), **arrays)
    task = {
        "network": network_task(space),
        "space": RIVAL_SPACES[name],
        "supernet": {**training_of(search, given), "epochs": rival_epochs(search, data)},
        "finetuning": finetuning_of(given),
        "budget": f"{100 * given.share:g}%",
        "iterations": given.iterations,
        "threads": given.threads,
        "seed": seed,
    }
    (folder / "task.json").write_text(json.dumps(task))
    environment = os.environ | {"OMP_NUM_THREADS": str(given.threads)}
    began = time.perf_counter()
    done = subprocess.run(
        [python, str(RIVAL), str(folder)],
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    whole_s = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(f"modelopt failed:\n{done.stdout[-4000:]}")
    result = json.loads((folder / "result.json").read_text())
    if result["widest_params"] != space.parameters(space.largest):
        raise SystemExit(
            f"both sides start from unlike networks: {result['widest_params']} and "
            f"{space.parameters(space.largest)} parameters"
        )
    (folder / "widest.onnx").replace(work / RIVAL_WIDEST)
    own = {key: value for key, value in result.items() if key not in ("seconds", "params")}
    return Found(
        side=f"modelopt, {name} space",
        seed=seed,
        model=(folder / "network.onnx").read_bytes(),
        params=result["params"],
        seconds=result["seconds"],
        own=own | {"whole_process_s": whole_s},
    )


def network_task(space: ChannelSpace) -> dict[str, Any]:
    """Describe the widest network, block by block: input, output and hidden channels, stride."""
    spec = space.spec
    width_in, stages = spec.stem, []
    for stage in spec.stages:
        blocks = []
        for index in range(stage.blocks):
            expansion = spec.expansion if stage.expansion is None else stage.expansion
            stride = stage.stride if index == 0 else 1
            hidden = hidden_width(width_in, expansion)
            blocks.append([width_in, stage.widths[0], hidden, stride])
            width_in = stage.widths[0]
        stages.append(blocks)
    return {
        "stem": spec.stem,
        "stem_stride": spec.stem_stride,
        "stages": stages,
        "classes": spec.classes,
    }


def report(rows: Sequence[Mapping[str, Any]], table_s: float) -> None:
    """Print the mean over seeds of each side."""
    say(f"table and calibration of hwnas, once: {table_s:.1f} s")
    say("side                     latency / budget      accuracy        params  seconds by stage")
    for side in dict.fromkeys(row["side"] for row in rows):
        own = [row for row in rows if row["side"] == side]
        shares = [row["share_of_budget"] for row in own]
        accuracies = [row["accuracy"] for row in own]
        stages = "  ".join(
            f"{stage} {np.mean([row['seconds'][stage] for row in own]):.1f}"
            for stage in own[0]["seconds"]
        )
        say(
            f"{side:<24} {100 * np.mean(shares):5.1f} % ({100 * min(shares):.1f}-"
            f"{100 * max(shares):.1f})  {100 * np.mean(accuracies):5.2f} % "
            f"({100 * min(accuracies):.2f}-{100 * max(accuracies):.2f})  "
            f"{np.mean([row['params'] for row in own]):8.0f}  {stages}  n={len(own)}"
        )
        if "satisfied" in own[0]["own"]:
            each_s = np.mean([row["own"]["drawing_s"] / row["own"]["iterations"] for row in own])
            satisfied = [row["own"]["satisfied"] for row in own]
            say(
                f"    {each_s:.2f} s per network drawn (its default of 5,000: "
                f"{each_s * 5_000 / 3600:.1f} h); within its bounds: {satisfied} of "
                f"{own[0]['own']['iterations']}; its own readings, widest and found: "
                + ", ".join(
                    f"{row['own']['own_widest_ms']:.4f} and {row['own']['own_latency_ms']:.4f} ms"
                    for row in own
                )
            )


if __name__ == "__main__":
    main()
