"""Signs of gradient masking: does the white-box figure stand, or did the attack merely get stuck?

Each check makes the attack on the twin stronger or weaker on a few samples, and looks whether the
accuracy moves the way it must.

References:
    Athalye et al., "Obfuscated Gradients Give a False Sense of Security", 2018, section 3.1.
    Carlini et al., "On Evaluating Adversarial Robustness", 2019.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_softmax

from hwnas.core.progress import SILENT
from hwnas.robustness.evaluate import logits_from_module, predictions_of
from hwnas.robustness.pgd import attack_in_batches
from hwnas.verify.gates import Gate, Tolerances, at_least, at_most

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from hwnas.core.progress import Progress
    from hwnas.robustness.threat import ThreatModel

# Every image can become plain gray at this radius, so no classifier can be robust.
_UNBOUNDED_EPS = 0.5
_LARGEST_EPS = 0.99
# Any working attack gains far more; 0 would pass a network that answers the same to everything.
_LEAST_GAIN = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskingSigns:
    """Accuracies of the twin in [0, 1] and losses on `n` samples. A loss is None if not finite.

    Attributes:
        n: Samples.
        attacked: Under the threat model's own attack.
        more_steps: With twice its steps.
        larger_eps: With twice its eps.
        unbounded: With eps 0.5.
        majority: Share of the most frequent class: what a constant answer reaches.
        attacked_loss: Mean cross-entropy under the attack.
        noise_loss: Mean cross-entropy under random noise of the same eps.
    """

    n: int
    attacked: float
    more_steps: float
    larger_eps: float
    unbounded: float
    majority: float
    attacked_loss: float | None
    noise_loss: float | None


def masking_signs(
    twin: nn.Module,
    images: NDArray[np.float32],
    attacked: NDArray[np.float32],
    labels: NDArray[np.int64],
    threat: ThreatModel,
    *,
    batch: int,
    seed: int,
    progress: Progress = SILENT,
) -> MaskingSigns:
    """Vary the attack on a few samples.

    Args:
        twin: The network that the attack differentiates.
        images: (N, channels, height, width), pixels in [0, 1].
        attacked: The same images under the threat model's own attack.
        labels: (N,)
        threat: The threat model; its eps is not 0.
        batch: Images per call.
        seed: Seed of the noise and of the random starts.
        progress: Told of each image.
    """
    eps = threat.eps_pixels

    def accuracy_under(stronger: ThreatModel) -> float:
        points = attack_in_batches(
            twin, images, labels, stronger, batch=batch, seed=seed, progress=progress
        )
        logits = logits_from_module(twin, points, batch=batch)
        return float(np.mean(predictions_of(logits) == labels))

    signs = np.random.default_rng(seed).choice([-eps, eps], size=images.shape)
    noisy = np.clip(images + signs, 0, 1).astype(np.float32)
    attacked_logits = logits_from_module(twin, attacked, batch=batch)
    # A step size that was set by hand belongs to its own eps and steps: take the default's.
    free = replace(threat, step_size=None)
    return MaskingSigns(
        n=len(images),
        attacked=float(np.mean(predictions_of(attacked_logits) == labels)),
        more_steps=accuracy_under(replace(threat, steps=2 * threat.steps)),
        larger_eps=accuracy_under(replace(free, eps=min(2 * eps, _LARGEST_EPS))),
        unbounded=accuracy_under(replace(free, eps=max(_UNBOUNDED_EPS, eps))),
        majority=float(np.bincount(labels).max() / len(labels)),
        attacked_loss=_mean_loss(attacked_logits, labels),
        noise_loss=_mean_loss(logits_from_module(twin, noisy, batch=batch), labels),
    )


def masking_gates(signs: MaskingSigns, tolerances: Tolerances) -> tuple[Gate, ...]:
    """Judge the signs."""
    gain: float | None = None
    if signs.attacked_loss is not None and signs.noise_loss is not None:
        gain = signs.attacked_loss - signs.noise_loss
    return (
        at_most(
            "more_steps",
            _rise(signs.more_steps, signs.attacked),
            tolerances.rise_points,
            unit="points",
            meaning="twice the steps gave accuracy back: the attack does not converge",
        ),
        at_most(
            "larger_eps",
            _rise(signs.larger_eps, signs.attacked),
            tolerances.rise_points,
            unit="points",
            meaning="twice the eps gave accuracy back: gradients mislead the attack",
        ),
        at_most(
            "unbounded_eps",
            100 * signs.unbounded,
            100 * signs.majority,
            unit="percent accuracy",
            meaning="with eps 0.5 any image can be made gray, yet the twin still sees the class: "
            "gradients mislead the attack",
        ),
        at_least(
            "attack_beats_noise",
            gain,
            _LEAST_GAIN,
            unit="cross-entropy",
            meaning="the attack raises the loss no more than random noise does: it has no gradient "
            "to follow",
        ),
    )


def _rise(stronger: float, base: float) -> float:
    """Return the accuracy in points that came back."""
    return 100 * (stronger - base)


def _mean_loss(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float | None:
    scores = log_softmax(logits.astype(np.float64), axis=1)
    loss = float(-np.mean(scores[np.arange(len(labels)), labels]))
    return loss if np.isfinite(loss) else None
