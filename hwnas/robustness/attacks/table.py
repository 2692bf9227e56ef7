"""Attack a model over a whole data set, and gather what was found in one table.

Samples that are wrong from the start are left out; the rest are attacked in batches. An ensemble
gives each of its parts, in new batches, what the parts before have left, as AutoAttack does: so
batches, and with them random draws, are those of the reference.
"""

from __future__ import annotations

import copy
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwnas.core.allocator import keep_freed_memory
from hwnas.core.errors import ConfigError, DataError
from hwnas.core.progress import SILENT
from hwnas.robustness.attacks.ball import sizes_of
from hwnas.robustness.attacks.comparison import attack_comparisons
from hwnas.robustness.attacks.registry import ATTACKS, Batch, check_attacks, check_classes
from hwnas.robustness.attacks.state import (
    AttackState,
    Finished,
    sha256_of_array,
    sha256_of_weights,
)
from hwnas.robustness.attacks.subject import Subject, behind_normalization, subject_from
from hwnas.robustness.criteria import Check
from hwnas.robustness.evaluate import Accuracy, predictions_of
from hwnas.robustness.threat import Norm, Protocol, check_images

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hwnas.core.progress import Progress, Task
    from hwnas.robustness.square import Predict
    from hwnas.robustness.threat import ThreatModel

# Of eps: what float32 may add to a change on the way into the ball.
_ROUNDING = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRow:
    """What one attack left of the accuracy.

    Attributes:
        attack: Its name in `registry.ATTACKS`.
        accuracy: Share of all samples still right: those wrong from the start count as broken.
        seconds: Wall time, over all runs where it was resumed.
        queries: Images that the model was asked about; None for attacks that take gradients.
        settings: What it ran with, one line.
    """

    attack: str
    accuracy: Accuracy
    seconds: float
    queries: int | None
    settings: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackTable:
    """What attacks left of a model's accuracy: plain data.

    Attributes:
        n: Samples.
        norm: Norm of the perturbation.
        eps: Its bound; in pixel units unless the protocol is "normalized".
        protocol: The space that eps is meant in.
        seed: Seed of all random draws.
        clean: Accuracy without attack.
        rows: One for each attack, in the order asked for.
        worst_case: Share of samples that no attack of the run broke.
        comparisons: The attacks beside each other, see `attack_comparisons`; none where they allow
            none, with an eps of 0, and in tables of earlier versions.
    """

    n: int
    norm: Norm
    eps: float
    protocol: Protocol
    seed: int
    clean: Accuracy
    rows: tuple[AttackRow, ...]
    worst_case: Accuracy
    comparisons: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttackOutcome:
    """The table, and what it was counted from.

    Attributes:
        table: The figures.
        flags: By attack, (N,): whether the sample is broken; those wrong from the start are.
        images: By attack, float32, (N, channels, height, width): the broken samples' adversarial
            images; of the others, the strongest point that the attack kept, which is the image
            itself where it keeps none. Under "normalized" these are normalized tensors.
    """

    table: AttackTable
    flags: dict[str, NDArray[np.bool_]]
    images: dict[str, NDArray[np.float32]]


def run_attacks(
    model: nn.Module | Predict,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    threat: ThreatModel,
    *,
    attacks: Sequence[str],
    seed: int,
    batch: int,
    queries: int = 5000,
    state: Path | None = None,
    progress: Progress = SILENT,
) -> AttackOutcome:
    """Attack a model over a whole data set.

    Args:
        model: A module, in any mode, which is given back as it was; or an array function, which
            only black-box attacks (`square`) can ask.
        images: (N, channels, height, width), pixels in [0, 1].
        labels: (N,)
        threat: The threat model.
        attacks: Names in `registry.ATTACKS`.
        seed: Seed of all random draws; each batch of each attack draws anew from it, as the
            reference does.
        batch: Images at a time. The random starts depend on it.
        queries: The most queries of Square per sample.
        state: A folder that keeps finished batches: a killed run that is started again with the
            same settings goes on there, to the same result.
        progress: Told of each step.

    Raises:
        ConfigError: An unknown attack, one that needs gradients of an array function, one that the
            norm, the protocol or the number of classes does not allow.
        DataError: Pixels outside [0, 1], labels that are no classes of the model, no images, or a
            model that does not answer (N, classes).
        ArtifactError: The state is one of other settings; what differs is named.
    """
    check_attacks(attacks, threat)
    if batch < 1 or queries < 1:
        raise ConfigError(f"batch and queries must be at least 1, not {batch} and {queries}")
    _check_data(images, labels)
    keep_freed_memory()
    with ExitStack() as stack:
        if threat.protocol == "normalized":
            images = stack.enter_context(behind_normalization(model, images))
        gradients = not all(ATTACKS[name].black_box for name in attacks)
        single = all(ATTACKS[name].steps(threat, queries) == 1 for name in attacks)
        subject = stack.enter_context(
            subject_from(model, images, gradients=gradients, lean=not single)
        )
        clean = _clean_logits(subject, images, batch)
        check_classes(attacks, clean.shape[1])
        if labels.max() >= clean.shape[1] or labels.min() < 0:
            raise DataError(
                f"labels reach from {labels.min()} to {labels.max()}; the model has "
                f"{clean.shape[1]} classes"
            )
        predicted = predictions_of(clean)
        kept = AttackState(
            state,
            lambda: _settings_of(model, predicted, images, labels, threat, seed, batch, queries),
        )
        run = _Run(subject, images, labels, threat, seed, batch, queries, kept, progress)
        right = np.flatnonzero(predicted == labels)
        results = {name: run.attack(name, right) for name in attacks}
    flags = {name: result.broken for name, result in results.items()}
    table = AttackTable(
        n=len(labels),
        norm=threat.norm,
        eps=threat.eps_pixels,
        protocol=threat.protocol,
        seed=seed,
        clean=Accuracy.from_flags(predicted == labels),
        rows=tuple(
            AttackRow(
                attack=name,
                accuracy=Accuracy.from_flags(~result.broken),
                seconds=result.seconds,
                queries=result.queries if ATTACKS[name].black_box else None,
                settings=ATTACKS[name].settings(threat, queries),
            )
            for name, result in results.items()
        ),
        worst_case=Accuracy.from_flags(~np.logical_or.reduce(list(flags.values()))),
        comparisons=attack_comparisons(flags, run.parts) if threat.eps_pixels > 0 else (),
    )
    images_by_attack = {name: result.images for name, result in results.items()}
    return AttackOutcome(table=table, flags=flags, images=images_by_attack)


@dataclass(slots=True, kw_only=True, eq=False)
class _Result:
    """What one attack left: see `AttackOutcome` for flags and images."""

    broken: NDArray[np.bool_]
    images: NDArray[np.float32]
    seconds: float = 0.0
    queries: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One call of `run_attacks`: what all of its attacks have in common, and what is finished."""

    subject: Subject
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    threat: ThreatModel
    seed: int
    batch: int
    queries: int
    state: AttackState
    progress: Progress
    finished: dict[str, _Result] = field(default_factory=dict)
    parts: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def attack(self, name: str, right: NDArray[np.int64]) -> _Result:
        """Run one attack, or the parts of an ensemble, on the samples that are right."""
        parts = ATTACKS[name].parts
        if not parts:
            return self._stage(name, name, right)
        # The first part sees what it would see alone: one run serves both.
        whole = copy.deepcopy(self._stage(parts[0], parts[0], right))
        self.parts[parts[0]] = whole.broken.copy()
        for part in parts[1:]:
            left = right[~whole.broken[right]]
            self.parts[part] = np.zeros_like(whole.broken)
            if not len(left):
                continue
            stage = self._stage(f"{name}-{part}", part, left)
            newly = left[stage.broken[left]]
            self.parts[part][newly] = True
            whole.broken[newly] = True
            whole.images[newly] = stage.images[newly]
            whole.seconds += stage.seconds
            whole.queries += stage.queries
        return whole

    def _stage(self, key: str, name: str, rows: NDArray[np.int64]) -> _Result:
        """Run a single attack on some samples, batch by batch; what is not among them is broken."""
        if key in self.finished:
            return self.finished[key]
        result = _Result(
            broken=np.ones(len(self.labels), dtype=np.bool_), images=self.images.copy()
        )
        starts = range(0, len(rows), self.batch)
        steps = ATTACKS[name].steps(self.threat, self.queries)
        with self.progress.task(ATTACKS[name].title, len(starts) * steps) as task:
            for number, start in enumerate(starts):
                chunk = rows[start : start + self.batch]
                ticker = _Ticker(task)
                finished = self.state.load(key, number, chunk)
                if finished is None:
                    finished = self._one_batch(name, chunk, ticker)
                    self.state.save(key, number, finished)
                result.broken[chunk] = finished.broken
                result.images[chunk] = finished.points
                result.seconds += finished.seconds
                result.queries += finished.queries
                task.advance(steps - ticker.done)
        self.finished[key] = result
        return result

    def _one_batch(self, name: str, rows: NDArray[np.int64], ticker: _Ticker) -> Finished:
        run, subject = ATTACKS[name].run, self.subject
        assert run is not None  # an ensemble is run by its parts
        started, asked = time.perf_counter(), subject.asked
        images = subject.tensor(self.images[rows])
        labels = torch.from_numpy(self.labels[rows]).to(subject.device)
        points = run(
            Batch(
                model=subject.counted,
                images=images,
                labels=labels,
                threat=self.threat,
                seed=self.seed,
                queries=self.queries,
                tick=ticker,
            )
        )
        if self.threat.protocol == "pixel":  # else the box cuts images off that lie outside it
            changes = sizes_of(points - images, self.threat.norm)
            assert (changes <= self.threat.eps_pixels * (1 + _ROUNDING)).all()
        return Finished(
            rows=rows,
            broken=subject.broken(points, labels),
            points=np.ascontiguousarray(points.cpu().numpy()),
            seconds=time.perf_counter() - started,
            queries=subject.asked - asked,
        )


class _Ticker:
    """Reports an attack's steps, and counts them: one that ends early owes the rest."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.done = 0

    def __call__(self) -> None:
        self.done += 1
        self._task.advance(1)


def _clean_logits(subject: Subject, images: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    parts = [
        subject.logits(subject.tensor(images[start : start + batch])).float().cpu().numpy()
        for start in range(0, len(images), batch)
    ]
    return np.concatenate(parts)


def _settings_of(
    model: nn.Module | Predict,
    predicted: NDArray[np.int64],
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    threat: ThreatModel,
    seed: int,
    batch: int,
    queries: int,
) -> dict[str, Any]:
    """Return all that the results hang on, as plain data."""
    if isinstance(model, nn.Module):
        fingerprint = sha256_of_weights(model)
    else:  # what an array function holds is not known: it is told by its answers
        fingerprint = sha256_of_array(predicted)
    return {
        "schema": 1,
        "model": fingerprint,
        "images": sha256_of_array(images),
        "labels": sha256_of_array(labels),
        "norm": threat.norm,
        "eps": float(threat.eps_pixels),
        "steps": threat.steps,
        "restarts": threat.restarts,
        "step_size": float(threat.step_size_pixels),
        "protocol": threat.protocol,
        "seed": seed,
        "batch": batch,
        "queries": queries,
    }


def _check_data(images: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    if images.ndim != 4 or labels.shape != images.shape[:1] or not len(images):
        raise DataError(
            f"an attack needs images (N, channels, height, width) and labels (N,), N at least 1; "
            f"these are {list(images.shape)} and {list(labels.shape)}"
        )
    check_images(torch.from_numpy(images))
