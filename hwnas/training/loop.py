"""Epochs that can be killed at any moment and go on to the same numbers.

After each epoch everything that the next one depends on is written, atomically. All randomness of
an epoch comes from a generator seeded by (seed, epoch), so an epoch that was cut short is repeated
exactly.
"""

from __future__ import annotations

import io
import math
import time
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hwnas.core.allocator import keep_freed_memory
from hwnas.core.artifacts import write_atomically
from hwnas.core.errors import ArtifactError, ConfigError, TrainingDivergedError
from hwnas.core.progress import SILENT, Progress
from hwnas.core.time_limit import stop_if_time_is_up
from hwnas.training.processes import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from hwnas.core.metrics import MetricLog
    from hwnas.training.processes import Processes

CHECKPOINT_SCHEMA = 1
_DIVERGED_HINT = (
    "the last good checkpoint is kept; to begin anew with a lower learning rate, delete it"
)

Figures = dict[str, float]


class Stateful(Protocol):
    """What can be kept in a checkpoint: networks, optimizers, multipliers."""

    def state_dict(self) -> Any:
        """Return what a checkpoint must keep."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Take back what a checkpoint kept."""
        ...


class Epoch:
    """One epoch under way: where its randomness comes from and where it reports to.

    Attributes:
        index: From 0.
        count: Epochs of the whole run.
        generator: Source of all of the epoch's randomness.
    """

    def __init__(
        self, *, name: str, index: int, count: int, seed: int, report: Callable[[float, str], None]
    ) -> None:
        self.name = name
        self.index = index
        self.count = count
        # Far apart for neighboring seeds and epochs.
        self.generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
        self._report = report
        self._steps = 0

    def fraction(self, step: int, steps: int) -> float:
        """Return how much of the whole run is done at a step of this epoch, in [0, 1]."""
        return (self.index + step / steps) / self.count

    def step(self, loss: Tensor, steps: int) -> float:
        """Report one of the epoch's steps, and return its loss as a number.

        Raises:
            TrainingDivergedError: The loss is not finite.
        """
        value = float(loss.detach())
        self._steps += 1
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"the loss of {self.name} is {value} in epoch {self.index + 1}, step {self._steps}",
                hint=_DIVERGED_HINT,
            )
        self._report(1.0 / steps, "")
        return value


def run_epochs(
    name: str,
    body: Callable[[Epoch], Figures],
    *,
    epochs: int,
    seed: int,
    parts: Mapping[str, Stateful],
    checkpoint: Path,
    settings: Mapping[str, Any],
    finished: Callable[[], bool] | None = None,
    processes: Processes | None = None,
    log: MetricLog | None = None,
    progress: Progress = SILENT,
) -> list[Figures]:
    """Run epochs, going on from a checkpoint where there is one.

    Of several processes the first one writes; all go on from what it reads, so that a run may be
    resumed with another number of them. Each keeps the memory that it frees from then on: see
    `keep_freed_memory`.

    Args:
        name: What runs, for progress and errors.
        body: Trains one epoch and returns its figures.
        epochs: How many to run in all.
        seed: Seed of all randomness.
        parts: Everything that changes while training, by name.
        checkpoint: The checkpoint file; left in place for the caller to remove.
        settings: What the run depends on; a checkpoint of other settings is refused.
        finished: Asked before each epoch whether to end early; it may know from `parts` alone, so
            that a resumed run ends where it would have.
        processes: Those that train together; None where this is the only one.
        log: Where each epoch's figures go besides.
        progress: Where to report.

    Returns:
        The figures of every epoch, those of earlier runs included.

    Raises:
        ConfigError: The checkpoint was made with other settings; what differs is named.
        ArtifactError: The checkpoint cannot be read.
        TrainingDivergedError: A loss or a weight is not finite. The last checkpoint is kept.
        ProcessError: Another process has ended. The last checkpoint is kept.
        UnfinishedError: The next epoch would not end within the time limit that holds.
    """
    keep_freed_memory()
    history: list[Figures] = []
    is_first = processes is None or processes.is_first
    kept = checkpoint.read_bytes() if is_first and checkpoint.exists() else None
    if processes is not None:
        kept = processes.same(kept)
    if kept is not None:
        history = _restore(kept, checkpoint, name, parts, settings)
        progress.say(f"{name}: going on after epoch {len(history)} of {epochs}")
    with progress.task(name, epochs, done=len(history)) as task:
        for index in range(len(history), epochs):
            if finished is not None and finished():
                progress.say(f"{name}: ends after epoch {index} of {epochs}")
                break
            epoch = Epoch(name=name, index=index, count=epochs, seed=seed, report=task.advance)
            began = time.monotonic()
            with peers():
                figures = body(epoch)
            took_s = time.monotonic() - began
            _check_finite(name, epoch, parts)
            history.append(figures)
            task.advance(0, ", ".join(f"{key} {value:.3g}" for key, value in figures.items()))
            if is_first:
                _save(checkpoint, parts, history, settings)
                if log is not None:
                    log.log(name, figures, epoch=index + 1)
            if index + 1 < epochs:
                stop_if_time_is_up(name, next_s=took_s)
    return history


def one_cycle(fraction: float, peak: float, *, warmup: float = 0.2) -> float:
    """Return the learning rate: linear up to `peak`, then half a cosine down to zero.

    Args:
        fraction: How much of the run is done, in [0, 1].
        peak: The highest rate.
        warmup: Share of the run that goes up.
    """
    if fraction < warmup:
        return peak * (fraction + 1e-3) / (warmup + 1e-3)
    return peak * 0.5 * (1.0 + math.cos(math.pi * (fraction - warmup) / (1.0 - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def check_rates(settings: object, *, positive: Sequence[str], weights: Sequence[str]) -> None:
    """Refuse settings that no optimizer can take.

    Args:
        settings: Holds them as attributes.
        positive: Names of those that are positive numbers.
        weights: Names of those that are at least 0.

    Raises:
        ConfigError: One is negative or not finite; it is named.
    """
    for name in (*positive, *weights):
        value = getattr(settings, name)
        if not (math.isfinite(value) and (value > 0 or (value == 0 and name in weights))):
            kind = "positive number" if name in positive else "number of at least 0"
            raise ConfigError(f"`{name}` is a {kind}, not {value}")


def _check_finite(name: str, epoch: Epoch, parts: Mapping[str, Stateful]) -> None:
    """Raise before a checkpoint is written that no run can go on from.

    A loss is judged before its step, so the last step of an epoch is judged here.
    """
    for part in parts.values():
        for tensor in _tensors_in(part.state_dict()):
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise TrainingDivergedError(
                    f"a weight of {name} is no longer finite after epoch {epoch.index + 1}",
                    hint=_DIVERGED_HINT,
                )


def _tensors_in(state: Any) -> Iterator[Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for item in state.values() if isinstance(state, dict) else state:
            yield from _tensors_in(item)


def _save(
    path: Path, parts: Mapping[str, Stateful], history: list[Figures], settings: Mapping[str, Any]
) -> None:
    buffer = io.BytesIO()
    state = {
        "schema": CHECKPOINT_SCHEMA,
        "settings": dict(settings),
        "history": history,
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def _restore(
    kept: bytes,
    path: Path,
    name: str,
    parts: Mapping[str, Stateful],
    settings: Mapping[str, Any],
) -> list[Figures]:
    discard = f"delete {path} to begin anew"
    try:
        # weights_only: tensors and plain values, never code.
        state = torch.load(io.BytesIO(kept), weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ArtifactError(f"checkpoint {path} cannot be read: {error}", hint=discard) from error
    schema = state.get("schema") if isinstance(state, dict) else None
    if schema != CHECKPOINT_SCHEMA:
        raise ArtifactError(
            f"checkpoint {path} has schema {schema}; this hwnas reads {CHECKPOINT_SCHEMA}",
            hint=discard,
        )
    before = state["settings"]
    changed = [
        f"{key}: {before.get(key)!r} -> {settings.get(key)!r}"
        for key in sorted({*before, *settings})
        if before.get(key) != settings.get(key)
    ]
    if changed:
        raise ConfigError(
            f"checkpoint {path} of {name} was made with other settings ({'; '.join(changed)})",
            hint=f"{discard}, or go back to its settings",
        )
    for key, part in parts.items():
        part.load_state_dict(state["parts"][key])
    history: list[Figures] = state["history"]
    return history
