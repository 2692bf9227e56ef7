"""What the benchmarks of the search share: steps ready to be timed, interleaved timing, results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance
from hwnas.data.images import ImageData, Split
from hwnas.data.sources import DataConfig
from hwnas.distill.teacher import Teacher
from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec
from hwnas.latency.resources import SpaceCosts
from hwnas.search.budget import Budgets
from hwnas.search.steps import SearchSteps
from hwnas.training.processes import Processes
from hwnas_export.runner import host_sampler
from hwnas_profilers.records import Measurement, Statistics, TableHeader
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.timing import TimingSettings, time_interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from hwnas.distill.teacher import Precision
    from hwnas.search.rnas_cl import SearchConfig
    from hwnas.space.chain_space import ChainSpace

    Floats = NDArray[np.float64]

RESULTS = Path(__file__).parents[1] / "results" / "search"
IMAGES = Path(__file__).parents[2] / "docs" / "images"
TEMPERATURE = 1.0


def write_result(name: str, document: Mapping[str, Any], out: Path | None = None) -> Path:
    """Write a benchmark's raw figures, with the machine and the versions, all or nothing."""
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"benchmark": f"search/{name}", **document, "provenance": provenance()}
    write_atomically(path, encode_json(whole, indent=1))
    say(f"written: {path}")
    return path


def say(text: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def timed_ms(
    rivals: Mapping[str, Callable[[], object]], samples: int, *, warmup: int = 2, seed: int = 0
) -> dict[str, Floats]:
    """Time calls in shuffled rounds, one sample of each per round.

    The n-th samples of all are of the same round, so ratios may be taken round by round: what
    slows the machine for longer than a round then cancels.

    Returns:
        Milliseconds per call by name, (samples,) each.
    """
    settings = TimingSettings(
        relative_width=1e-6,  # never reached: every rival gets the same number of samples
        min_samples=samples,
        max_samples=samples,
        samples_per_round=1,
        warmup_calls=warmup,
        min_sample_us=0.0,
        max_disturbed=0.0,  # nothing is dropped, or samples would no longer be of one round
        seed=seed,
    )
    found = time_interleaved([host_sampler(call) for call in rivals.values()], settings)
    return {name: each.samples_us / 1e3 for name, each in zip(rivals, found, strict=True)}


def spread(values: Floats) -> dict[str, float]:
    """Return median, 10th and 90th percentile."""
    low, median, high = np.percentile(values, [10, 50, 90])
    return {"median": float(median), "p10": float(low), "p90": float(high), "n": len(values)}


def made_up_table(space: ChainSpace, seed: int = 0) -> LatencyTable:
    """Make a table in memory by a law: what is timed with it does not depend on its figures.

    An operator takes a constant, its multiply-accumulates, and 10 % of noise, so that no two
    networks take the same, as in tables that were measured.
    """
    generator = np.random.default_rng(seed)

    def one_statistic(median_us: float) -> Statistics:
        ends = dict.fromkeys(("low_us", "high_us", "min_us", "p10_us", "p90_us"), median_us)
        return Statistics(n=60, median_us=median_us, **ends)

    keys = [operator.key for operator in space.operators()]
    times_us = [(2.0 + space.macs_of(key) / 20_000) * generator.lognormal(0.0, 0.1) for key in keys]
    return LatencyTable(
        path=Path("made-up.jsonl"),
        header=TableHeader(
            target="onnxruntime-cpu",
            space=space.spec.name,
            space_spec={},
            space_fingerprint=space.spec.fingerprint,
            threads=1,
            batch=1,
            dtype="fp32",
            settings={},
            provenance=provenance(),
        ),
        measurements={
            key: Measurement(key=key, statistics=one_statistic(time_us))
            for key, time_us in zip(keys, times_us, strict=True)
        },
        calibration=None,
    )


def middle_budget(costs: SpaceCosts, fraction: float = 0.5) -> Budgets:
    """Return a bound at a place between the fastest (0) and the slowest network (1)."""
    low, high = costs.latency.range_ms()
    return Budgets(latency_ms=low + fraction * (high - low))


def random_scores(space: ChainSpace, seed: int, *, spread_of_logits: float = 1.5) -> list[Floats]:
    """Return log-probabilities of random logits, of each block in the order of its options.

    Options are listed from the largest down, so larger ones score higher, as they do in a search,
    by steps that are random. So the best network of all is the largest, and every budget binds.
    """
    generator = np.random.default_rng(seed)
    scores = []
    for options in space.options:
        logits = np.sort(generator.normal(0.0, spread_of_logits, len(options)))[::-1]
        scores.append(logits - np.log(np.exp(logits).sum()))
    return scores


def one_batch(space: ChainSpace, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make images and labels for a space: what a step takes does not depend on what they show."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, *space.spec.image_shape, generator=generator)
    labels = torch.randint(space.spec.classes, (batch,), generator=generator)
    return images.contiguous(memory_format=torch.channels_last), labels


def new_teacher(
    space: ChainSpace, width: int, blocks: tuple[int, ...], size: int, precision: Precision
) -> Teacher:
    """Build an untrained residual teacher: what a step takes does not depend on its weights."""
    image_shape, classes = space.spec.image_shape, space.spec.classes
    spec = TeacherSpec(image_shape=image_shape, classes=classes, width=width, blocks=blocks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TeacherNetwork(spec)
    return Teacher(
        network,
        network.tap_names,
        image_shape=image_shape,
        classes=classes,
        attention_size=size,
        precision=precision,
    )


class ReadySteps:
    """The steps of a search over random images, ready to be timed.

    All that the benchmarks know of the search's inner parts is here.
    """

    def __init__(
        self, space: ChainSpace, teacher: Teacher, config: SearchConfig, *, seed: int = 0
    ) -> None:
        self.images, self.labels = one_batch(space, config.batch, seed)
        self.costs = SpaceCosts(space, made_up_table(space))
        bytes_ = (self.images * 255).to(torch.uint8)
        split = Split(images=bytes_, labels=self.labels)
        data = ImageData(
            name="random",
            train=split,
            validation=split,
            test=split,
            class_names=tuple(map(str, range(space.spec.classes))),
        )
        self._steps = SearchSteps(
            space,
            self.costs,
            teacher,
            data,
            DataConfig(),
            config,
            middle_budget(self.costs),
            seed=seed,
            processes=Processes(accelerator="cpu"),
        )
        self._generator = torch.Generator().manual_seed(seed)

    def step_weights(self) -> None:
        """Take one step of the weights."""
        self._steps.step_weights(*self._arguments())

    def step_choices(self) -> None:
        """Take one step of the choices."""
        self._steps.step_choices(*self._arguments())

    def latency_term(self) -> None:
        """Compute the latency's part of a step of the choices, forward and backward, alone."""
        choices, budget = self._steps.choices, self._steps.budget
        choices.requires_grad_(requires_grad=True)
        choices.zero_grad(set_to_none=True)
        size = torch.ones(())
        torch.autograd.backward(budget.constrain(size, choices.probabilities()) - size)

    def _arguments(self) -> tuple[Tensor, Tensor, int, float, torch.Generator]:
        return self.images, self.labels, len(self.labels), TEMPERATURE, self._generator
