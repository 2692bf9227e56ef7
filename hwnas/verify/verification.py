"""Check a compiled engine against its reference: parity, speed, accuracy and robustness.

The engine is attacked itself. What a conversion did to the network shows neither in its clean
accuracy nor in the twin's robustness: adversarial examples of the twin are replayed on the engine,
a black box queries it directly, and attacks by gradients are made for it. The docstring of each
gate's tolerance says why it is there (`hwnas.verify.tolerances.Tolerances`).
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from hwnas.core.errors import ConfigError, DataError
from hwnas.core.progress import SILENT
from hwnas.robustness.attacks.lean import lean_copy
from hwnas.robustness.evaluate import Accuracy, device_of, evaluating, predictions_of
from hwnas.robustness.model_checks import refuse_probabilities
from hwnas.robustness.pgd import attack_in_batches
from hwnas.robustness.square import square
from hwnas.robustness.threat import ThreatModel, check_images
from hwnas.verify.adaptive import Attacked, attack_adaptively
from hwnas.verify.asking import asking, reference_logits
from hwnas.verify.engine_gates import (
    accuracy_gates,
    adaptive_gates,
    latency_gate,
    parity_gates,
    resource_gates,
)
from hwnas.verify.masking import masking_gates, masking_signs
from hwnas.verify.parity import parity_of
from hwnas.verify.records import (
    Adaptive,
    BlackBox,
    TwinAndEngine,
    Verification,
    VerifySettings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from hwnas.core.progress import Progress
    from hwnas.robustness.signs import MaskingSigns
    from hwnas.robustness.square import Predict
    from hwnas.search.budget import Budgets
    from hwnas.verify.speed import Speed
    from hwnas_export.memory import ModelMemory
    from hwnas_export.runner import Runner
    from hwnas_profilers.records import EnergyStatistics, Statistics

__all__ = [
    "Adaptive",
    "BlackBox",
    "TwinAndEngine",
    "Verification",
    "VerifySettings",
    "verify_engine",
]

# What only gradients of the reference can check.
_BY_GRADIENTS = (
    "square_gap", "adaptive_gap", "adaptive_drop", "more_steps", "larger_eps", "unbounded_eps",
    "attack_beats_noise",
)  # fmt: skip


def verify_engine(
    *,
    twin: nn.Module | Predict,
    engine: Runner,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    threat: ThreatModel,
    precision: str = "fp32",
    model: bytes | None = None,
    budget_ms: float | None = None,
    latency: Statistics | None = None,
    speed: Speed | None = None,
    budgets: Budgets | None = None,
    memory: ModelMemory | None = None,
    energy: EnergyStatistics | None = None,
    settings: VerifySettings | None = None,
    progress: Progress = SILENT,
) -> Verification:
    """Verify an engine.

    Args:
        twin: The network that the engine was made from; its mode is left as it is. Or an array
            function that gives the reference's logits: then what is replayed are the examples that
            a black box makes on it, and what needs gradients is left out and named.
        engine: An active runner, of a fixed or a free batch.
        images: float32, (N, channels, height, width), pixels in [0, 1], never trained on.
        labels: int64, (N,)
        threat: The threat model.
        precision: The engine's; the defaults of the tolerances are those for it.
        model: The engine's own ONNX model, from which a quantized one gets its gradients.
        budget_ms: The latency budget; with `latency` or `speed`, it is a gate.
        latency: The engine's latency as measured on its target; None takes that of `speed`.
        speed: Its slowest calls and throughput, as measured there.
        budgets: Bounds on memory, weights and energy; each that is given is a gate, which what was
            not counted or metered does not pass. Its latency is not looked at.
        memory: What the engine's own model takes, as `memory_of_onnx` counts it.
        energy: The engine's energy as metered on its target.
        settings: How to verify; None takes the defaults.
        progress: Told of each image and query.

    Raises:
        DataError: The images, labels or logits cannot be compared, or one of both gives
            probabilities.
        ConfigError: The budget is no latency, or the precision is unknown.
    """
    settings = settings or VerifySettings()
    settings = replace(settings, tolerances=settings.tolerances.at_precision(precision))
    _check_budget(budget_ms)
    _check_data(images, labels, engine)
    with asking(engine, batch=settings.batch) as predict:
        run = _Run(twin, predict, images, labels, threat, settings, progress)
        run.compare_clean()
        run.replay()
        run.ask_by_scores()
        run.ask_by_gradients(engine.name, model, precision)
    tolerances = settings.tolerances
    gates = (
        *parity_gates(run.parity, tolerances),
        *accuracy_gates(run.clean, run.robust, run.agreement, run.black_box, tolerances),
    )
    if run.adaptive is not None:
        gates += adaptive_gates(run.adaptive, tolerances)
    if run.masking is not None:
        gates += masking_gates(run.masking, tolerances)
    latency = speed.latency if latency is None and speed is not None else latency
    if budget_ms is not None and latency is not None:
        gates += (latency_gate(budget_ms, latency, tolerances),)
    if budgets is not None:
        gates += resource_gates(budgets, memory, energy, tolerances)
    return Verification(
        engine=engine.name,
        threat=threat,
        parity=run.parity,
        clean_accuracy=run.clean,
        robust_accuracy=run.robust,
        adversarial_agreement=run.agreement,
        black_box=run.black_box,
        masking=run.masking,
        budget_ms=budget_ms,
        latency=latency,
        settings=settings,
        gates=gates,
        memory=memory,
        energy=energy,
        precision=precision,
        crafted=run.crafted,
        adaptive=run.adaptive,
        speed=speed,
        left_out=run.left_out,
        seconds=run.seconds,
    )


class _Run:
    """One verification: what its parts hand on to each other, in the order of its methods."""

    clean: TwinAndEngine
    robust: TwinAndEngine
    black_box: BlackBox

    def __init__(
        self,
        twin: nn.Module | Predict,
        engine: Predict,
        images: NDArray[np.float32],
        labels: NDArray[np.int64],
        threat: ThreatModel,
        settings: VerifySettings,
        progress: Progress,
    ) -> None:
        self._twin, self._engine = twin, engine
        self._images, self._labels = images, labels
        self._threat, self._settings, self._progress = threat, settings, progress
        # The first ones of a data set are no fair sample.
        self._order = np.random.default_rng(settings.seed).permutation(len(images))
        self.agreement = 0.0
        self.crafted = ""
        self.adaptive: Adaptive | None = None
        self.masking: MaskingSigns | None = None
        self.left_out: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def compare_clean(self) -> None:
        """Compare logits and accuracy on the images as they are."""
        with self._timed("clean"):
            twin = reference_logits(self._twin, self._images, batch=self._settings.batch)
            _check_labels(self._labels, twin)
            engine = self._engine(self._images)
            self.parity = parity_of(twin, engine)
            refuse_probabilities(twin)
            refuse_probabilities(engine)
            self._engine_logits = engine
            self._twin_clean = predictions_of(twin)
            self.clean = _accuracies(self._twin_clean, predictions_of(engine), self._labels)

    def replay(self) -> None:
        """Craft adversarial examples on the reference, and replay them on the engine."""
        with self._timed("replay"):
            self._attacked = self._craft()
            self._twin_attacked = predictions_of(
                reference_logits(self._twin, self._attacked, batch=self._settings.batch)
            )
            self._engine_attacked = predictions_of(self._engine(self._attacked))
            self.robust = _accuracies(self._twin_attacked, self._engine_attacked, self._labels)
            self.agreement = float(np.mean(self._twin_attacked == self._engine_attacked))

    def _craft(self) -> NDArray[np.float32]:
        settings, threat = self._settings, self._threat
        if isinstance(self._twin, nn.Module):
            self.crafted = f"PGD-{threat.steps} on the twin"
            # Not stopped at the boundary: such points would test where the boundary lies to a
            # hair's breadth, and the engine would seem to resist them.
            with self._lean() as twin:
                return attack_in_batches(
                    twin, self._images, self._labels, threat, batch=settings.batch,
                    seed=settings.seed, stop_when_broken=False, progress=self._progress,
                )  # fmt: skip
        self.crafted = f"Square on the reference, {settings.square_queries} queries at most"
        attacked = self._images.copy()
        chosen = self._order[: settings.square_samples]
        if threat.eps_pixels > 0:
            attacked[chosen] = square(
                self._twin, self._images[chosen], self._labels[chosen], eps=threat.eps_pixels,
                norm=threat.norm, queries=settings.square_queries, seed=settings.seed,
                progress=self._progress,
            ).images  # fmt: skip
        return attacked

    def ask_by_scores(self) -> None:
        """Attack the engine itself as a black box, on a random subset."""
        with self._timed("square"):
            chosen = self._order[: self._settings.square_samples]
            found = square(
                self._engine,
                self._images[chosen],
                self._labels[chosen],
                eps=self._threat.eps_pixels,
                norm=self._threat.norm,
                queries=self._settings.square_queries,
                seed=self._settings.seed,
                progress=self._progress,
            )
            self._square_right = ~found.broken
            replayed = self._engine_attacked[chosen] == self._labels[chosen]
            self.black_box = BlackBox(
                replay=Accuracy.from_flags(replayed),
                square=Accuracy.from_flags(~found.broken),
                worst_case=Accuracy.from_flags(replayed & ~found.broken),
                queries=found.queries,
            )

    def ask_by_gradients(self, name: str, model: bytes | None, precision: str) -> None:
        """Attack the engine by gradients, and check the attack; without any, say so."""
        settings, threat = self._settings, self._threat
        if not isinstance(self._twin, nn.Module):
            reason = f"the reference of {name} has no gradients: no white box was possible"
            self.left_out = dict.fromkeys(_BY_GRADIENTS, reason)
            return
        if not threat.eps_pixels > 0:
            self.left_out = dict.fromkeys(_BY_GRADIENTS, "eps is 0: there is nothing to attack")
            return
        with self._timed("adaptive"):
            few = self._order[: min(settings.adaptive_samples, settings.square_samples)]
            labels = self._labels[few]
            found = Attacked(
                images=self._images[few],
                labels=labels,
                engine_logits=self._engine_logits[few],
                twin_right=(self._twin_clean[few] == labels) & (self._twin_attacked[few] == labels),
                replay_right=self._engine_attacked[few] == labels,
                square_right=self._square_right[: len(few)],
            )
            self.adaptive = attack_adaptively(
                self._twin, self._engine, found, threat, model=model, precision=precision,
                steps=settings.adaptive_steps, batch=settings.batch, seed=settings.seed,
                progress=self._progress,
            )  # fmt: skip
        with self._timed("masking"), self._lean() as twin:
            few = self._order[: settings.masking_samples]
            self.masking = masking_signs(
                twin, self._images[few], self._attacked[few], self._labels[few], threat,
                batch=settings.batch, seed=settings.seed, progress=self._progress,
            )  # fmt: skip

    @contextmanager
    def _lean(self) -> Iterator[nn.Module]:
        """Yield the twin as attacks need it: cheap. What counts as right is for the twin itself."""
        assert isinstance(self._twin, nn.Module)
        with evaluating(self._twin):
            sample = torch.from_numpy(self._images[:_COMPARED]).to(device_of(self._twin))
            with lean_copy(self._twin, sample) as lean:
                yield lean

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[part] = round(time.perf_counter() - begin, 3)


# Images that a cheaper copy of the twin must agree on.
_COMPARED = 16


def _accuracies(
    twin: NDArray[np.int64], engine: NDArray[np.int64], labels: NDArray[np.int64]
) -> TwinAndEngine:
    return TwinAndEngine(
        twin=Accuracy.from_flags(twin == labels), engine=Accuracy.from_flags(engine == labels)
    )


def _check_budget(budget_ms: float | None) -> None:
    if budget_ms is not None and not (math.isfinite(budget_ms) and budget_ms > 0):
        raise ConfigError(f"a latency budget is a time in milliseconds above 0, not {budget_ms}")


def _check_data(images: NDArray[np.float32], labels: NDArray[np.int64], engine: Runner) -> None:
    if images.dtype != np.float32 or labels.dtype != np.int64:
        raise DataError(f"images are float32 and labels int64, not {images.dtype}, {labels.dtype}")
    if not len(images):
        raise DataError("there are no images to verify the engine on")
    if images.shape[1:] != engine.input_shape[1:]:
        taken, given = ("x".join(map(str, each[1:])) for each in (engine.input_shape, images.shape))
        raise DataError(
            f"the engine takes images of {taken}, these are {given}",
            hint="name the images that it was made for, or set their size",
        )
    check_images(torch.from_numpy(images))


def _check_labels(labels: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
    n, classes = logits.shape
    if labels.shape != (n,):
        raise DataError(f"{n} images need {n} labels, not an array of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels are in [{labels.min()}, {labels.max()}], but the network has {classes} classes"
        )
