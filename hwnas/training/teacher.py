"""Training a robust teacher, for when none is at hand."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT, Progress
from hwnas.data.images import batches
from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec
from hwnas.distill.teacher_sources import check_source
from hwnas.robustness.pgd import perturb
from hwnas.space.memory_format import channels_last
from hwnas.training.figures import accuracy
from hwnas.training.loop import (
    Epoch,
    Figures,
    check_rates,
    one_cycle,
    run_epochs,
    set_learning_rate,
)

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.data.images import ImageData
    from hwnas.data.sources import DataConfig
    from hwnas.robustness.threat import ThreatModel


_NOT_TRAINING = ("source", "weights", "layers", "precision", "judged_images")
"""Settings that training does not depend on: a checkpoint goes on whatever they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """Settings of a teacher: where it comes from, or its adversarial training.

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
        epochs: Epochs.
        batch: Images per step.
        learning_rate: Peak rate (AdamW, one cycle).
        weight_decay: Weight decay.
        attack_steps: PGD steps of the inner maximization.
    """

    source: str = ""
    weights: str = ""
    layers: tuple[str, ...] = ()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    judged_images: int = 1000
    width: int = 32
    blocks: tuple[int, ...] = (1, 1, 1)
    epochs: int = 15
    batch: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 5e-3
    attack_steps: int = 3

    def __post_init__(self) -> None:
        if min(self.epochs, self.attack_steps) < 1 or self.batch < 2:
            raise ConfigError("`epochs` and `attack_steps` are at least 1 and `batch` at least 2")
        if self.judged_images < 0:
            raise ConfigError(f"`judged_images` is at least 0, not {self.judged_images}")
        check_source(self.source)
        check_rates(self, positive=("learning_rate",), weights=("weight_decay",))


def train_teacher(
    data: ImageData,
    data_config: DataConfig,
    threat: ThreatModel,
    config: TeacherConfig,
    *,
    seed: int,
    checkpoint: Path,
    progress: Progress = SILENT,
) -> tuple[TeacherNetwork, TeacherSpec, list[Figures]]:
    """Train a residual network adversarially: cross-entropy on PGD examples.

    Args:
        data: The images; the test split is not touched.
        data_config: Augmentation.
        threat: What it is trained against.
        config: The settings.
        seed: Seed of initialization, order, augmentation and attacks.
        checkpoint: Where each epoch is kept.
        progress: Where to report.

    Returns:
        The network, its shape and the figures of every epoch.

    Raises:
        TrainingDivergedError: A loss is not finite.

    References:
        Madry et al., "Towards deep learning models resistant to adversarial attacks" (2018),
        eq. 2.1.
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
    channels_last(network)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    pixels = data.validation.pixels()
    steps = math.ceil(len(data.train) / config.batch)

    def body(epoch: Epoch) -> Figures:
        network.train()
        losses = []
        stream = batches(
            data.train, config.batch, epoch.generator, pad=data_config.pad, flip=data_config.flip
        )
        for step, (images, labels) in enumerate(stream):
            rate = one_cycle(epoch.fraction(step, steps), config.learning_rate)
            set_learning_rate(optimizer, rate)
            network.eval()
            adversarial = perturb(
                network,
                images,
                labels,
                eps=threat.eps_pixels,
                steps=config.attack_steps,
                generator=epoch.generator,
            )
            network.train()
            loss = functional.cross_entropy(network(adversarial), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(epoch.step(loss, steps))
            optimizer.step()
        return {
            "loss": sum(losses) / len(losses),
            "validation_accuracy": accuracy(network, pixels, data.validation.labels),
        }

    history = run_epochs(
        "teacher",
        body,
        epochs=config.epochs,
        seed=seed,
        parts={"network": network, "optimizer": optimizer},
        checkpoint=checkpoint,
        settings={
            **{key: value for key, value in asdict(config).items() if key not in _NOT_TRAINING},
            **data_config.as_settings(),
            "eps": threat.eps_pixels,
            "seed": seed,
        },
        progress=progress,
    )
    return network, spec, history
