"""How an engine is verified, and what was found on it: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hwnas.core.errors import ConfigError

# Not for type checking alone: msgspec evaluates the annotations when it decodes.
from hwnas.robustness.evaluate import Accuracy
from hwnas.robustness.signs import MaskingSigns
from hwnas.robustness.threat import ThreatModel
from hwnas.verify.gates import Gate, require
from hwnas.verify.parity import Parity
from hwnas.verify.speed import BATCHES, Speed
from hwnas.verify.tolerances import Tolerances
from hwnas_export.memory import ModelMemory
from hwnas_profilers.records import EnergyStatistics, Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySettings:
    """How an engine is verified.

    Attributes:
        square_queries: Queries of the black box per sample.
        square_samples: Samples that it attacks, drawn at random; the first ones of a data set are
            not a fair sample.
        adaptive_samples: Of these samples, those that the attacks made for the engine itself get.
        adaptive_steps: Gradient steps of each of these attacks.
        masking_samples: Samples for the checks of the attack itself.
        batch: Images per call, where the engine's own batch is free.
        throughput_batches: Batches that throughput is measured at, of those that the engine takes.
        seed: Seed of the draws and of the attacks.
        tolerances: What each gate allows. What is set here holds for every precision; the defaults
            are those of the engine's own (`Tolerances.for_precision`).
    """

    square_queries: int = 1000
    square_samples: int = 1000
    adaptive_samples: int = 256
    adaptive_steps: int = 100
    masking_samples: int = 128
    batch: int = 128
    throughput_batches: tuple[int, ...] = BATCHES
    seed: int = 0
    tolerances: Tolerances = field(default_factory=Tolerances)

    def __post_init__(self) -> None:
        for name in (
            "square_queries", "square_samples", "adaptive_samples", "adaptive_steps",
            "masking_samples", "batch",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if any(batch < 1 for batch in self.throughput_batches):
            raise ConfigError(
                f"throughput_batches are at least 1, not {min(self.throughput_batches)}"
            )
        if self.seed < 0:
            raise ConfigError(f"seed must be 0 or more, not {self.seed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinAndEngine:
    """One figure for the reference and for the engine, on the same samples."""

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


Gradients = Literal["the PyTorch twin", "fake quantization of the engine"]
"""What an attack on the engine differentiates in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """Attacks by gradients that are made for the engine itself, on a random subset.

    Each is APGD with the cross-entropy, then with the difference of logits ratio. All accuracies
    are of the same samples, those that are wrong from the start counted as broken.

    Attributes:
        clean: The engine's, on the images as they are.
        twin: The twin's, under PGD and under APGD made on it.
        replay: The engine's, under these examples.
        square: The engine's, under Square alone.
        adaptive: The engine's, under the replayed examples and under APGD whose logits are the
            engine's and whose gradients are those of `gradients`.
        worst_case: Right under all of them: what the engine may be said to be.
        square_alone: Share of samples that Square breaks and no attack by gradients does.
        gradients: What was differentiated in the engine's place.
        parity: That module against the engine, on the clean images of the subset.
        note: Why it is not the fake quantization, where the engine is quantized.
        steps: Gradient steps of each attack.
    """

    clean: Accuracy
    twin: Accuracy
    replay: Accuracy
    square: Accuracy
    adaptive: Accuracy
    worst_case: Accuracy
    square_alone: float
    gradients: Gradients
    parity: Parity
    note: str
    steps: int


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
        masking: Checks of the white-box attack; None where eps is 0 or there are no gradients.
        budget_ms: The latency budget, if one was given.
        latency: The measured latency, if it was given.
        settings: How it was verified, with the tolerances that were applied.
        gates: Each gate and how it came out.
        memory: The engine's weights and peak of activations, counted; None where they were not.
        energy: Its metered energy; None where it was not metered.
        precision: The precision whose tolerances were the defaults.
        crafted: How the replayed adversarial examples were made.
        adaptive: Attacks made for the engine; None where eps is 0 or there are no gradients.
        speed: Slowest calls and throughput; None where they were not measured.
        left_out: What was not checked, and why: these gates are not among `gates`, and count
            neither as passed nor as failed.
        seconds: Wall time of each part. Not compared: it differs from run to run.
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
    precision: str = "fp32"
    crafted: str = ""
    adaptive: Adaptive | None = None
    speed: Speed | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def passed(self) -> bool:
        """Whether every gate was passed."""
        return all(gate.passed for gate in self.gates)

    def require(self) -> None:
        """Raise GateFailedError, naming each failed gate, unless all were passed."""
        require(self.gates)
