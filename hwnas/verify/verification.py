"""Check a compiled engine against its PyTorch twin: parity, latency, accuracy and robustness.

The engine is attacked itself. What a conversion did to the network shows neither in its clean
accuracy nor in the twin's robustness: adversarial examples of the twin are replayed on the engine,
and a black box queries the engine directly. The docstring of each gate's tolerance says why it is
there (`hwnas.verify.gates.Tolerances`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.errors import ConfigError, DataError
from hwnas.core.progress import SILENT
from hwnas.robustness.evaluate import (
    Accuracy,
    logits_from_module,
    logits_from_runner,
    predictions_of,
)
from hwnas.robustness.model_checks import refuse_probabilities
from hwnas.robustness.pgd import attack_in_batches
from hwnas.robustness.square import square
from hwnas.robustness.threat import ThreatModel
from hwnas.verify.gates import Gate, Tolerances, at_least, at_most, require
from hwnas.verify.masking import MaskingSigns, masking_gates, masking_signs
from hwnas.verify.parity import Parity, parity_of
from hwnas_export.memory import ModelMemory
from hwnas_profilers.records import EnergyStatistics, Statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from hwnas.core.progress import Progress
    from hwnas.search.budget import Budgets
    from hwnas_export.runner import Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySettings:
    """How an engine is verified.

    Attributes:
        square_queries: Queries of the black box per sample.
        square_samples: Samples that it attacks, drawn at random; the first ones of a data set are
            not a fair sample.
        masking_samples: Samples for the checks of the attack itself.
        batch: Images per call, where the engine's own batch is free.
        seed: Seed of the draws and of the attacks.
        tolerances: What each gate allows.
    """

    square_queries: int = 1000
    square_samples: int = 1000
    masking_samples: int = 128
    batch: int = 128
    seed: int = 0
    tolerances: Tolerances = field(default_factory=Tolerances)

    def __post_init__(self) -> None:
        for name in ("square_queries", "square_samples", "masking_samples", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"seed must be 0 or more, not {self.seed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinAndEngine:
    """One figure for the PyTorch twin and for the engine, on the same samples."""

    twin: Accuracy
    engine: Accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class BlackBox:
    """Attacks on the engine itself, on a random subset. All accuracies are the engine's.

    Attributes:
        replay: Under the replayed adversarial examples of the twin.
        square: Under Square alone.
        worst_case: Right under both: what the engine may be said to be.
        queries: Images that the engine was asked about.
    """

    replay: Accuracy
    square: Accuracy
    worst_case: Accuracy
    queries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found on an engine. A failed gate is data; `require` makes it an error.

    Attributes:
        engine: The runner's name, e.g. `onnxruntime-cpu`.
        threat: The threat model of the attacks.
        parity: Engine against twin on the clean images.
        clean_accuracy: On the images as they are.
        robust_accuracy: On adversarial examples crafted on the twin, all images.
        adversarial_agreement: Share of equal predictions on them.
        black_box: Attacks on the engine itself, on a subset.
        masking: Checks of the white-box attack; None where eps is 0.
        budget_ms: The latency budget, if one was given.
        latency: The measured latency, if it was given.
        settings: How it was verified.
        gates: Each gate and how it came out.
        memory: The engine's weights and peak of activations, counted; None where they were not.
        energy: Its metered energy; None where it was not metered.
    """

    engine: str
    threat: ThreatModel
    parity: Parity
    clean_accuracy: TwinAndEngine
    robust_accuracy: TwinAndEngine
    adversarial_agreement: float
    black_box: BlackBox
    masking: MaskingSigns | None
    budget_ms: float | None
    latency: Statistics | None
    settings: VerifySettings
    gates: tuple[Gate, ...]
    memory: ModelMemory | None = None
    energy: EnergyStatistics | None = None

    @property
    def passed(self) -> bool:
        """Whether every gate was passed."""
        return all(gate.passed for gate in self.gates)

    def require(self) -> None:
        """Raise GateFailedError, naming each failed gate, unless all were passed."""
        require(self.gates)


def verify_engine(
    *,
    twin: nn.Module,
    engine: Runner,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    threat: ThreatModel,
    budget_ms: float | None = None,
    latency: Statistics | None = None,
    budgets: Budgets | None = None,
    memory: ModelMemory | None = None,
    energy: EnergyStatistics | None = None,
    settings: VerifySettings | None = None,
    progress: Progress = SILENT,
) -> Verification:
    """Verify an engine.

    Args:
        twin: The network that the engine was made from. Its mode is left as it is.
        engine: An active runner, of a fixed or a free batch.
        images: float32, (N, channels, height, width), pixels in [0, 1], never trained on.
        labels: int64, (N,)
        threat: The threat model.
        budget_ms: The latency budget; with `latency`, it is a gate.
        latency: The engine's latency as measured on its target.
        budgets: Bounds on memory, weights and energy; each that is given is a gate, which what was
            not counted or metered does not pass. Its latency is not looked at.
        memory: What the engine's own model takes, as `memory_of_onnx` counts it.
        energy: The engine's energy as metered on its target.
        settings: How to verify; None takes the defaults.
        progress: Told of each image and query.

    Raises:
        DataError: The images, labels or logits cannot be compared, or the twin gives probabilities.
        ConfigError: The budget is no latency.
    """
    settings = settings or VerifySettings()
    _check_budget(budget_ms)
    _check_types(images, labels)
    batch, seed, tolerances = settings.batch, settings.seed, settings.tolerances

    twin_logits = logits_from_module(twin, images, batch=batch, progress=progress)
    _check_labels(labels, twin_logits)
    engine_logits = logits_from_runner(engine, images, batch=batch, progress=progress)
    parity = parity_of(twin_logits, engine_logits)
    refuse_probabilities(twin_logits)
    clean = _accuracies(predictions_of(twin_logits), predictions_of(engine_logits), labels)

    # Not stopped at the boundary: such points would test where the boundary lies to a hair's
    # breadth, and the engine would seem to resist them.
    attacked = attack_in_batches(
        twin, images, labels, threat, batch=batch, seed=seed, stop_when_broken=False,
        progress=progress,
    )  # fmt: skip
    twin_attacked = predictions_of(logits_from_module(twin, attacked, batch=batch))
    engine_attacked = predictions_of(
        logits_from_runner(engine, attacked, batch=batch, progress=progress)
    )
    robust = _accuracies(twin_attacked, engine_attacked, labels)
    agreement = float(np.mean(twin_attacked == engine_attacked))

    order = np.random.default_rng(seed).permutation(len(images))
    chosen = order[: settings.square_samples]
    found = square(
        lambda part: logits_from_runner(engine, part, batch=batch),
        images[chosen],
        labels[chosen],
        eps=threat.eps_pixels,
        queries=settings.square_queries,
        seed=seed,
        progress=progress,
    )
    replayed_right = engine_attacked[chosen] == labels[chosen]
    black_box = BlackBox(
        replay=Accuracy.from_flags(replayed_right),
        square=Accuracy.from_flags(~found.broken),
        worst_case=Accuracy.from_flags(replayed_right & ~found.broken),
        queries=found.queries,
    )
    gates = (
        *_parity_gates(parity, tolerances),
        *_accuracy_gates(clean, robust, agreement, black_box, tolerances),
    )
    masking: MaskingSigns | None = None
    if threat.eps_pixels > 0:
        few = order[: settings.masking_samples]
        masking = masking_signs(
            twin, images[few], attacked[few], labels[few], threat, batch=batch, seed=seed,
            progress=progress,
        )  # fmt: skip
        gates += masking_gates(masking, tolerances)
    if budget_ms is not None and latency is not None:
        gates += (_latency_gate(budget_ms, latency, tolerances),)
    if budgets is not None:
        gates += _resource_gates(budgets, memory, energy, tolerances)
    return Verification(
        engine=engine.name,
        threat=threat,
        parity=parity,
        clean_accuracy=clean,
        robust_accuracy=robust,
        adversarial_agreement=agreement,
        black_box=black_box,
        masking=masking,
        budget_ms=budget_ms,
        latency=latency,
        settings=settings,
        gates=gates,
        memory=memory,
        energy=energy,
    )


def _parity_gates(parity: Parity, tolerances: Tolerances) -> tuple[Gate, ...]:
    return (
        at_most(
            "finite_logits",
            parity.nonfinite,
            0,
            unit="images",
            meaning="the engine gives NaN or infinity",
        ),
        at_most(
            "max_abs_diff",
            parity.max_abs_diff,
            tolerances.max_abs_diff,
            unit="logits",
            meaning="the engine computes other numbers than its twin",
        ),
        at_most(
            "relative_l2",
            parity.relative_l2,
            tolerances.relative_l2,
            unit="of the logits' norm",
            meaning="the engine computes other numbers than its twin",
        ),
        at_least(
            "agreement",
            parity.agreement,
            tolerances.agreement,
            unit="of clean images",
            meaning="the engine decides otherwise than its twin",
        ),
        at_most(
            "tie_rate",
            parity.tie_rate,
            tolerances.tie_rate,
            unit="of clean images",
            meaning="top logits tie: the output is constant or coarsely quantized, which blinds "
            "attacks that follow scores",
        ),
    )


def _accuracy_gates(
    clean: TwinAndEngine,
    robust: TwinAndEngine,
    agreement: float,
    black_box: BlackBox,
    tolerances: Tolerances,
) -> tuple[Gate, ...]:
    return (
        at_most(
            "clean_drop",
            _points_between(clean.twin, clean.engine),
            tolerances.clean_drop_points,
            unit="points",
            meaning="the engine lost clean accuracy against its twin",
        ),
        at_most(
            "robust_drop",
            _points_between(robust.twin, robust.engine),
            tolerances.robust_drop_points,
            unit="points",
            meaning="the engine lost robust accuracy against its twin",
        ),
        at_most(
            "replay_gain",
            _points_between(robust.engine, robust.twin),
            tolerances.replay_gain_points,
            unit="points",
            meaning="the engine resists examples that break its twin: they no longer fit it, so "
            "this is no robustness",
        ),
        at_least(
            "adversarial_agreement",
            agreement,
            tolerances.adversarial_agreement,
            unit="of adversarial images",
            meaning="under attack the engine decides otherwise than its twin",
        ),
        at_most(
            "black_box_gap",
            _points_between(black_box.replay, black_box.worst_case),
            tolerances.black_box_gap_points,
            unit="points",
            meaning="a black box breaks what the white-box attack did not: the twin's gradients "
            "are masked, or do not fit the engine",
        ),
    )


def _latency_gate(budget_ms: float, latency: Statistics, tolerances: Tolerances) -> Gate:
    return at_most(
        "latency",
        latency.median_us / 1000 / budget_ms - 1,
        tolerances.latency_over_budget,
        unit="of the budget above it",
        meaning=f"the engine takes {latency.median_us / 1000:.4g} ms; the budget is "
        f"{budget_ms:.4g} ms",
    )


def _resource_gates(
    budgets: Budgets,
    memory: ModelMemory | None,
    energy: EnergyStatistics | None,
    tolerances: Tolerances,
) -> tuple[Gate, ...]:
    gates = []
    if budgets.memory_kib is not None:
        gates.append(
            at_most(
                "memory",
                memory.peak_activation_bytes / 1024 if memory else None,
                budgets.memory_kib,
                unit="KiB",
                meaning="more activations are alive at once than the budget has room for"
                + (f", at {memory.peak_node}" if memory else ": they were not counted"),
            )
        )
    if budgets.weights_kib is not None:
        gates.append(
            at_most(
                "weights",
                memory.weights_bytes / 1024 if memory else None,
                budgets.weights_kib,
                unit="KiB",
                meaning="the engine's weights are larger than their budget"
                if memory
                else "the engine's weights were not counted",
            )
        )
    if budgets.energy_mj is not None:
        taken = f"{energy.median_uj / 1e3:.4g} mJ" if energy else "an amount that was not metered"
        gates.append(
            at_most(
                "energy",
                energy.median_uj / 1e3 / budgets.energy_mj - 1 if energy else None,
                tolerances.energy_over_budget,
                unit="of the budget above it",
                meaning=f"a call takes {taken}; the budget is {budgets.energy_mj:.4g} mJ",
            )
        )
    return tuple(gates)


def _accuracies(
    twin: NDArray[np.int64], engine: NDArray[np.int64], labels: NDArray[np.int64]
) -> TwinAndEngine:
    return TwinAndEngine(
        twin=Accuracy.from_flags(twin == labels), engine=Accuracy.from_flags(engine == labels)
    )


def _points_between(higher: Accuracy, lower: Accuracy) -> float:
    """Return how many percentage points the first is above the second, on the same samples."""
    return 100 * (higher.correct - lower.correct) / higher.n


def _check_budget(budget_ms: float | None) -> None:
    if budget_ms is not None and not (math.isfinite(budget_ms) and budget_ms > 0):
        raise ConfigError(f"a latency budget is a time in milliseconds above 0, not {budget_ms}")


def _check_types(images: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    if images.dtype != np.float32 or labels.dtype != np.int64:
        raise DataError(f"images are float32 and labels int64, not {images.dtype}, {labels.dtype}")
    if not len(images):
        raise DataError("there are no images to verify the engine on")


def _check_labels(labels: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
    n, classes = logits.shape
    if labels.shape != (n,):
        raise DataError(f"{n} images need {n} labels, not an array of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels are in [{labels.min()}, {labels.max()}], but the network has {classes} classes"
        )
