"""Signs of gradient masking: does the white-box figure stand, or did the attack merely get stuck?

Each figure makes the attack stronger or blind on a few samples. Which way the accuracy must move,
`hwnas.robustness.criteria` says.

References:
    Athalye et al., "Obfuscated Gradients Give a False Sense of Security", 2018, section 3.1.
    Carlini et al., "On Evaluating Adversarial Robustness", 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_softmax

from hwnas.core.progress import SILENT
from hwnas.robustness.evaluate import logits_from_module, predictions_of
from hwnas.robustness.pgd import attack_in_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from hwnas.core.progress import Progress
    from hwnas.robustness.threat import ThreatModel

# Every image can become plain gray at this radius, so no classifier can be robust.
_UNBOUNDED_EPS = 0.5
_LARGEST_EPS = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskingSigns:
    """Accuracies of a module in [0, 1] and losses on `n` samples. A loss is None if not finite.

    Attributes:
        n: Samples.
        attacked: Under the threat model's own attack.
        more_steps: With twice its steps.
        larger_eps: With twice its eps.
        unbounded: With an eps at which any image can become plain gray: 0.5 in l_inf.
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

    def accuracy_under(stronger: ThreatModel) -> float:
        points = attack_in_batches(
            twin, images, labels, stronger, batch=batch, seed=seed, progress=progress
        )
        logits = logits_from_module(twin, points, batch=batch)
        return float(np.mean(predictions_of(logits) == labels))

    noisy = noisy_images(images, threat, np.random.default_rng(seed))
    attacked_logits = logits_from_module(twin, attacked, batch=batch)
    size = images[0].size
    return MaskingSigns(
        n=len(images),
        attacked=float(np.mean(predictions_of(attacked_logits) == labels)),
        more_steps=accuracy_under(replace(threat, steps=2 * threat.steps)),
        larger_eps=accuracy_under(with_larger_eps(threat)),
        unbounded=accuracy_under(without_bound(threat, size)),
        majority=majority_of(labels),
        attacked_loss=_mean_loss(attacked_logits, labels),
        noise_loss=_mean_loss(logits_from_module(twin, noisy, batch=batch), labels),
    )


def with_larger_eps(threat: ThreatModel) -> ThreatModel:
    """Return the threat model with twice the eps."""
    larger = 2 * threat.eps_pixels
    # A step size that was set by hand belongs to its own eps and steps: take the default's.
    bounded = min(larger, _LARGEST_EPS) if threat.norm == "linf" else larger
    return replace(threat, step_size=None, eps=bounded)


def without_bound(threat: ThreatModel, values: int) -> ThreatModel:
    """Return the threat model with an eps, in pixel units, at which any image can become gray.

    Args:
        threat: The threat model.
        values: Values of an image: channels times height times width.
    """
    gray = _UNBOUNDED_EPS * (1.0 if threat.norm == "linf" else math.sqrt(values))
    eps = max(gray, threat.eps_pixels) if threat.protocol == "pixel" else gray
    return replace(threat, protocol="pixel", step_size=None, eps=eps)


def majority_of(labels: NDArray[np.int64]) -> float:
    """Return the share of the most frequent class: what a constant answer reaches."""
    return float(np.bincount(labels).max() / len(labels))


def noisy_images(
    images: NDArray[np.float32], threat: ThreatModel, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Move images to a random corner, in l_2 to a random place, of their ball's surface.

    Args:
        images: (N, channels, height, width), pixels in [0, 1].
        threat: The threat model, in pixel units.
        generator: Source of the noise.

    Returns:
        (N, channels, height, width), pixels in [0, 1].
    """
    eps = threat.eps_pixels
    if threat.norm == "linf":
        noise = generator.choice([-eps, eps], size=images.shape)
    else:
        noise = generator.normal(size=images.shape)
        noise *= eps / np.linalg.norm(noise.reshape(len(images), -1), axis=1)[:, None, None, None]
    noisy: NDArray[np.float32] = np.clip(images + noise, 0, 1).astype(np.float32)
    return noisy


def _mean_loss(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float | None:
    scores = log_softmax(logits.astype(np.float64), axis=1)
    loss = float(-np.mean(scores[np.arange(len(labels)), labels]))
    return loss if np.isfinite(loss) else None
