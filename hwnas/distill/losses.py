"""Losses between a student's and a teacher's predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def kl_to_teacher(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Compute KL(teacher || student) of each sample, at temperature 1.

    Args:
        student_logits: (batch, classes)
        teacher_logits: (batch, classes)

    Returns:
        (batch,), in nats.
    """
    divergence = functional.kl_div(
        functional.log_softmax(student_logits, dim=1),
        functional.log_softmax(teacher_logits, dim=1),
        reduction="none",
        log_target=True,
    )
    return divergence.sum(dim=1)
