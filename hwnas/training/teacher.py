"""Training a robust teacher, for when none is at hand."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch

from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT, Progress
from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec
from hwnas.distill.teacher_sources import check_source
from hwnas.training.fit import FitSettings, check_fit_settings, fit
from hwnas.training.precision import in_precision
from hwnas.training.robust import robust_loss

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from hwnas.core.metrics import MetricLog
    from hwnas.data.images import ImageData
    from hwnas.data.sources import DataConfig
    from hwnas.robustness.threat import ThreatModel
    from hwnas.training.loop import Figures
    from hwnas.training.robust_guard import Attack


_NOT_TRAINING = ("source", "weights", "layers", "precision", "judged_images")
"""Settings that training does not depend on: a checkpoint goes on whatever they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig(FitSettings):
    """Settings of a teacher: where it comes from, or its adversarial training.

    How it is trained are the settings of `FitSettings` and `RobustSettings`.

    Attributes:
        source: What builds its network: `package.module:callable`, `FILE.py:callable`,
            `torchvision:NAME`, `timm:NAME` or `robustbench:NAME`; empty takes our own.
        weights: A safetensors file of trained weights: of the source's network, or of our own of
            this width and these blocks. Empty takes what the source brings, or trains our own.
        layers: Layers that may be tutors, by name or pattern; empty chooses them.
        precision: What it computes in when it teaches; `auto` takes bf16 where that is faster and
            as good, once, when the teacher is made.
        judged_images: Validation images that it is judged on, drawn by the seed; 0 takes all.
        width: Channels of the first stage.
        blocks: Residual blocks per stage.
    """

    source: str = ""
    weights: str = ""
    layers: tuple[str, ...] = ()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    judged_images: int = 1000
    width: int = 32
    blocks: tuple[int, ...] = (1, 1, 1)

    def __post_init__(self) -> None:
        check_fit_settings(self, has_teacher=False)
        if self.judged_images < 0:
            raise ConfigError(f"`judged_images` is at least 0, not {self.judged_images}")
        if self.kl_weight != 1.0:
            raise ConfigError(
                "`kl_weight` weighs a teacher's predictions, and a teacher has none to learn from",
                hint="it is a setting of [search] and [train]",
            )
        check_source(self.source)


def train_teacher(
    data: ImageData,
    data_config: DataConfig,
    threat: ThreatModel,
    config: TeacherConfig,
    *,
    seed: int,
    checkpoint: Path,
    inputs: Mapping[str, str] | None = None,
    device: torch.device | str = "cpu",
    log: MetricLog | None = None,
    progress: Progress = SILENT,
) -> tuple[TeacherNetwork, TeacherSpec, list[Figures]]:
    """Train a residual network adversarially: by default, cross-entropy on PGD examples.

    Args:
        data: The images; the test split is not touched.
        data_config: Augmentation.
        threat: What it is trained against.
        config: The settings.
        seed: Seed of initialization, order, augmentation and attacks.
        checkpoint: Where each epoch is kept.
        inputs: Hashes of the files behind the arguments; a checkpoint of others is refused.
        device: What to compute on; the network stays there.
        log: Where each epoch's figures go besides.
        progress: Where to report.

    Returns:
        The network, its shape and the figures of every epoch.

    Raises:
        TrainingDivergedError: A loss is not finite.

    References:
        Those of `RobustSettings`.
    """
    spec = TeacherSpec(
        image_shape=data.image_shape,
        classes=len(data.class_names),
        width=config.width,
        blocks=config.blocks,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TeacherNetwork(spec)
    network.normalize.set_statistics(*data.pixel_statistics())
    forward = in_precision(network, config.training_precision)

    def loss(images: Tensor, labels: Tensor, attack: Attack, generator: torch.Generator) -> Tensor:
        return robust_loss(
            attack.method,
            forward,
            network.train,
            images,
            labels,
            None,
            settings=attack.settings,
            eps=threat.eps_pixels,
            generator=generator,
        )

    settings = asdict(config) | dict(inputs or {})
    history = fit(
        "teacher",
        network,
        loss,
        data,
        data_config,
        threat,
        config,
        seed=seed,
        checkpoint=checkpoint,
        depends_on={key: value for key, value in settings.items() if key not in _NOT_TRAINING},
        device=device,
        log=log,
        progress=progress,
    )
    return network, spec, history
