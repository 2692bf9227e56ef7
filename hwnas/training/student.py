"""Training a derived network: slim, with the tutors that the search chose, robustly by default."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

from hwnas.core.decoding import encode_json
from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT, Progress
from hwnas.data.images import batches
from hwnas.distill.attention import attention_distances, attention_loss, attention_maps
from hwnas.distill.losses import kl_to_teacher
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
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from hwnas.data.images import ImageData
    from hwnas.data.sources import DataConfig
    from hwnas.distill.teacher import Teacher
    from hwnas.robustness.threat import ThreatModel
    from hwnas.space.supernet import SlimNetwork

# Share of the adversarial term (Zi et al., RSLAD, eq. 7, and their released setting).
_RSLAD_ADVERSARIAL = 5 / 6


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Settings of the derived network's training.

    Attributes:
        robust: `rslad` distills the teacher's predictions on clean images into the student's on
            adversarial ones; `none` is the paper's loss on clean images, CE + KL + gamma_t L_attn,
            which leaves next to no accuracy at 8/255 in pixel space.
        init: `supernet` begins with the weights that the search trained; `scratch`, as the paper
            does, with new ones.
        epochs: Epochs.
        batch: Images per step.
        learning_rate: Peak rate (AdamW, one cycle).
        weight_decay: Weight decay.
        attention_weight: gamma_t.
        attack_steps: PGD steps of the inner maximization.
    """

    robust: Literal["rslad", "none"] = "rslad"
    init: Literal["supernet", "scratch"] = "supernet"
    epochs: int = 30
    batch: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 5e-3
    attention_weight: float = 1.0
    attack_steps: int = 3

    def __post_init__(self) -> None:
        if min(self.epochs, self.attack_steps) < 1 or self.batch < 2:
            raise ConfigError("`epochs` and `attack_steps` are at least 1 and `batch` at least 2")
        check_rates(self, positive=("learning_rate",), weights=("weight_decay", "attention_weight"))


def train_student(
    network: SlimNetwork,
    tutors: Sequence[Sequence[float]],
    teacher: Teacher,
    data: ImageData,
    data_config: DataConfig,
    threat: ThreatModel,
    config: TrainConfig,
    *,
    seed: int,
    checkpoint: Path,
    inputs: Mapping[str, str],
    progress: Progress = SILENT,
) -> list[Figures]:
    """Train a slim network in place.

    Args:
        network: The network, initialized.
        tutors: Of each of the network's tapped layers, the weights of the teacher's layers: the
            rows of `Derivation.tutor_weights`. Where all are 0 there are no tutors: only the
            teacher's predictions are learned from, and no layer of either is looked at.
        teacher: The robust network.
        data: The images; the test split is not touched.
        data_config: Augmentation.
        threat: What it is trained against.
        config: The settings.
        seed: Seed of order, augmentation and attacks.
        checkpoint: Where each epoch is kept.
        inputs: Hashes of the files behind the arguments; a checkpoint of others is refused.
        progress: Where to report.

    Returns:
        The figures of every epoch.

    Raises:
        ConfigError: The tutors are those of other networks.
        TrainingDivergedError: A loss is not finite.

    References:
        Nath et al., RNAS-CL (arXiv 2301.08092): L_train = CE + KL + gamma_t L_attn.
        Zi et al., "Revisiting adversarial robustness distillation: robust soft labels make student
        better" (ICCV 2021): both predictions are matched to the teacher's on clean images, and the
        attack maximizes the same divergence. With tutors, L_attn on clean images is added.
    """
    student = _Student(network, tutors, teacher, data, data_config, threat, config)
    return run_epochs(
        "train",
        student.epoch,
        epochs=config.epochs,
        seed=seed,
        parts={"network": network, "optimizer": student.optimizer},
        checkpoint=checkpoint,
        settings={
            **asdict(config),
            **data_config.as_settings(),
            **inputs,
            "eps": threat.eps_pixels,
            "seed": seed,
            "tutors": _digest(tutors),
        },
        progress=progress,
    )


class _Student:
    """A network under training and its steps."""

    def __init__(
        self,
        network: SlimNetwork,
        tutors: Sequence[Sequence[float]],
        teacher: Teacher,
        data: ImageData,
        data_config: DataConfig,
        threat: ThreatModel,
        config: TrainConfig,
    ) -> None:
        self.network = channels_last(network)
        self.teacher, self.config = teacher, config
        self.data, self.data_config = data, data_config
        self.eps = threat.eps_pixels
        self.tutors = _tutor_weights(tutors, network, teacher)
        self.pixels = data.validation.pixels()
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def epoch(self, epoch: Epoch) -> Figures:
        """Go through the training split once."""
        config, data = self.config, self.data
        steps = math.ceil(len(data.train) / config.batch)
        losses = []
        stream = batches(
            data.train,
            config.batch,
            epoch.generator,
            pad=self.data_config.pad,
            flip=self.data_config.flip,
        )
        for step, (images, labels) in enumerate(stream):
            rate = one_cycle(epoch.fraction(step, steps), config.learning_rate)
            set_learning_rate(self.optimizer, rate)
            loss = self._loss(images, labels, epoch.generator)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(epoch.step(loss, steps))
            self.optimizer.step()
        return {
            "loss": sum(losses) / len(losses),
            "validation_accuracy": accuracy(self.network, self.pixels, data.validation.labels),
        }

    def _loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        if not self._has_tutors:
            logits = self.teacher.logits(images)
            return self._prediction_loss(images, labels, logits, generator, taps=None)
        logits, teacher_maps = self.teacher.observe(images)
        taps: list[Tensor] = []
        loss = self._prediction_loss(images, labels, logits, generator, taps)
        maps = attention_maps([tap[: len(images)] for tap in taps], self.teacher.attention_size)
        distances = attention_distances(maps, teacher_maps)
        return loss + self.config.attention_weight * attention_loss(distances, self.tutors)

    @property
    def _has_tutors(self) -> bool:
        return self.config.attention_weight > 0 and bool(self.tutors.any())

    def _prediction_loss(
        self,
        images: Tensor,
        labels: Tensor,
        teacher_logits: Tensor,
        generator: torch.Generator,
        taps: list[Tensor] | None,
    ) -> Tensor:
        """Compute what does not look into the networks; the taps begin with the clean images."""
        if self.config.robust == "none":
            self.network.train()
            logits = self.network(images, taps=taps)
            loss = functional.cross_entropy(logits, labels)
            return loss + kl_to_teacher(logits, teacher_logits).mean()
        adversarial = self._worst_case(images, labels, teacher_logits, generator)
        self.network.train()
        # One pass over both halves: batch normalization sees the mix that it will serve.
        both = self.network(torch.cat([images, adversarial]), taps=taps)
        clean_logits, adversarial_logits = both.chunk(2)
        attacked = kl_to_teacher(adversarial_logits, teacher_logits).mean()
        clean = kl_to_teacher(clean_logits, teacher_logits).mean()
        return _RSLAD_ADVERSARIAL * attacked + (1 - _RSLAD_ADVERSARIAL) * clean

    def _worst_case(
        self,
        images: Tensor,
        labels: Tensor,
        teacher_logits: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Perturb images to where the student is farthest from the teacher's clean prediction."""
        self.network.eval()
        return perturb(
            self.network,
            images,
            labels,
            eps=self.eps,
            steps=self.config.attack_steps,
            loss=lambda logits: kl_to_teacher(logits, teacher_logits),
            generator=generator,
        )


def _tutor_weights(
    rows: Sequence[Sequence[float]], network: SlimNetwork, teacher: Teacher
) -> Tensor:
    """Return (student layers, teacher layers); raise ConfigError where the rows are for others."""
    shape = (len(network.tap_names), len(teacher.layers))
    if len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
        raise ConfigError(
            f"tutors of {len(rows)} student layers over {sorted({len(row) for row in rows})} "
            f"teacher layers do not fit a network of {shape[0]} and a teacher of {shape[1]}",
            hint="derive the network again: `hwnas derive`",
        )
    return torch.tensor(rows, dtype=torch.float32)


def _digest(rows: Sequence[Sequence[float]]) -> str:
    """Return what tells tutors from others: the rows themselves would fill the error with zeros."""
    return hashlib.sha256(encode_json([list(row) for row in rows])).hexdigest()[:16]
