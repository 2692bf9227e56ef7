"""A guard against catastrophic overfitting, in which single-step training loses all robustness.

Within a few hundred steps a network can learn to hide from the one step that it is trained on: its
accuracy on FGSM examples stays high or rises, and that on PGD examples falls to zero. After each
epoch both are measured on a few held-out images. Where they have come apart, training goes back to
the last epoch after which they had not, and goes on with a stronger attack.

References:
    Wong et al., "Fast is better than free" (ICLR 2020), 5.4, find it and stop there; Andriushchenko
    and Flammarion, "Understanding and improving fast adversarial training" (NeurIPS 2020); de Jorge
    et al., "Make some noise" (NeurIPS 2022): more noise prevents it.
"""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, final

from hwnas.training.robust import RobustSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hwnas.robustness.evaluate import Accuracy
    from hwnas.training.loop import Stateful
    from hwnas.training.robust import RobustMethod

COLLAPSED_SHARE = 0.5
"""PGD accuracy below this share of FGSM accuracy is a collapse. Robust networks keep 0.8 of it and
more, collapsed ones less than 0.1: the exact value matters little."""

_MORE_NOISE = 1.0
"""What the first answer adds to the noise of n-fgsm, in eps; its paper tries noise up to 4 eps."""

_FIELDS = fields(RobustSettings)


class Attack(NamedTuple):
    """What a network is trained on: a method and its settings."""

    method: RobustMethod
    settings: RobustSettings

    def __str__(self) -> str:
        """Name it as a person would."""
        if self.method != "fast-at":
            return f"PGD-{self.settings.attack_steps}"
        noise = self.settings.noise_in_eps
        return f"{self.settings.fast_variant} with noise {noise:g} eps"


def is_collapsed(fgsm: Accuracy, pgd: Accuracy) -> bool:
    """Tell whether a network has overfitted to single steps.

    It has where even the upper end of the PGD accuracy's interval is below half of the lower end of
    the FGSM accuracy's: few images, or two low accuracies, are no evidence.

    >>> from hwnas.robustness.evaluate import Accuracy
    >>> is_collapsed(Accuracy.from_counts(100, 128), Accuracy.from_counts(2, 128))
    True
    >>> is_collapsed(Accuracy.from_counts(64, 128), Accuracy.from_counts(55, 128))
    False
    """
    return pgd.high < COLLAPSED_SHARE * fgsm.low


def attacks_of(method: RobustMethod, settings: RobustSettings) -> tuple[Attack, ...]:
    """Return the attack that was asked for, and the stronger ones that follow a collapse.

    n-fgsm with more noise, then PGD of 2 steps and so on, up to `attack_steps` (at least 2).
    """
    # Of a whole training's settings only those of the losses: the others have nothing to do here.
    own = RobustSettings(**{each.name: getattr(settings, each.name) for each in _FIELDS})
    if method != "fast-at":
        return (Attack(method, own),)
    noise = 2.0 if own.fast_variant == "fgsm-rs" else own.noise_in_eps + _MORE_NOISE
    noisy = replace(own, fast_variant="n-fgsm", fast_noise=noise, fast_step=0.0)
    steps = range(2, max(2, own.attack_steps) + 1)
    return (
        Attack(method, own),
        Attack("fast-at", noisy),
        *(Attack("pgd-at", replace(own, attack_steps=count)) for count in steps),
    )


@final
class Guard:
    """Watches a single-step training, and takes it back after a collapse.

    Args:
        method: The method that was asked for; of others than `fast-at` nothing is watched.
        settings: Its settings.
        parts: What changes in training and must go back together, by name.

    Attributes:
        level: Collapses so far.
    """

    def __init__(
        self, method: RobustMethod, settings: RobustSettings, parts: Mapping[str, Stateful]
    ) -> None:
        self.level = 0
        self._attacks = attacks_of(method, settings)
        self._parts = parts
        self._good: dict[str, Any] = {}

    @property
    def attack(self) -> Attack:
        """What to train on now."""
        return self._attacks[min(self.level, len(self._attacks) - 1)]

    def judge(self, fgsm: Accuracy, pgd: Accuracy) -> bool:
        """Keep the parts as they are, or take them back; return whether they collapsed.

        Where no epoch was good yet there is nothing to go back to: only the attack changes.
        """
        if not is_collapsed(fgsm, pgd):
            self._good = {
                name: copy.deepcopy(part.state_dict()) for name, part in self._parts.items()
            }
            return False
        self.level += 1
        for name, state in self._good.items():
            # A copy: optimizers take the tensors that they are given for their own.
            self._parts[name].load_state_dict(copy.deepcopy(state))
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep."""
        return {"level": self.level, "good": self._good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what a checkpoint kept."""
        self.level, self._good = state["level"], state["good"]
