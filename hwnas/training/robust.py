"""The losses of robust training, behind one interface: teachers, students and supernets use it.

| method    | trained on                 | loss of an image                                        |
|-----------|----------------------------|---------------------------------------------------------|
| `none`    | clean                      | CE, and w KL to the teacher where there is one          |
| `fast-at` | one step from random noise | CE                                                      |
| `pgd-at`  | PGD                        | CE                                                      |
| `trades`  | clean and PGD on the KL    | CE(clean) + beta KL(clean, adversarial)                 |
| `ard`     | clean and PGD              | a t^2 KL(teacher, adversarial) + (1 - a) CE(clean)      |
| `rslad`   | clean and PGD on the KL    | 5/6 KL(teacher, adversarial) + 1/6 KL(teacher, clean)   |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from torch.nn import functional

from hwnas.core.errors import ConfigError, nearest
from hwnas.distill.losses import kl_to_teacher
from hwnas.robustness.pgd import perturb

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hwnas.robustness.pgd import Loss
    from hwnas.robustness.threat import Eps

RobustMethod: TypeAlias = Literal["none", "fast-at", "pgd-at", "trades", "ard", "rslad"]
FastVariant: TypeAlias = Literal["n-fgsm", "fgsm-rs"]

ROBUST_METHODS: tuple[str, ...] = get_args(RobustMethod)
NEEDS_TEACHER = ("ard", "rslad")
"""Methods that learn from a teacher's predictions, and mean nothing without."""
TAKES_BOTH = ("trades", "ard", "rslad")
"""Methods that run clean images and adversarial ones in one pass, the clean ones first."""

_KNOWN = ", ".join(ROBUST_METHODS)

# Share of the adversarial term (Zi et al., RSLAD, eq. 7, and their released setting).
_RSLAD_ADVERSARIAL = 5 / 6
# Start (in eps) and step (in eps) of the single step, as their papers found best.
_FAST_NOISE = {"n-fgsm": 2.0, "fgsm-rs": 1.0}
_FAST_STEP = {"n-fgsm": 1.0, "fgsm-rs": 1.25}


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustSettings:
    """Settings of the robust losses. Each counts for the methods that it names.

    Attributes:
        kl_weight: Weight of the KL to the teacher's predictions in `none`; with 0 labels alone are
            learned from, and the teacher's predictions are not asked for.
        attack_steps: PGD steps of the inner maximization, of 2.5 eps / steps each (all but
            `fast-at`). The papers take 7 to 10; 3 cost a third and train small networks as well.
        fast_variant: The single step of `fast-at`. `n-fgsm` starts at stronger noise and does not
            go back into the ball, which keeps its gradients honest; `fgsm-rs` starts within it.
        fast_noise: Half the width of the uniform noise that it starts at, in eps; 0 takes its
            paper's: 2 (n-fgsm), 1 (fgsm-rs).
        fast_step: Length of the step, in eps; 0 takes its paper's: 1 (n-fgsm), 1.25 (fgsm-rs).
        trades_beta: Weight of the KL in `trades`.
        ard_weight: a of `ard`: share of the teacher's predictions beside the labels, in [0, 1].
        ard_temperature: t of `ard`, which softens both predictions.
        label_smoothing: Share of the labels' mass that goes to all classes alike, in [0, 1), in
            every CE that is trained on; attacks see plain labels.

    References:
        Madry et al., "Towards deep learning models resistant to adversarial attacks" (ICLR 2018).
        Wong et al., "Fast is better than free" (ICLR 2020): fgsm-rs.
        de Jorge et al., "Make some noise" (NeurIPS 2022): n-fgsm.
        Zhang et al., TRADES (ICML 2019): beta 6.
        Goldblum et al., "Adversarially robust distillation" (AAAI 2020): a 1, t 30 on CIFAR-10.
        Zi et al., RSLAD (ICCV 2021).
    """

    kl_weight: float = 1.0
    attack_steps: int = 3
    fast_variant: FastVariant = "n-fgsm"
    fast_noise: float = 0.0
    fast_step: float = 0.0
    trades_beta: float = 6.0
    ard_weight: float = 1.0
    ard_temperature: float = 30.0
    label_smoothing: float = 0.0

    @property
    def noise_in_eps(self) -> float:
        """The noise that `fast-at` starts at, in eps."""
        return self.fast_noise or _FAST_NOISE[self.fast_variant]


def robust_loss(
    method: RobustMethod,
    forward: Callable[[Tensor], Tensor],
    module_mode: Callable[[bool], Any],
    images: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    *,
    settings: RobustSettings,
    eps: Eps,
    generator: torch.Generator,
) -> Tensor:
    """Perturb a batch as a method does, and compute its loss of every image.

    Args:
        method: The method.
        forward: Maps (N, channels, height, width) in [0, 1] to logits (N, classes). It is called
            for the attack, and last of all, once, for the loss: with the images (`none`), with the
            adversarial ones (`fast-at`, `pgd-at`), or with 2 N, clean ones first (all others), so
            that batch normalization sees the mix that it will serve.
        module_mode: Called with False before an attack and with True before the pass that is
            trained on: `module.train`. Where statistics of batch normalization mean nothing yet, as
            in a supernet, one that does nothing attacks in training mode.
        images: (N, channels, height, width), pixels in [0, 1].
        labels: (N,), int64.
        teacher_logits: Of the clean images, (N, classes); None where there is no teacher.
        settings: The settings.
        eps: The ball's radius in pixel units; at 0 nothing is perturbed.
        generator: Source of the random starts; it may live on the CPU.

    Returns:
        (N,): the mean of it is the batch's loss.

    Raises:
        ConfigError: There is no such method, or it needs a teacher and there is none.

    References:
        Those of `RobustSettings`. Departures: attacks start at uniform noise within eps (TRADES and
        RSLAD: normal noise of 0.001) and see the network in eval mode where `module_mode` is the
        module's own (Wong et al. and de Jorge et al.: in training mode).
    """
    check_method(method, has_teacher=teacher_logits is not None)

    def cross_entropy(logits: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=settings.label_smoothing
        )

    if method == "none":
        module_mode(True)
        logits = forward(images)
        losses = cross_entropy(logits)
        if teacher_logits is None or not settings.kl_weight:
            return losses
        return losses + settings.kl_weight * kl_to_teacher(logits, teacher_logits)
    module_mode(False)
    adversarial = _perturbed(
        method, forward, images, labels, teacher_logits, settings, eps, generator
    )
    module_mode(True)
    if method not in TAKES_BOTH:
        return cross_entropy(forward(adversarial))
    clean, attacked = forward(torch.cat([images, adversarial])).chunk(2)
    if method == "trades":
        return cross_entropy(clean) + settings.trades_beta * kl_to_teacher(attacked, clean)
    assert teacher_logits is not None  # checked above
    if method == "ard":
        share, t = settings.ard_weight, settings.ard_temperature
        soft = t**2 * kl_to_teacher(attacked / t, teacher_logits / t)
        return share * soft + (1 - share) * cross_entropy(clean)
    both = kl_to_teacher(attacked, teacher_logits), kl_to_teacher(clean, teacher_logits)
    return _RSLAD_ADVERSARIAL * both[0] + (1 - _RSLAD_ADVERSARIAL) * both[1]


def check_method(method: str, *, has_teacher: bool) -> None:
    """Refuse a method that there is not, or that lacks its teacher.

    Raises:
        ConfigError: It is named, with the nearest.
    """
    if method not in ROBUST_METHODS:
        similar = nearest(method, ROBUST_METHODS)
        raise ConfigError(
            f"there is no robust training `{method}`",
            hint=f"did you mean `{similar[0]}`?" if similar else f"known: {_KNOWN}",
        )
    if method in NEEDS_TEACHER and not has_teacher:
        raise ConfigError(
            f"`{method}` learns from a teacher's predictions, and there is no teacher",
            hint="without one: fast-at, pgd-at or trades",
        )


def check_robust_settings(settings: RobustSettings, method: str) -> None:
    """Refuse settings that are out of range, or that the method would pass over in silence.

    Raises:
        ConfigError: The setting is named.
    """
    if settings.attack_steps < 1:
        raise ConfigError(f"`attack_steps` is at least 1, not {settings.attack_steps}")
    if settings.fast_variant not in _FAST_NOISE:
        raise ConfigError(
            f"`fast_variant` is {' or '.join(_FAST_NOISE)}, not `{settings.fast_variant}`"
        )
    for name in ("kl_weight", "fast_noise", "fast_step", "trades_beta"):
        value = getattr(settings, name)
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"`{name}` is a number of at least 0, not {value}")
    if not 0 <= settings.ard_weight <= 1:
        raise ConfigError(f"`ard_weight` is a share between 0 and 1, not {settings.ard_weight}")
    if not (math.isfinite(settings.ard_temperature) and settings.ard_temperature > 0):
        raise ConfigError(f"`ard_temperature` is positive, not {settings.ard_temperature}")
    if not 0 <= settings.label_smoothing < 1:
        raise ConfigError(
            f"`label_smoothing` is at least 0 and less than 1, not {settings.label_smoothing}"
        )
    if method != "fast-at" and (settings.fast_noise or settings.fast_step):
        raise ConfigError(
            f"`fast_noise` and `fast_step` are settings of fast-at, but `robust` is {method}"
        )
    no_labels = method == "rslad" or (method == "ard" and settings.ard_weight == 1)
    if no_labels and settings.label_smoothing:
        raise ConfigError(
            f"`label_smoothing` smooths labels, and `{method}` learns from none",
            hint="set it to 0" if method == "rslad" else "set it to 0, or `ard_weight` below 1",
        )


def _perturbed(
    method: RobustMethod,
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    settings: RobustSettings,
    eps: Eps,
    generator: torch.Generator,
) -> Tensor:
    """Perturb images to where the method's inner loss is highest."""
    loss: Loss = "cross-entropy"
    if method == "trades":
        with torch.no_grad():
            clean = forward(images)
        loss = lambda logits: kl_to_teacher(logits, clean)  # noqa: E731
    elif method == "rslad":
        assert teacher_logits is not None
        taught = teacher_logits
        loss = lambda logits: kl_to_teacher(logits, taught)  # noqa: E731
    if method == "fast-at":
        variant = settings.fast_variant
        return perturb(
            forward,
            images,
            labels,
            eps=eps,
            steps=1,
            step_size=(settings.fast_step or _FAST_STEP[variant]) * eps,
            noise=settings.noise_in_eps,
            project=variant == "fgsm-rs",
            generator=generator,
        )
    return perturb(
        forward,
        images,
        labels,
        eps=eps,
        steps=settings.attack_steps,
        loss=loss,
        generator=generator,
    )
