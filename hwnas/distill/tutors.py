"""Tutor selection: which teacher layers each student layer learns from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

TutorSelection: TypeAlias = Literal["searched", "none", "uniform", "random", "depth", "last"]
"""How tutors are selected:

- `searched`: by logits of each student layer over all teacher layers, learned in the search
  (RNAS-CL); the most likely ones are kept.
- `none`: there are none; only the teacher's predictions are learned from.
- `uniform`: every teacher layer, each as much as any other.
- `random`: one per student layer, drawn once, by the seed.
- `depth`: the one at the same relative depth.
- `last`: the teacher's last layer.
"""


def fixed_tutors(
    selection: TutorSelection, students: int, teachers: int, generator: torch.Generator
) -> Tensor:
    """Return the weights of a selection that is not searched.

    Args:
        selection: Any but `searched`.
        students: Student layers.
        teachers: Teacher layers.
        generator: What `random` draws from.

    Returns:
        (students, teachers); each row sums to 1, with `none` to 0.
    """
    if selection == "none":
        return torch.zeros(students, teachers)
    if selection == "uniform":
        return torch.full((students, teachers), 1.0 / teachers)
    if selection == "random":
        chosen = torch.randint(teachers, (students,), generator=generator)
    elif selection == "depth":
        # First to first and last to last, rounded half up between.
        places = torch.arange(students) / max(1, students - 1) * (teachers - 1)
        chosen = torch.floor(places + 0.5).long()
    else:
        assert selection == "last"
        chosen = torch.full((students,), teachers - 1)
    return torch.nn.functional.one_hot(chosen, teachers).float()


def frozen_tutors(
    selection: TutorSelection, probabilities: Sequence[Sequence[float]]
) -> tuple[tuple[float, ...], ...]:
    """Return the weights that a derived network is trained with.

    Of searched tutors, each student layer keeps its most likely one; others stay as they are.
    """
    if selection != "searched":
        return tuple(tuple(row) for row in probabilities)
    chosen = [row.index(max(row)) for row in map(list, probabilities)]
    return tuple(
        tuple(float(index == tutor) for index in range(len(row)))
        for row, tutor in zip(probabilities, chosen, strict=True)
    )
