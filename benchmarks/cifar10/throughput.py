"""Images per second of each stage of the CIFAR-10 study, beside what its networks allow here.

    python benchmarks/cifar10/throughput.py [--scale cpu] [--samples 15] [--threads N]
        [--stages teacher,rslad,...] [--quick] [--out FILE]

Settings are those of the study: its files are read as `hwnas study run --scale` reads them. Images
are random bytes of CIFAR-10's shape and number, as speed does not depend on what they show; so are
the figures of the latency table. One process, of as many threads as the study gives a training.

A stage is the study's own code, `train_teacher`, `search_supernet` or `train_student`, which waits
after each step: a sample is all from one step's report to the next one's, batch, augmentation,
losses, optimizer and averages included. Beside it stands its limit: the passes that the step cannot
do without, each timed bare, on one batch that is there, with a plain loss and nothing else:

- T, S, W: the teacher, the student, and the widest network of the space, which holds all that the
  supernet shares.
- `forward`: in eval mode, without gradients; `attack`: forward, and backward to the images;
  `train`: forward and backward to the weights, `train 2N` that of two batches at once; `choose`:
  forward and backward in training mode, but to no weight: choices get their gradient on the way.

| stage          | its limit                                    |
|----------------|----------------------------------------------|
| teacher        | T attack + T train                           |
| search weights | T forward + W train                          |
| search choices | T forward + W choose                         |
| ce             | S train                                      |
| ce+kl+at       | T forward + S train                          |
| rslad          | T forward + S attack per step + S train 2N   |
| trades         | S forward + S attack per step + S train 2N   |

All are timed in shuffled rounds, one sample of each per round. Shares are taken round by round.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))  # what the benchmarks of the search share

from search._shared import made_up_table, new_teacher, say, spread, timed_ms, write_result

from hwnas.core.threads import torch_threads
from hwnas.data.images import ImageData, Split, batches
from hwnas.distill.tutors import fixed_tutors
from hwnas.latency.resources import SpaceCosts
from hwnas.search.rnas_cl import search_supernet
from hwnas.space.memory_format import channels_last
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.study.architectures import architecture
from hwnas.study.plan import read_study
from hwnas.training.precision import in_precision
from hwnas.training.processes import Processes
from hwnas.training.student import train_student
from hwnas.training.teacher import train_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from hwnas.core.progress import Progress, Task
    from hwnas.stages.config import RunConfig
    from hwnas.training.precision import TrainingPrecision

HERE = Path(__file__).parent
RESULT = HERE / "results" / "throughput.json"
QUESTION = HERE / "method.toml"
IMAGE_SHAPE, CLASSES, TRAIN, VALIDATION = (3, 32, 32), 10, 45_000, 5_000

TEACHER, WEIGHTS, CHOICES = "teacher", "search weights", "search choices"
# By stage, the arm of the question that trains so.
ARMS = {"ce": "ce", "ce+kl+at": "tutors-searched", "rslad": "rslad", "trades": "trades"}
STAGES = (TEACHER, WEIGHTS, CHOICES, *ARMS)
BATCH = "batch and augmentation"


_ARENA_MAX = -8  # from glibc's malloc.h


def allocate_as_one_thread() -> None:
    """Let all threads allocate from where the main one does, in which a study trains."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


class Ended(BaseException):
    """Ends a stage that is timed no more, whatever it would catch."""


class Stage:
    """A training that takes one step per call.

    It runs in a thread of its own, as it would anywhere, and waits in its report of each step.

    Args:
        run: Runs it, reporting to what it is given.
        threads: Threads that it computes with.
    """

    def __init__(self, run: Callable[[Progress], object], threads: int) -> None:
        self._turn, self._reported = threading.Semaphore(0), threading.Semaphore(0)
        self._closed, self._error = False, ""
        self._thread = threading.Thread(target=self._run, args=(run, threads), daemon=True)

    def __call__(self) -> None:
        """Go on to the next report."""
        if self._thread.ident is None:
            self._thread.start()
        self._turn.release()
        self._reported.acquire()
        if self._error:
            raise RuntimeError(self._error)

    def close(self) -> None:
        """End it."""
        self._closed = True
        if self._thread.is_alive():
            self._turn.release()
            self._thread.join()

    # As `Progress`, and its tasks

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[Task]:
        """Begin a task."""
        yield self

    def say(self, message: str) -> None:
        """Leave it out."""

    def advance(self, steps: float = 1, note: str = "") -> None:
        """Report a step, and wait until the next is wanted."""
        if steps:
            self._reported.release()
            self._turn.acquire()
            if self._closed:
                raise Ended

    def _run(self, run: Callable[[Progress], object], threads: int) -> None:
        self._turn.acquire()
        try:
            with torch_threads(threads):
                run(self)
            self._error = "it ended while it was timed: give it more images"
        except Ended:
            pass
        except Exception as error:  # told where the next sample is asked for
            self._error = f"{type(error).__name__}: {error}"
        self._reported.release()


class Bare:
    """Passes of a network on a batch, and nothing else.

    Args:
        network: The network.
        images: (batch, channels, height, width), channels last.
        labels: (batch,)
        precision: What it computes in.
    """

    def __init__(
        self, network: nn.Module, images: Tensor, labels: Tensor, precision: TrainingPrecision
    ) -> None:
        self._network = channels_last(network)
        self._forward = in_precision(network, precision)
        self._images, self._labels = images, labels
        self._twice = torch.cat([images, images]), torch.cat([labels, labels])

    def forward(self) -> None:
        """Compute logits."""
        self._network.eval()
        with torch.inference_mode():
            self._forward(self._images)

    def attack(self) -> None:
        """Compute the gradient of the images."""
        self._network.eval()
        self._to_images()

    def choose(self) -> None:
        """Compute the gradient of all activations, and of no weight."""
        self._network.train()
        self._to_images()

    def train(self) -> None:
        """Compute the gradient of the weights."""
        self._to_weights(self._images, self._labels)

    def train_both(self) -> None:
        """Compute it on two batches."""
        self._to_weights(*self._twice)

    def _to_images(self) -> None:
        images = self._images.detach().requires_grad_()
        loss = functional.cross_entropy(self._forward(images), self._labels)
        torch.autograd.grad(loss, images)

    def _to_weights(self, images: Tensor, labels: Tensor) -> None:
        self._network.train().zero_grad(set_to_none=True)
        torch.autograd.backward(functional.cross_entropy(self._forward(images), labels))


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What is timed together.

    Attributes:
        stages: By name.
        passes: Bare passes, by name.
        limits: By stage, the passes that it needs, each as often as it needs it.
        batches: By stage, images of a step.
        facts: What is trained.
    """

    stages: dict[str, Stage]
    passes: dict[str, Callable[[], object]]
    limits: dict[str, tuple[str, ...]]
    batches: dict[str, int]
    facts: dict[str, Any]


def random_split(count: int, seed: int) -> Split:
    """Draw images and labels."""
    generator = torch.Generator().manual_seed(seed)
    return Split(
        images=torch.randint(256, (count, *IMAGE_SHAPE), dtype=torch.uint8, generator=generator),
        labels=torch.randint(CLASSES, (count,), generator=generator),
    )


def data_of_random(train: Split, validation: Split) -> ImageData:
    """Make them a data set."""
    return ImageData(
        name="random",
        train=train,
        validation=validation,
        test=validation,
        class_names=tuple(map(str, range(CLASSES))),
    )


def prepared(configs: Mapping[str, RunConfig], data: ImageData, threads: int, work: Path) -> Timed:
    """Prepare every stage and every pass."""
    base = configs[ARMS["ce+kl+at"]]
    space = space_from_spec(space_spec(base.space.name, image_shape=IMAGE_SHAPE, classes=CLASSES))
    costs = SpaceCosts(space, made_up_table(space))
    budgets = base.budget.resolve(costs)
    genotype = architecture("uniform", costs, budgets, np.random.default_rng(base.seed))
    wanted, size = base.teacher, base.search.attention_size
    precision: TrainingPrecision = "bf16" if wanted.precision == "bf16" else "fp32"
    teacher = new_teacher(space, wanted.width, wanted.blocks, size, precision)

    def images_of(batch: int) -> tuple[Tensor, Tensor]:
        return next(batches(data.train, batch, torch.Generator().manual_seed(0)))

    def bare(network: nn.Module, batch: int, precision: TrainingPrecision) -> Bare:
        return Bare(network, *images_of(batch), precision)

    def teachers(batch: int, precision: TrainingPrecision) -> Bare:
        network = new_teacher(space, wanted.width, wanted.blocks, size, "fp32").network
        return bare(network.requires_grad_(requires_grad=True), batch, precision)

    def search(part: ImageData, name: str) -> Callable[[Progress], object]:
        return lambda progress: search_supernet(
            space, costs, teacher, part, base.data, base.search, budgets=budgets, seed=base.seed,
            checkpoint=work / name, inputs={}, processes=Processes(accelerator="cpu"),
            threat=base.threat, progress=progress,
        )  # fmt: skip

    def training(config: RunConfig, name: str) -> Callable[[Progress], object]:
        network = space.network(genotype)
        network.normalize.set_statistics(*data.pixel_statistics())
        layers = len(network.tap_names), len(teacher.layers)
        tutors = fixed_tutors("depth", *layers, torch.Generator()).tolist()
        return lambda progress: train_student(
            network, tutors, teacher, data, config.data, config.threat, config.train,
            seed=config.seed, checkpoint=work / name, inputs={}, progress=progress,
        )  # fmt: skip

    runs: dict[str, Callable[[Progress], object]] = {
        TEACHER: lambda progress: train_teacher(
            data, base.data, base.threat, wanted, seed=base.seed, checkpoint=work / TEACHER,
            progress=progress,
        ),
        WEIGHTS: search(data, WEIGHTS),
        # One step of weights on two images, then choices.
        CHOICES: search(
            data_of_random(random_split(2, seed=2), data.train), CHOICES
        ),
        **{name: training(configs[arm], name) for name, arm in ARMS.items()},
    }  # fmt: skip
    trained = teachers(wanted.batch, wanted.training_precision)
    searching = teachers(base.search.batch, precision)
    teaching = teachers(base.train.batch, precision)
    widest = bare(space.network(space.largest), base.search.batch, base.search.precision)
    student = bare(space.network(genotype), base.train.batch, base.train.training_precision)
    stream = endless(data, base)
    passes: dict[str, Callable[[], object]] = {
        BATCH: lambda: next(stream),
        "T attack": trained.attack,
        "T train": trained.train,
        "T forward, searching": searching.forward,
        "T forward": teaching.forward,
        "W train": widest.train,
        "W choose": widest.choose,
        "S forward": student.forward,
        "S attack": student.attack,
        "S train": student.train,
        "S train 2N": student.train_both,
    }
    attacks = {name: ("S attack",) * configs[arm].train.attack_steps for name, arm in ARMS.items()}
    limits = {
        TEACHER: ("T attack", "T train"),
        WEIGHTS: ("T forward, searching", "W train"),
        CHOICES: ("T forward, searching", "W choose"),
        "ce": ("S train",),
        "ce+kl+at": ("T forward", "S train"),
        "rslad": ("T forward", *attacks["rslad"], "S train 2N"),
        "trades": ("S forward", *attacks["trades"], "S train 2N"),
    }
    return Timed(
        stages={name: Stage(run, threads) for name, run in runs.items()},
        passes=passes,
        limits=limits,
        batches={
            TEACHER: wanted.batch,
            WEIGHTS: base.search.batch,
            CHOICES: base.search.batch,
            **{name: configs[arm].train.batch for name, arm in ARMS.items()},
        },
        facts={
            "space": space.spec.name,
            "options": genotype.label,
            "parameters": {
                "teacher": parameters(teacher.network),
                "student": parameters(space.network(genotype)),
                "widest": parameters(space.network(space.largest)),
            },
            "teacher_robust": wanted.robust,
            "attack_steps": {name: len(each) for name, each in attacks.items()},
            "precisions": {
                "teacher trains": wanted.training_precision,
                "teacher teaches": precision,
                "search": base.search.precision,
                "student": base.train.training_precision,
            },
        },
    )


def parameters(network: nn.Module) -> int:
    """Count a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def endless(data: ImageData, config: RunConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through the training split as training does, again and again."""
    generator = torch.Generator().manual_seed(config.seed)
    while True:
        yield from batches(
            data.train, config.train.batch, generator, pad=config.data.pad, flip=config.data.flip
        )


def report(timed: Timed, times_ms: Mapping[str, Any], wanted: tuple[str, ...]) -> dict[str, Any]:
    """Print every stage beside its limit, and return the figures."""
    say(f"{'stage':<16} {'images/s':>9} {'limit':>9}   share of the limit (p10-p90)")
    found = {}
    for name in wanted:
        batch = timed.batches[name]
        limit_ms = sum(times_ms[each] for each in timed.limits[name])
        speed, limit = (spread(1e3 * batch / each) for each in (times_ms[name], limit_ms))
        share = spread(limit_ms / times_ms[name])
        found[name] = {
            "batch": batch,
            "passes": timed.limits[name],
            "images_per_s": speed,
            "limit_images_per_s": limit,
            "share_of_limit": share,
        }
        say(
            f"{name:<16} {speed['median']:9.0f} {limit['median']:9.0f}   {share['median']:6.1%} "
            f"({share['p10']:.1%}-{share['p90']:.1%}), n={share['n']}"
        )
    for name in timed.passes:
        if name in times_ms:
            each = spread(times_ms[name])
            say(f"  {name:<24} {each['median']:8.1f} ms ({each['p10']:.1f}-{each['p90']:.1f})")
    return found


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", default="cpu", help="scale of the study")
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="0: those of the study")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--quick", action="store_true", help="the scale `smoke`, few samples")
    parser.add_argument("--out", type=Path, default=RESULT, help="another file for the figures")
    given = parser.parse_args()
    allocate_as_one_thread()
    if given.quick:
        given.scale, given.samples = "smoke", 6
    wanted = tuple(given.stages.split(","))
    for name in wanted:
        if name not in STAGES:
            parser.error(f"there is no stage `{name}`: {', '.join(STAGES)}")

    configs = read_study(QUESTION, given.scale).configs
    threads = given.threads or configs[ARMS["ce"]].training_threads or torch.get_num_threads()
    train, validation = (5_000, 500) if given.quick else (TRAIN, VALIDATION)
    data = data_of_random(random_split(train, seed=0), random_split(validation, seed=1))
    with torch_threads(threads), tempfile.TemporaryDirectory() as work:
        timed = prepared(configs, data, threads, Path(work))
        needed = {BATCH, *(each for name in wanted for each in timed.limits[name])}
        rivals: dict[str, Callable[[], object]] = {
            name: call for name, call in timed.passes.items() if name in needed
        }
        rivals |= {name: timed.stages[name] for name in wanted}
        # A stage's first call runs to its first report, and the second one is a step like others:
        # both are among those that warm up.
        times_ms = timed_ms(rivals, given.samples, warmup=3)
        for stage in timed.stages.values():
            stage.close()
    document = {
        "benchmark": "cifar10/throughput",
        "facts": {"scale": given.scale, "threads": threads, "images": train, **timed.facts},
        "stages": report(timed, times_ms, wanted),
        "samples_ms": {name: each.tolist() for name, each in times_ms.items()},
    }
    write_result("throughput", document, given.out)


if __name__ == "__main__":
    main()
