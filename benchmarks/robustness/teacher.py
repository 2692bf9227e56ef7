"""A robust teacher for CIFAR-10 on CPU: how long it takes, and what AutoAttack leaves of it.

    python benchmarks/robustness/teacher.py --data cifar10:FOLDER --work FOLDER
        [--config benchmarks/robustness/teacher.toml] [--images 1000] [--attacks pgd,autoattack]
        [--attack-threads N] [--epochs N] [--out FILE]

A run that was killed and is started again goes on where it was: in training after the last epoch,
in an attack after the last batch. Four parts:

1. train: `hwnas teacher` with the settings of --config. After every epoch a line on stderr tells
   its accuracy, clean and under PGD on held-out images, and its seconds, which --work keeps.
2. limit: what the same network reaches where nothing but forward and backward passes is computed,
   in the same precision and batch, timed in shuffled rounds beside whole adversarial steps.
3. attack: attacks on --images test images, drawn by the seed. Nothing before has seen them.
4. the result, as JSON: settings, history, seconds of every part, samples per second beside the
   limit, and the table of the attacks.

Seconds of training are those of finished epochs with their judging; what a killed run lost is not
in them. Beside the seconds on the wall stand those of the process's own computing, of all its
threads: on a machine that others use, they tell how much of it the training got.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from hwnas.cli.progress import open_progress
from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance
from hwnas.core.threads import torch_threads
from hwnas.data.images import batches, pixels_from_bytes
from hwnas.data.sources import load_data
from hwnas.distill.teacher import load_teacher
from hwnas.robustness.attacks.table import run_attacks
from hwnas.space.memory_format import channels_last
from hwnas.stages.config import load_config
from hwnas.stages.teacher import make_teacher
from hwnas.training.precision import in_precision
from hwnas.training.robust import robust_loss
from hwnas_export.runner import host_sampler
from hwnas_profilers.timing import TimingSettings, time_interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from hwnas.core.progress import Progress
    from hwnas.data.images import ImageData
    from hwnas.stages.config import RunConfig

HERE = Path(__file__).parent
RESULT = HERE.parent / "results" / "robustness" / "teacher.json"
ATTACK_BATCH = 250
TIMED = 15
"""Samples of each step that is timed."""


class EpochLog:
    """Tells each epoch on stderr, and keeps its figures and seconds, one line of JSON each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._since, self._computed = time.monotonic(), time.process_time()

    def log(self, name: str, figures: Mapping[str, float], *, epoch: int) -> None:
        """Take the figures of one epoch: see `MetricLog`."""
        now, computed = time.monotonic(), time.process_time()
        line = {
            "epoch": epoch,
            "seconds": now - self._since,
            "processor_seconds": computed - self._computed,
            **figures,
        }
        self._since, self._computed = now, computed
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = ", ".join(f"{key} {value:.4g}" for key, value in line.items())
        say(f"{time.strftime('%H:%M:%S')} {name}: {shown}")

    def seconds(self, clock: str = "seconds") -> dict[int, float]:
        """Return the seconds of every epoch; of one that was run twice, those of the last time."""
        if not self._path.exists():
            return {}
        lines = map(json.loads, self._path.read_text(encoding="utf-8").splitlines())
        return {line["epoch"]: line[clock] for line in lines}


def say(text: str) -> None:
    """Print a line to stderr at once."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def endless_batches(
    data: ImageData, config: RunConfig, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through the training split as training does, again and again."""
    while True:
        yield from batches(
            data.train, config.teacher.batch, generator, pad=config.data.pad, flip=config.data.flip
        )


def measured_limit(network: nn.Module, data: ImageData, config: RunConfig) -> dict[str, Any]:
    """Time a bare forward and backward, and a whole adversarial step, of the trained network."""
    settings = config.teacher
    channels_last(network).requires_grad_(requires_grad=True)
    generator = torch.Generator().manual_seed(config.seed)
    stream = endless_batches(data, config, generator)
    images, labels = next(stream)
    forward = in_precision(network, settings.training_precision)

    def step(loss_of: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            network.train()
            network.zero_grad(set_to_none=True)
            loss_of().backward()  # type: ignore[no-untyped-call]

        return run

    def adversarial() -> Tensor:
        return robust_loss(
            settings.robust,
            forward,
            network.train,
            images,
            labels,
            None,
            settings=settings,
            eps=config.threat.eps_pixels,
            generator=generator,
        ).mean()

    steps = {
        "forward and backward": step(lambda: functional.cross_entropy(forward(images), labels)),
        "adversarial step": step(adversarial),
        "batch and augmentation": lambda: next(stream),
    }
    timing = TimingSettings(
        relative_width=1e-6,  # never reached: each gets the same number of samples
        min_samples=TIMED,
        max_samples=TIMED,
        samples_per_round=1,
        warmup_calls=2,
        min_sample_us=0.0,
        max_disturbed=0.0,
    )
    found = time_interleaved([host_sampler(call) for call in steps.values()], timing)
    network.eval().requires_grad_(requires_grad=False)
    median_s = {name: float(np.median(each.samples_us)) / 1e6
                for name, each in zip(steps, found, strict=True)}  # fmt: skip
    return {
        "batch": settings.batch,
        "precision": settings.training_precision,
        "n": TIMED,
        "median_s": median_s,
        "images_per_s": {name: settings.batch / each for name, each in median_s.items()},
    }


def attacked(
    network: nn.Module,
    data: ImageData,
    config: RunConfig,
    names: tuple[str, ...],
    count: int,
    state: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Attack test images, drawn by the seed."""
    chosen = data.test.subset(count, torch.Generator().manual_seed(config.seed))
    began = time.monotonic()
    outcome = run_attacks(
        network,
        pixels_from_bytes(chosen.images).numpy(),
        chosen.labels.numpy(),
        config.threat,
        attacks=names,
        seed=config.seed,
        batch=ATTACK_BATCH,
        state=state,
        progress=progress,
    )
    return {"table": outcome.table, "seconds_of_this_run": time.monotonic() - began}


def main() -> None:
    """Train, time, attack, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="cifar10:FOLDER")
    parser.add_argument("--work", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--config", type=Path, default=HERE / "teacher.toml")
    parser.add_argument("--images", type=int, default=1000, help="test images that are attacked")
    parser.add_argument("--attacks", default="pgd,autoattack")
    parser.add_argument("--attack-threads", type=int, default=0, help="0: those of the training")
    parser.add_argument("--epochs", type=int, help="others than the settings have")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()

    config = load_config(given.config, data=given.data, teacher={"epochs": given.epochs})
    config = replace(config, accelerator="cpu")
    given.work.mkdir(parents=True, exist_ok=True)
    folder = given.work / "teacher"
    log = EpochLog(given.work / "epochs.jsonl")
    with open_progress() as progress:
        trained = make_teacher(config, folder, log=log, progress=progress)
        network = load_teacher(folder, attention_size=config.search.attention_size).network
        data = load_data(config.data)
        with torch_threads(config.training_threads):
            limit = measured_limit(network, data, config)
        with torch_threads(given.attack_threads or config.training_threads):
            found = attacked(
                network,
                data,
                config,
                tuple(given.attacks.split(",")),
                given.images,
                given.work / "attacks",
                progress,
            )
    seconds = log.seconds()
    epoch_s = float(np.mean(list(seconds.values())))
    images_per_s = len(data.train) / epoch_s
    document = {
        "benchmark": "robustness/teacher",
        "settings": config.teacher,
        "data": {"train": len(data.train), "validation": len(data.validation)},
        "teacher": trained,
        "history": json.loads((folder / "history.json").read_text(encoding="utf-8")),
        "epoch_seconds": {str(epoch): each for epoch, each in sorted(seconds.items())},
        "train_seconds": sum(seconds.values()),
        "train_processor_seconds": sum(log.seconds("processor_seconds").values()),
        "images_per_s": images_per_s,
        "share_of_limit": images_per_s / limit["images_per_s"]["forward and backward"],
        "limit": limit,
        "attacks": found,
        "threads": config.training_threads or torch.get_num_threads(),
        "provenance": provenance(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out, encode_json(document, indent=1))
    say(f"written: {given.out}")


if __name__ == "__main__":
    main()
