"""Attacks by gradients on the engine itself, beside attacks as strong on its twin.

Replayed examples were made for the twin, and a black box is blind on a coarse output: a quantized
engine can resist both and be no more robust. So APGD asks the engine and differentiates a module in
its place (`substitute`). It gets what the replayed examples left: what they broke is broken.

APGD is made on the twin too, and replayed. Without it, the engine's attack would seem to find more
than the replay merely because it is the stronger one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hwnas.core.progress import SILENT
from hwnas.robustness.attacks.apgd import apgd
from hwnas.robustness.attacks.lean import lean_copy
from hwnas.robustness.attacks.losses import cross_entropy, dlr, fooled, margin
from hwnas.robustness.evaluate import (
    Accuracy,
    device_of,
    evaluating,
    logits_from_module,
    predictions_of,
)
from hwnas.verify.records import Adaptive
from hwnas.verify.substitute import substitute_for, through

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from hwnas.core.progress import Progress
    from hwnas.robustness.attacks.losses import AttackLoss, Forward
    from hwnas.robustness.square import Predict
    from hwnas.robustness.threat import ThreatModel

# The ratio needs the third logit.
_LEAST_CLASSES_OF_RATIO = 3
_COMPARED = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attacked:
    """What was found on the samples before: the first of each array are those of `images`.

    Attributes:
        images: (n, channels, height, width), pixels in [0, 1].
        labels: (n,)
        engine_logits: (n, classes): the engine's answers to the images.
        twin_right: (n,): whether the twin is right on the image and on its replayed example.
        replay_right: (n,): the same of the engine.
        square_right: (n,): whether the engine withstands Square.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    engine_logits: NDArray[np.float32]
    twin_right: NDArray[np.bool_]
    replay_right: NDArray[np.bool_]
    square_right: NDArray[np.bool_]


def attack_adaptively(
    twin: nn.Module,
    engine: Predict,
    found: Attacked,
    threat: ThreatModel,
    *,
    model: bytes | None,
    precision: str,
    steps: int,
    batch: int,
    seed: int,
    progress: Progress = SILENT,
) -> Adaptive:
    """Attack twin and engine with APGD, each by its own gradients, on what was not broken yet.

    Args:
        twin: The network that the engine was made from, in any mode; given back as it was.
        engine: Gives the engine's logits.
        found: The samples, and what other attacks did to them.
        threat: The threat model.
        model: The engine's ONNX model, for its fake quantization.
        precision: The engine's precision.
        steps: Gradient steps of each of the two losses.
        batch: Images per call.
        seed: Seed of the random starts, the same for both.
        progress: Told of each step.
    """
    images, labels, device = found.images, found.labels, device_of(twin)
    clean_right = predictions_of(found.engine_logits) == labels
    substitute = substitute_for(twin, model, precision, images, found.engine_logits, batch=batch)

    def attacked(forward: Forward, rows: NDArray[np.int64], title: str) -> NDArray[np.float32]:
        return _apgd_in_batches(
            forward, images[rows], labels[rows], threat, classes=found.engine_logits.shape[1],
            steps=steps, batch=batch, seed=seed, device=device, title=title, progress=progress,
        )  # fmt: skip

    twin_right, replay_right = found.twin_right.copy(), found.replay_right & clean_right
    with evaluating(twin):
        sample = torch.from_numpy(images[:_COMPARED]).to(device)
        rows = np.flatnonzero(twin_right)
        if len(rows):
            with lean_copy(twin, sample) as lean:
                points = attacked(lean, rows, "APGD on the twin")
            answers = logits_from_module(twin, points, batch=batch)
            twin_right[rows] = predictions_of(answers) == labels[rows]
            replay_right[rows] &= predictions_of(engine(points)) == labels[rows]
        adaptive_right = replay_right.copy()
        rows = np.flatnonzero(replay_right)
        if len(rows):
            with evaluating(substitute.module), lean_copy(substitute.module, sample) as lean:
                forward = through(engine, lean, device=device)
                points = attacked(forward, rows, "APGD on the engine")
            adaptive_right[rows] = predictions_of(engine(points)) == labels[rows]
    return Adaptive(
        clean=Accuracy.from_flags(clean_right),
        twin=Accuracy.from_flags(twin_right),
        replay=Accuracy.from_flags(replay_right),
        square=Accuracy.from_flags(found.square_right),
        adaptive=Accuracy.from_flags(adaptive_right),
        worst_case=Accuracy.from_flags(adaptive_right & found.square_right),
        square_alone=float(np.mean(adaptive_right & ~found.square_right)),
        gradients=substitute.gradients,
        parity=substitute.parity,
        note=substitute.note,
        steps=steps,
    )


def _apgd_in_batches(
    forward: Forward,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    threat: ThreatModel,
    *,
    classes: int,
    steps: int,
    batch: int,
    seed: int,
    device: torch.device,
    title: str,
    progress: Progress,
) -> NDArray[np.float32]:
    """Attack with one loss and, what that left, with the other; return a point for each sample."""
    ratio = dlr if classes >= _LEAST_CLASSES_OF_RATIO else margin
    losses: tuple[AttackLoss, ...] = (cross_entropy, ratio)
    found = np.empty_like(images)
    starts = range(0, len(images), batch)
    with progress.task(title, len(losses) * steps * len(starts)) as task:
        for start in starts:
            part = slice(start, start + batch)
            clean = torch.from_numpy(images[part]).to(device)
            clean = clean.contiguous(memory_format=torch.channels_last)
            targets = torch.from_numpy(labels[part]).to(device)
            points = clean
            left = torch.arange(len(clean), device=device)
            for loss in losses:
                taken = 0

                def tick() -> None:
                    nonlocal taken
                    taken += 1
                    task.advance()

                if len(left):
                    tried = apgd(
                        forward,
                        clean[left],
                        targets[left],
                        norm=threat.norm,
                        eps=threat.eps_pixels,
                        loss=loss,
                        generator=torch.Generator().manual_seed(seed),
                        steps=steps,
                        tick=tick,
                    )
                    points = points.index_copy(0, left, tried)
                    with torch.no_grad():
                        left = left[~fooled(forward(tried), targets[left])]
                task.advance(steps - taken)
            found[part] = points.cpu().numpy()
    return found
