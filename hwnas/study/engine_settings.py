"""The table [engines] of a study: which are made of its networks, and how they are judged."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.core.errors import ConfigError, TargetError
from hwnas.stages.checks import check_deployable
from hwnas_profilers.targets import RUNTIMES


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The table [engines]: engines are judged beside the PyTorch network that they were made from.

    Batch and tolerances are those of [base.verify], as in `hwnas run`. All attacks get all images.

    Attributes:
        targets: Targets that engines are made for, e.g. onnxruntime-cpu, onnxruntime-cpu-int8;
            empty for none.
        threat: Name of the threat that they are attacked under; empty for the first that is in
            pixel units.
        images: Test images, drawn as those of [judge]; 0 takes as many as [judge].
        queries: The most queries of Square per image.
        steps: Gradient steps of each of the attacks that are made for the engine itself.
        calibration_images: Validation images that ranges of int8 are taken from.
    """

    targets: tuple[str, ...] = ()
    threat: str = ""
    images: int = 0
    queries: int = 1000
    steps: int = 100
    calibration_images: int = 512

    def __post_init__(self) -> None:
        if self.images < 0 or min(self.queries, self.steps, self.calibration_images) < 1:
            raise ConfigError(
                "`images` is at least 0, `queries`, `steps` and `calibration_images` at least 1"
            )
        for target in self.targets:
            try:
                check_deployable(target)
            except TargetError as error:
                raise ConfigError(error.message, hint=error.hint) from error
        if len(set(self.targets)) != len(self.targets):
            raise ConfigError(f"`targets` are each named once, not {', '.join(self.targets)}")

    @property
    def names(self) -> dict[str, str]:
        """What engines are called, by target: by their precision where that tells them apart.

        >>> EngineSettings(targets=("onnxruntime-cpu", "onnxruntime-cpu-int8")).names
        {'onnxruntime-cpu': 'fp32', 'onnxruntime-cpu-int8': 'int8'}
        >>> list(EngineSettings(targets=("onnxruntime-cpu", "openvino-cpu")).names.values())
        ['onnxruntime-cpu', 'openvino-cpu']
        """
        precisions = [RUNTIMES[target].precision for target in self.targets]
        return {
            target: target if precisions.count(precision) > 1 else precision
            for target, precision in zip(self.targets, precisions, strict=True)
        }
