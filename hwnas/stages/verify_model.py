"""Any ONNX file, verified against the model that it was made from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from hwnas.core.errors import ConfigError, InputFileError
from hwnas.data.sources import load_data
from hwnas.deploy.engines import runner_for
from hwnas.robustness.evaluate import logits_from_runner
from hwnas.stages.attack_subjects import open_subject
from hwnas.stages.bundle import arrays_of
from hwnas.stages.config import load_config
from hwnas.stages.verify import VerifyResult
from hwnas.verify.speed import measure_speed
from hwnas.verify.verification import verify_engine
from hwnas_export.memory import memory_of_onnx
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.precision import precision_of
from hwnas_export.torch_from_onnx import check_twin
from hwnas_export.torch_runner import TorchRunner
from hwnas_profilers.breakdown.model import model_source

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from hwnas.core.progress import Progress
    from hwnas.robustness.square import Predict
    from hwnas.robustness.threat import ThreatModel
    from hwnas.stages.attack_subjects import Subject
    from hwnas.stages.config import RunConfig
    from hwnas_export.runner import Runner
    from hwnas_profilers.timing import TimingSettings

_TARGETS = {
    "fp32": "onnxruntime-cpu",
    "fp16": "onnxruntime-cpu-fp16",
    "int8": "onnxruntime-cpu-int8",
}
# A module that was made of an ONNX file must decide as the file does: rounding moves few images.
_AGREEMENT = 0.99
_COMPARED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelToVerify:
    """One engine and its reference, as the command names them.

    Attributes:
        reference: What `open_subject` takes.
        engine: An ONNX file.
        weights: Weights of a reference that code builds.
        config: TOML file of settings.
        data: The images' source; None takes the file's, or the reference's own.
        threat: Settings of the threat model that were given; None for those that were not.
        n: Test images; None takes all.
        budget_ms: Bound on the latency.
        target: The runtime; empty for ONNX Runtime on the CPU in the engine's precision.
        threads: Threads within an operator.
    """

    reference: Path
    engine: Path
    weights: Path | None
    config: Path | None
    data: str | None
    threat: dict[str, Any]
    n: int | None
    budget_ms: float | None
    target: str
    threads: int

    def verify(self, timing: TimingSettings, progress: Progress) -> VerifyResult:
        """Verify the engine. Raises as `hwnas.stages.verify.verify`, save for gates."""
        if self.n is not None and self.n < 1:
            raise ConfigError(f"`n` is at least 1, not {self.n}")
        model = _model(self.engine)
        precision = precision_of(onnx.load_model_from_string(model))
        config, subject, threat = self._opened()
        images, labels = self._images(config)
        batches = config.verify.throughput_batches
        target = self.target or _TARGETS[precision]
        with (
            runner_for(target, model, threads=self.threads) as engine,
            self._reference(subject, images) as beside,
        ):
            twin, reason = _twin(subject, beside, images)
            if reason:
                progress.say(f"verify: without white-box attacks: {reason}")
            found = verify_engine(
                twin=twin,
                engine=engine,
                images=images,
                labels=labels,
                threat=threat,
                precision=precision,
                model=model,
                budget_ms=self.budget_ms,
                speed=measure_speed(
                    engine, settings=timing, batches=batches, beside=beside, progress=progress
                ),
                memory=memory_of_onnx(onnx.load_model_from_string(model), batch=1),
                settings=config.verify,
                progress=progress,
            )
        if reason:
            found = replace(found, left_out=dict.fromkeys(found.left_out, reason))
        return VerifyResult(
            bundle=str(self.engine),
            passed=found.passed,
            verification=found,
        )

    def _opened(self) -> tuple[RunConfig, Subject, ThreatModel]:
        """Put settings in order: given ones, the file's, the reference's own, defaults."""
        config = load_config(self.config, data=self.data)
        classes = 1
        if self.weights is not None:  # a zoo's network is built for the classes of the data
            classes = len(load_data(config.data).class_names)
        subject = open_subject(self.reference, self.weights, classes)
        if self.config is None and subject.data is not None:
            own = replace(subject.data, source=self.data) if self.data else subject.data
            config = replace(config, data=own)
        known = self.config is None and subject.threat is not None
        threat = subject.threat if known and subject.threat is not None else config.threat
        changes = {name: value for name, value in self.threat.items() if value is not None}
        if len(changes.keys() & {"norm", "steps"}) and threat.step_size is not None:
            changes["step_size"] = None  # it belongs to the norm and the steps that it was set for
        return config, subject, replace(threat, **changes)

    def _images(self, config: RunConfig) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        images, labels = arrays_of(load_data(config.data).test)
        if self.n is None or self.n >= len(images):
            return images, labels
        order = np.random.default_rng(config.verify.seed).permutation(len(images))
        chosen = order[: self.n]
        return images[chosen], labels[chosen]

    def _reference(self, subject: Subject, images: NDArray[np.float32]) -> Runner:
        """Return what the reference runs with, and is timed with, beside the engine."""
        if subject.engine is not None:
            return OnnxRuntimeRunner(subject.engine, threads=self.threads)
        assert subject.module is not None
        channels, height, width = images.shape[1:]
        return TorchRunner(subject.module, (None, channels, height, width))


def _model(engine: Path) -> bytes:
    """Read an engine's ONNX model, with the weights that lie beside it.

    Raises:
        ConfigError: It is no ONNX file.
        InputFileError: It does not exist, or is cut.
    """
    if engine.suffix != ".onnx":
        raise ConfigError(
            f"{engine} is no .onnx file: an engine is verified from its ONNX model",
            hint="a TensorRT plan is verified in its bundle: `hwnas verify BUNDLE --target NAME`",
        )
    model_source(engine)
    try:
        serialized: bytes = onnx.load(engine).SerializeToString()
    except OSError as error:
        raise InputFileError(f"{engine} cannot be read: {error.strerror or error}") from error
    return serialized


def _twin(
    subject: Subject, runner: Runner, images: NDArray[np.float32]
) -> tuple[nn.Module | Predict, str]:
    """Return what is attacked in the reference's place, and why it has no gradients if so."""

    def ask(part: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits_from_runner(runner, part, batch=len(part))

    if subject.module is None:
        return ask, subject.reason
    if subject.engine is None or subject.kind == "bundle":
        return subject.module, ""
    parity = check_twin(subject.engine, subject.module, images[:_COMPARED])
    if parity.agreement < _AGREEMENT:
        return ask, (
            f"the module made of {subject.name} decides otherwise than ONNX Runtime for "
            f"{1 - parity.agreement:.0%} of {parity.n} images"
        )
    return subject.module, ""
