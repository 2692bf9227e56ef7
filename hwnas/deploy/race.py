"""Engines and rivals timed in one interleaved run per batch, after their outputs were compared."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.errors import ConfigError, HwnasError
from hwnas.core.progress import SILENT, Progress
from hwnas.core.threads import torch_threads
from hwnas.deploy.rivals import COMPILED

# Not for type checking alone: msgspec evaluates the annotations when it decodes.
from hwnas_profilers.records import Statistics
from hwnas_profilers.statistics import summarize
from hwnas_profilers.timing import RoundLog, TimingSettings, time_interleaved

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from hwnas.deploy.rivals import Contestant
    from hwnas_export.runner import Runner, Sampler

RELATIVE_L2 = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.5}
"""How far outputs may be from the network's, as a share of their norm, by precision.

Rounding stays well below; the logits of another network are about as far away as they are long.
"""

_REASON_LETTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """What one contestant took for one size of batch.

    Attributes:
        batch: Images per call.
        name: The contestant.
        kind: `engine` or `rival`.
        precision: Of its arithmetic.
        threads: Threads that it was given; 0 where it chooses.
        ready_s: Seconds until its first outputs were there: loading, compiling and one call.
        relative_l2: Distance of its outputs from the network's, as a share of their norm.
        latency: Of one call.
        images_per_s: Images per second at the median latency, calls one after the other.
        samples_us: All samples, in order of time.
    """

    batch: int
    name: str
    kind: str
    precision: str
    threads: int
    ready_s: float
    relative_l2: float
    latency: Statistics
    images_per_s: float
    samples_us: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """A contestant that was not timed, and why."""

    batch: int
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """What was found.

    Attributes:
        lanes: Those that were timed, by batch, in the order of the contestants.
        absent: Those that were not.
        rounds: Rounds that were kept, over all batches.
        noisy_rounds: Those of them in which the machine was disturbed.
    """

    lanes: tuple[Lane, ...]
    absent: tuple[Absence, ...]
    rounds: int
    noisy_rounds: int


def race(
    contestants: Sequence[Contestant],
    twin: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    batches: Sequence[int],
    threads: int,
    settings: TimingSettings,
    compile_limit_s: float,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Race:
    """Time contestants side by side, for each size of batch in a run of its own.

    All are given the same seeded random pixels in [0, 1]. Who computes something else than the
    twin, fails, or takes too long to compile is named, and not timed.

    Args:
        contestants: Engines and rivals.
        twin: The network in PyTorch.
        image_shape: (channels, height, width).
        batches: Images per call.
        threads: Threads of PyTorch meanwhile.
        settings: How long to time.
        compile_limit_s: Seconds that torch.compile gets for each batch; 0 leaves it out.
        seed: Of the pixels.
        progress: Where to report.

    Raises:
        ConfigError: A batch is below 1, named twice, or there is none.
    """
    if not batches or len(set(batches)) < len(batches) or min(batches) < 1:
        raise ConfigError(
            f"batches are {', '.join(map(str, batches)) or 'none'}: not each once, and at least 1",
            hint="images per call, e.g. `--batches 1,8,64`",
        )
    lanes: list[Lane] = []
    absent: list[Absence] = []
    log = RoundLog()
    generator = np.random.default_rng(seed)
    with torch_threads(threads):
        for batch in batches:
            images = generator.random((batch, *image_shape), dtype=np.float32)
            expected = _logits(twin, images)
            with ExitStack() as stack:
                entrants: list[_Entrant] = []
                for each in contestants:
                    try:
                        entrants.append(_enter(each, images, expected, compile_limit_s, stack))
                    except _AbsentError as error:
                        progress.say(f"bench: batch {batch}: {each.name} is not timed: {error}")
                        absent.append(Absence(batch=batch, name=each.name, reason=str(error)))
                samplers = [entrant.sampler for entrant in entrants]
                timed = time_interleaved(samplers, settings, log=log, progress=progress)
            lanes += [
                _lane(entrant, batch, one.samples_us)
                for entrant, one in zip(entrants, timed, strict=True)
            ]
    return Race(lanes=tuple(lanes), absent=tuple(absent), rounds=log.kept, noisy_rounds=log.noisy)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entrant:
    """A contestant that is ready to be timed."""

    contestant: Contestant
    sampler: Sampler
    ready_s: float
    relative_l2: float


class _AbsentError(Exception):
    """Why a contestant is not timed."""


class _TooSlow(BaseException):
    """Raised in the midst of a compiler, which takes no plain exception for the end of it."""


def _enter(
    contestant: Contestant,
    images: NDArray[np.float32],
    expected: NDArray[np.float32],
    compile_limit_s: float,
    stack: ExitStack,
) -> _Entrant:
    """Open a contestant on the stack, and compare its outputs."""
    smallest, largest = contestant.batches
    if not smallest <= len(images) <= largest:
        raise _AbsentError(f"it takes batches from {smallest} to {largest}")
    limit_s = compile_limit_s if contestant.name == COMPILED else None
    if limit_s == 0:
        raise _AbsentError("left out: its time to compile is set to 0")
    begin = time.perf_counter()
    try:
        with _time_limit(limit_s):
            runner: Runner = stack.enter_context(contestant.open())
            found = runner.infer(images)
    except _TooSlow:
        raise _AbsentError(f"it was not compiled after {limit_s:g} s") from None
    except HwnasError as error:
        raise _AbsentError(_short(str(error))) from error
    except Exception as error:
        # Whatever a rival fails with is a finding; an engine fails with an error of ours.
        if contestant.kind == "engine":
            raise
        raise _AbsentError(_short(f"{type(error).__name__}: {error}")) from error
    ready_s = time.perf_counter() - begin
    distance = _relative_l2(found, expected)
    limit = RELATIVE_L2[contestant.precision]
    if not distance <= limit:
        raise _AbsentError(
            f"it computes something else: its logits are {distance:.3g} of their norm away from "
            f"PyTorch's, more than {limit:g}"
        )
    return _Entrant(
        contestant=contestant,
        sampler=runner.sampler_on(images),
        ready_s=ready_s,
        relative_l2=distance,
    )


def _lane(entrant: _Entrant, batch: int, samples_us: NDArray[np.float64]) -> Lane:
    contestant, latency = entrant.contestant, summarize(samples_us)
    return Lane(
        batch=batch,
        name=contestant.name,
        kind=contestant.kind,
        precision=contestant.precision,
        threads=contestant.threads,
        ready_s=entrant.ready_s,
        relative_l2=entrant.relative_l2,
        latency=latency,
        images_per_s=batch / latency.median_us * 1e6,
        samples_us=tuple(samples_us.tolist()),
    )


def _logits(twin: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    from hwnas_export.torch_runner import TorchRunner

    with TorchRunner(twin, (None, *images.shape[1:])) as runner:
        return runner.infer(images)


def _relative_l2(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return how far outputs are apart; infinity where they are of another shape or not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    norm = float(np.linalg.norm(expected.astype(np.float64)))
    distance = float(np.linalg.norm(found.astype(np.float64) - expected))
    return distance / norm if norm > 0 else (0.0 if distance == 0 else float("inf"))


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `_TooSlow` within after some time, in the one thread where that can be done."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _short(text: str) -> str:
    """Bring an error into one line, as the errors of compilers fill pages."""
    line = " ".join(text.split())
    return line if len(line) <= _REASON_LETTERS else f"{line[:_REASON_LETTERS]}..."
