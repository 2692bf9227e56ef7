"""Training one model of an ensemble study, be it one network or several as one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.distill.teacher import load_teacher
from hwnas.training.fit import fit
from hwnas.training.precision import in_precision
from hwnas.training.robust import robust_loss

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from hwnas.core.progress import Progress
    from hwnas.data.images import ImageData
    from hwnas.study.ensemble_config import EnsembleConfig
    from hwnas.training.loop import Figures
    from hwnas.training.robust_guard import Attack

TASK = "train"
"""What the task is called whose steps are epochs."""


def train_model(
    model: nn.Module,
    data: ImageData,
    config: EnsembleConfig,
    *,
    seed: int,
    checkpoint: Path,
    device: torch.device | str,
    progress: Progress,
) -> list[Figures]:
    """Train a model in place, as one: gradients and attacks go through all that it is made of.

    Args:
        model: Takes pixels in [0, 1], gives (batch, classes).
        data: The images; the test split is not touched.
        config: The settings.
        seed: Seed of order, augmentation and attacks.
        checkpoint: Where each epoch is kept.
        device: What to compute on; the model stays there.
        progress: Where to report.

    Returns:
        The figures of every epoch.

    Raises:
        TrainingDivergedError: A loss is not finite.
        ArtifactError: The teacher is unfinished or was changed.
    """
    settings = config.train
    teacher = None
    if settings.teacher:
        teacher = load_teacher(Path(settings.teacher), attention_size=1).to(device)
    forward = in_precision(model, settings.training_precision)

    def loss(images: Tensor, labels: Tensor, attack: Attack, generator: torch.Generator) -> Tensor:
        return robust_loss(
            attack.method,
            forward,
            model.train,
            images,
            labels,
            None if teacher is None else teacher.logits(images),
            settings=attack.settings,
            eps=config.threat.eps_pixels,
            generator=generator,
        )

    return fit(
        TASK,
        model,
        loss,
        data,
        config.data,
        config.threat,
        settings,
        seed=seed,
        checkpoint=checkpoint,
        depends_on=asdict(settings),
        device=device,
        progress=progress,
    )
