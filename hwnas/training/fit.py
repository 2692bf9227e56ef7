"""Training one network, teacher or student: the loop around the robust losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, final

import torch

from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT, Progress
from hwnas.data.images import Split, batch_sizes, batches
from hwnas.space.memory_format import channels_last
from hwnas.training.averaging import BestWeights, averaged_model
from hwnas.training.figures import accuracy, fgsm_accuracy, pgd_accuracy
from hwnas.training.loop import (
    Epoch,
    Figures,
    Stateful,
    check_rates,
    one_cycle,
    run_epochs,
    set_learning_rate,
)
from hwnas.training.precision import TrainingPrecision
from hwnas.training.robust import (
    RobustMethod,
    RobustSettings,
    check_method,
    check_robust_settings,
)
from hwnas.training.robust_guard import Guard

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from hwnas.core.metrics import MetricLog
    from hwnas.data.images import ImageData
    from hwnas.data.sources import DataConfig
    from hwnas.robustness.evaluate import Accuracy
    from hwnas.robustness.threat import ThreatModel
    from hwnas.training.robust_guard import Attack

_GUARD_IMAGES = 128
"""Held-out images that the guard looks at: a collapse is a matter of tens of points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings(RobustSettings):
    """Settings that the trainings of a teacher and of a student share.

    Attributes:
        robust: How it is trained against perturbations: see `hwnas.training.robust`.
        epochs: Epochs at most.
        batch: Images per step.
        learning_rate: Peak rate (one cycle).
        weight_decay: Weight decay.
        optimizer: `adamw`, or `sgd` with Nesterov's momentum, which recipes of fast adversarial
            training use (with rates of 0.1 to 0.4 and a weight decay of 5e-4).
        momentum: Of `sgd`.
        warmup: Share of the training in which the rate goes up.
        gradient_clip: Longest gradient (l2 norm over all weights) that is taken as it is; 0 clips
            none.
        training_precision: `bf16` computes passes under autocast to bfloat16; weights, losses and
            the figures at the end stay in float32. Faster for dense convolutions where the
            processor has it, often slower for depthwise ones.
        averaging: Decay of a running average of the weights, which is what training gives then;
            0 averages nothing. 0.995 and more are usual.
        keep: Which weights training gives: the `last`, or those of the epoch of the `best` accuracy
            on PGD examples of held-out images.
        patience: Epochs without a better one after which training ends; 0 runs them all. Needs
            `keep = "best"`.
        held_out_images: Validation images, drawn by the seed, that robust accuracy is measured on
            after each epoch; 0 measures none.
        held_out_steps: PGD steps there.
        guard: Watch a training by single steps (`fast-at`) for catastrophic overfitting.
    """

    robust: RobustMethod = "pgd-at"
    epochs: int = 15
    batch: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 5e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    warmup: float = 0.2
    gradient_clip: float = 0.0
    training_precision: TrainingPrecision = "fp32"
    averaging: float = 0.0
    keep: Literal["last", "best"] = "last"
    patience: int = 0
    held_out_images: int = 128
    held_out_steps: int = 5
    guard: bool = True

    @property
    def measures_robustness(self) -> bool:
        """Whether robust accuracy is measured after each epoch."""
        return self.robust != "none" and self.held_out_images > 0

    @property
    def is_guarded(self) -> bool:
        """Whether it is watched for catastrophic overfitting."""
        return self.robust == "fast-at" and self.guard


def check_fit_settings(settings: FitSettings, *, has_teacher: bool) -> None:
    """Refuse settings that are out of range or contradict each other.

    Args:
        settings: The settings.
        has_teacher: Whether what is trained learns from a teacher.

    Raises:
        ConfigError: The setting is named.
    """
    check_method(settings.robust, has_teacher=has_teacher)
    if min(settings.epochs, settings.attack_steps) < 1 or settings.batch < 2:
        raise ConfigError("`epochs` and `attack_steps` are at least 1 and `batch` at least 2")
    check_rates(settings, positive=("learning_rate",), weights=("weight_decay", "gradient_clip"))
    check_robust_settings(settings, settings.robust)
    for name, low in (("held_out_images", 0), ("patience", 0), ("held_out_steps", 1)):
        if getattr(settings, name) < low:
            raise ConfigError(f"`{name}` is at least {low}, not {getattr(settings, name)}")
    for name in ("momentum", "averaging", "warmup"):
        if not 0 <= getattr(settings, name) < 1:
            raise ConfigError(
                f"`{name}` is at least 0 and less than 1, not {getattr(settings, name)}"
            )
    if settings.patience and settings.keep != "best":
        raise ConfigError(
            f'`patience` ({settings.patience}) waits for a better epoch, but `keep` is "last"',
            hint='set `keep = "best"`, or leave `patience` out',
        )
    if settings.keep == "best" and not settings.measures_robustness:
        why = (
            f"`robust` is {settings.robust}"
            if settings.held_out_images
            else "`held_out_images` is 0"
        )
        raise ConfigError(
            f'`keep = "best"` goes by accuracy under attack, which is not measured: {why}',
            hint='set `keep = "last"`',
        )
    if settings.is_guarded and not settings.held_out_images:
        raise ConfigError(
            "the `guard` of fast-at looks at held-out images, but `held_out_images` is 0",
            hint="set it to 128, or `guard = false` to train unwatched",
        )


class Loss(Protocol):
    """What a training lowers, given what to attack with."""

    def __call__(
        self, images: Tensor, labels: Tensor, attack: Attack, generator: torch.Generator
    ) -> Tensor:
        """Compute one loss per image, (batch,).

        Args:
            images: (batch, channels, height, width), pixels in [0, 1].
            labels: (batch,)
            attack: The method and its settings, as the guard has them now.
            generator: Source of all randomness.
        """
        ...


def fit(
    name: str,
    network: nn.Module,
    loss: Loss,
    data: ImageData,
    data_config: DataConfig,
    threat: ThreatModel,
    settings: FitSettings,
    *,
    seed: int,
    checkpoint: Path,
    depends_on: Mapping[str, Any],
    device: torch.device | str = "cpu",
    log: MetricLog | None = None,
    progress: Progress = SILENT,
) -> list[Figures]:
    """Train a network in place.

    Args:
        name: What trains, for progress and errors.
        network: The network, initialized; takes pixels in [0, 1], gives (batch, classes).
        loss: What is lowered; it runs the network.
        data: The images; the test split is not touched.
        data_config: Augmentation.
        threat: What it is trained against.
        settings: The settings.
        seed: Seed of order, augmentation and attacks.
        checkpoint: Where each epoch is kept.
        depends_on: Settings and inputs that the training depends on, those of `settings` included;
            a checkpoint of others is refused.
        device: What to compute on; the network stays there.
        log: Where each epoch's figures go besides.
        progress: Where to report.

    Returns:
        The figures of every epoch: `loss`, `validation_accuracy` and, of robust trainings,
        `pgd_accuracy`, both of the weights that it would give then; of guarded ones `guard_fgsm`,
        `guard_pgd`, `guard_level` (collapses so far) and `went_back` (1 after a collapse).

    Raises:
        ConfigError: The threat is none that networks are trained against here.
        TrainingDivergedError: A loss is not finite.
    """
    if settings.robust != "none" and (threat.norm, threat.protocol) != ("linf", "pixel"):
        raise ConfigError(
            f"robust training is against l_inf perturbations of pixels, but [threat] has norm "
            f"{threat.norm} and protocol {threat.protocol}",
            hint='train with an l_inf [threat] and attack with another later, or `robust = "none"`',
        )
    run = _Fit(name, network, loss, data, data_config, threat, settings, seed, device, progress)
    history = run_epochs(
        name,
        run.epoch,
        epochs=settings.epochs,
        seed=seed,
        parts=run.parts,
        checkpoint=checkpoint,
        settings={
            **depends_on,
            **data_config.as_settings(),
            "eps": threat.eps_pixels,
            "seed": seed,
        },
        finished=run.is_finished,
        log=log,
        progress=progress,
    )
    run.finish()
    return history


@final
class _Fit:
    """A network under training and its epochs."""

    def __init__(
        self,
        name: str,
        network: nn.Module,
        loss: Loss,
        data: ImageData,
        data_config: DataConfig,
        threat: ThreatModel,
        settings: FitSettings,
        seed: int,
        device: torch.device | str,
        progress: Progress,
    ) -> None:
        self.name, self.loss, self.settings, self.progress = name, loss, settings, progress
        self.data_config, self.eps, self.device = data_config, threat.eps_pixels, device
        self.network = channels_last(network).to(device)
        # All images live on the device: those to train on as bytes, a quarter of their pixels.
        self.train = data.train.to(torch.device(device))
        validation = data.validation.to(torch.device(device))
        self.pixels, self.labels = validation.pixels(), validation.labels
        generator = torch.Generator().manual_seed(seed)
        self.held_out = validation.subset(settings.held_out_images, generator)
        self.guarded = Split(
            images=self.held_out.images[:_GUARD_IMAGES], labels=self.held_out.labels[:_GUARD_IMAGES]
        )
        self.seed = seed
        self.optimizer = _optimizer(network, settings)
        self.averaged = averaged_model(network, settings.averaging) if settings.averaging else None
        self.best = BestWeights() if settings.keep == "best" else None
        trained: dict[str, Stateful] = {"network": network, "optimizer": self.optimizer}
        if self.averaged is not None:
            trained["averaged"] = self.averaged
        self.guard = Guard(settings.robust, settings, trained)
        self.parts: dict[str, Stateful] = {**trained, "guard": self.guard}
        if self.best is not None:
            self.parts["best"] = self.best

    @property
    def given(self) -> nn.Module:
        """The network whose weights training would give now, but for the best epoch's."""
        return self.network if self.averaged is None else self.averaged.module

    def is_finished(self) -> bool:
        """Tell whether no better epoch has come for too long."""
        patience, best = self.settings.patience, self.best
        return bool(patience) and best is not None and best.waited >= patience

    def finish(self) -> None:
        """Give the network the weights that it is trained for."""
        if self.best is not None:
            self.best.load_into(self.network)
        elif self.averaged is not None:
            self.network.load_state_dict(self.averaged.module.state_dict())

    def epoch(self, epoch: Epoch) -> Figures:
        """Go through the training split once."""
        settings, generator = self.settings, epoch.generator
        steps = len(batch_sizes(self.train, settings.batch))
        losses = []
        stream = batches(
            self.train,
            settings.batch,
            generator,
            pad=self.data_config.pad,
            flip=self.data_config.flip,
        )
        for step, (images, labels) in enumerate(stream):
            rate = one_cycle(
                epoch.fraction(step, steps), settings.learning_rate, warmup=settings.warmup
            )
            set_learning_rate(self.optimizer, rate)
            loss = self.loss(images, labels, self.guard.attack, generator).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(epoch.step(loss, steps))
            if settings.gradient_clip:
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.gradient_clip)
            self.optimizer.step()
            if self.averaged is not None:
                self.averaged.update_parameters(self.network)
        return {"loss": sum(losses) / len(losses), **self._judged(epoch.index)}

    def _judged(self, epoch: int) -> Figures:
        """Judge what an epoch has come to, and let the best weights and the guard know."""
        settings, precision = self.settings, self.settings.training_precision
        figures = {
            "validation_accuracy": accuracy(
                self.given, self.pixels, self.labels, precision=precision
            )
        }
        if settings.measures_robustness:
            figures["pgd_accuracy"] = self._under_pgd(self.given, self.held_out).value
            if self.best is not None:
                self.best.offer(self.given, figures["pgd_accuracy"], epoch)
        if not settings.is_guarded:
            return figures
        # The weights as they are: in their average a collapse would show epochs later.
        fgsm = fgsm_accuracy(self.network, self.guarded, self.eps, precision=precision)
        pgd = self._under_pgd(self.network, self.guarded)
        attack = self.guard.attack
        collapsed = self.guard.judge(fgsm, pgd)
        if collapsed:
            self.progress.say(
                f"{self.name}: epoch {epoch + 1} overfitted to {attack}: {pgd.value:.1%} are right "
                f"under PGD, {fgsm.value:.1%} under FGSM; back to the last good epoch, and on "
                f"against {self.guard.attack}"
            )
        return figures | {
            "guard_fgsm": fgsm.value,
            "guard_pgd": pgd.value,
            "guard_level": float(self.guard.level),
            "went_back": float(collapsed),
        }

    def _under_pgd(self, network: nn.Module, split: Split) -> Accuracy:
        settings = self.settings
        return pgd_accuracy(
            network,
            split,
            self.eps,
            steps=settings.held_out_steps,
            seed=self.seed,
            precision=settings.training_precision,
        )


def _optimizer(network: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    return torch.optim.SGD(
        network.parameters(),
        lr=rate,
        weight_decay=decay,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
    )
