"""The sidecar of an engine, `engine.json`: what it is, for what, and what was found on it."""

from __future__ import annotations

from dataclasses import dataclass, field

# Not for type checking alone: msgspec evaluates the annotations when it decodes.
from hwnas.core.environment import Device
from hwnas_profilers.records import Statistics

SIDECAR_FILE = "engine.json"
ENGINES_FOLDER = "engines"
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationData:
    """The images that an int8 engine's ranges come from: held out, and never tested on.

    Attributes:
        source: The data's source, and its split.
        n: Images.
        seed: What they were drawn with.
        sha256: Hash of their pixels and shape.
    """

    source: str
    n: int
    seed: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyChoice:
    """This engine beside the one in FP32, timed in the same interleaved run when it was made.

    Attributes:
        batch: Images per call.
        engine: This engine.
        fp32: The engine in FP32 of the same runtime and threads; each has the session settings that
            were chosen for it.
        pays: Whether this one is faster: the interval of its median lies below the other's.
    """

    batch: int
    engine: Statistics
    fp32: Statistics
    pays: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """An engine that was asked for, made, and left out, as it is no faster than the one in FP32.

    Attributes:
        target: The target that it was for.
        kept: The target of the engine in FP32 that is there instead.
        choice: How long both took.
    """

    target: str
    kept: str
    choice: LatencyChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFigures:
    """What `verify` found on the engine, with the numbers of samples. Shares, not percent.

    Attributes:
        n: Test images.
        clean_accuracy: On them as they are.
        robust_accuracy: Worst case over all attacks that were made, on `robust_n` of them.
        robust_n: Images that were attacked by all of these attacks.
        threat: The threat model in words: norm, eps in pixel units, attacks, seed.
        latency: Measured latency at batch 1; None where it was not measured.
    """

    n: int
    clean_accuracy: float
    robust_accuracy: float
    robust_n: int
    threat: str
    latency: Statistics | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCard:
    """One engine of a bundle. Paths are relative to the bundle.

    Attributes:
        target: The target that it runs on, e.g. `onnxruntime-cpu-int8`, `tensorrt-fp16`.
        precision: `fp32`, `fp16` or `int8`: that of the ONNX model which it is made from. OpenVINO
            computes in bf16 from a model in fp32.
        model: That ONNX model.
        model_sha256: Its hash.
        source_sha256: Hash of the FP32 model that it was converted from: the bundle's `model.onnx`.
        plan: The engine that was built from it; empty where the runtime compiles when it loads.
        plan_sha256: The plan's hash; empty likewise.
        batches: Smallest, most frequent and largest batch.
        threads: Threads within an operator, on a CPU.
        session: Settings of the runtime that were chosen, by name; empty where there are none.
        packages: Versions of the runtime's packages.
        device: What it was made on; None where it was built ahead of time for a device elsewhere.
        compute_capabilities: Of the GPUs that it was built for; empty on a CPU.
        class_names: One per logit.
        image_shape: (channels, height, width).
        pixel_range: Values that pixels take.
        normalization: Where pixels are normalized.
        calibration: What its ranges come from; None where nothing is quantized.
        choice: What it gains over FP32; None for FP32 itself, and where it could not be run.
        figures: What `verify` found; None before.
    """

    target: str
    precision: str
    model: str
    model_sha256: str
    source_sha256: str
    plan: str = ""
    plan_sha256: str = ""
    batches: tuple[int, int, int] = (1, 1, 65_536)
    threads: int = 1
    session: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    device: Device | None = None
    compute_capabilities: tuple[str, ...] = ()
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    pixel_range: tuple[float, float]
    normalization: str = "inside the model"
    calibration: CalibrationData | None = None
    choice: LatencyChoice | None = None
    figures: EngineFigures | None = None
    schema: int = SCHEMA
