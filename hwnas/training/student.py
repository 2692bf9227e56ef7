"""Training a derived network: slim, with the tutors that the search chose, robustly by default."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch

from hwnas.core.decoding import encode_json
from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT, Progress
from hwnas.distill.attention import attention_distances, attention_loss, maps_of_energies
from hwnas.space.energy import channel_energy
from hwnas.training.fit import FitSettings, check_fit_settings, fit
from hwnas.training.loop import check_rates
from hwnas.training.precision import in_precision
from hwnas.training.robust import NEEDS_TEACHER, RobustMethod, robust_loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from hwnas.core.metrics import MetricLog
    from hwnas.data.images import ImageData
    from hwnas.data.sources import DataConfig
    from hwnas.distill.teacher import Teacher
    from hwnas.robustness.threat import ThreatModel
    from hwnas.space.supernet import SlimNetwork
    from hwnas.training.loop import Figures
    from hwnas.training.robust_guard import Attack


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(FitSettings):
    """Settings of the derived network's training, beside those of `FitSettings`.

    Attributes:
        robust: `rslad` distills the teacher's predictions on clean images into the student's on
            adversarial ones; `none` is the paper's loss on clean images, CE + KL + gamma_t L_attn,
            which leaves next to no accuracy at 8/255 in pixel space. For the others see
            `hwnas.training.robust`; to all of them gamma_t L_attn is added.
        init: `supernet` begins with the weights that the search trained; `scratch`, as the paper
            does, with new ones.
        epochs: Epochs at most.
        attention_weight: gamma_t.
    """

    robust: RobustMethod = "rslad"
    init: Literal["supernet", "scratch"] = "supernet"
    epochs: int = 30
    attention_weight: float = 1.0

    def __post_init__(self) -> None:
        check_fit_settings(self, has_teacher=True)
        check_rates(self, positive=(), weights=("attention_weight",))
        if self.robust != "none" and self.kl_weight != 1.0:
            raise ConfigError(
                f"`kl_weight` is a setting of robust = none, but `robust` is {self.robust}"
            )


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
    device: torch.device | str = "cpu",
    log: MetricLog | None = None,
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
        device: What to compute on: where the teacher is, and the network stays.
        log: Where each epoch's figures go besides.
        progress: Where to report.

    Returns:
        The figures of every epoch.

    Raises:
        ConfigError: The tutors are those of other networks.
        TrainingDivergedError: A loss is not finite.

    References:
        Nath et al., RNAS-CL (arXiv 2301.08092): L_train = CE + KL + gamma_t L_attn, which is
        `robust = "none"`. Robust losses take the place of CE + KL. L_attn is then of the clean
        images where a method runs them, else of the adversarial ones, and always toward the
        teacher's maps of the clean ones.
    """
    student = _Student(network, tutors, teacher, threat, config, device)
    return fit(
        "train",
        network,
        student.loss,
        data,
        data_config,
        threat,
        config,
        seed=seed,
        checkpoint=checkpoint,
        depends_on={**asdict(config), **inputs, "tutors": _digest(tutors)},
        device=device,
        log=log,
        progress=progress,
    )


class _Student:
    """A network that learns from its tutors, and what it lowers."""

    def __init__(
        self,
        network: SlimNetwork,
        tutors: Sequence[Sequence[float]],
        teacher: Teacher,
        threat: ThreatModel,
        config: TrainConfig,
        device: torch.device | str,
    ) -> None:
        self.network, self.teacher = network, teacher
        self.attention_weight = config.attention_weight
        self.eps = threat.eps_pixels
        self.tutors = _tutor_weights(tutors, network, teacher).to(device)
        self.has_tutors = config.attention_weight > 0 and bool(self.tutors.any())
        self.forward = in_precision(network, config.training_precision)

    def loss(
        self, images: Tensor, labels: Tensor, attack: Attack, generator: torch.Generator
    ) -> Tensor:
        """Compute the robust loss of every image, and the attention loss where there are tutors."""
        taps: list[Tensor] = []

        def forward(batch: Tensor) -> Tensor:
            if not self.has_tutors:
                return self.forward(batch)
            taps.clear()  # those of the last pass count, whatever an attack ran before it
            return self.forward(batch, taps=taps)

        logits: Tensor | None = None
        if self.has_tutors:
            logits, teacher_maps = self.teacher.observe(images)
        elif self._asks_for_predictions(attack):
            logits = self.teacher.logits(images)
        losses = robust_loss(
            attack.method,
            forward,
            self.network.train,
            images,
            labels,
            logits,
            settings=attack.settings,
            eps=self.eps,
            generator=generator,
        )
        if not self.has_tutors:
            return losses
        # Of whole layers, the clean images' part only then: the gradient of a part of a layer comes
        # in another memory layout, in which the passes back through the network take twice as long.
        energies = [channel_energy(tap)[: len(images)] for tap in taps]
        maps = maps_of_energies(energies, self.teacher.attention_size)
        distances = attention_distances(maps, teacher_maps)
        return losses + self.attention_weight * attention_loss(distances, self.tutors)

    @staticmethod
    def _asks_for_predictions(attack: Attack) -> bool:
        if attack.method == "none":
            return attack.settings.kl_weight > 0
        return attack.method in NEEDS_TEACHER


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
