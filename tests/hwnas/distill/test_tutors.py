from __future__ import annotations

import typing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwnas.distill.tutors import TutorSelection, fixed_tutors, frozen_tutors

FIXED = [name for name in typing.get_args(TutorSelection) if name != "searched"]


def tutors(selection: TutorSelection, students: int, teachers: int, seed: int = 0) -> torch.Tensor:
    return fixed_tutors(selection, students, teachers, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("selection", FIXED)
@given(students=st.integers(1, 9), teachers=st.integers(1, 9))
def test_every_student_layer_has_tutors_of_weight_one(
    selection: TutorSelection, students: int, teachers: int
) -> None:
    weights = tutors(selection, students, teachers)
    assert weights.shape == (students, teachers)
    assert (weights >= 0).all()
    total = 0.0 if selection == "none" else 1.0
    torch.testing.assert_close(weights.sum(1), torch.full((students,), total))


def test_what_each_selection_selects() -> None:
    assert tutors("uniform", 2, 4).tolist() == [[0.25] * 4] * 2
    assert tutors("last", 3, 4).argmax(1).tolist() == [3, 3, 3]
    assert tutors("depth", 5, 3).argmax(1).tolist() == [0, 1, 1, 2, 2]
    assert tutors("depth", 2, 7).argmax(1).tolist() == [0, 6]
    assert not tutors("none", 2, 4).any()


def test_random_tutors_are_drawn_by_the_seed() -> None:
    assert torch.equal(tutors("random", 20, 9, 1), tutors("random", 20, 9, 1))
    assert not torch.equal(tutors("random", 20, 9, 1), tutors("random", 20, 9, 2))
    assert len(set(tutors("random", 20, 9).argmax(1).tolist())) > 3


def test_searched_tutors_keep_the_likeliest_and_others_stay() -> None:
    rows = ((0.2, 0.5, 0.3), (0.4, 0.4, 0.2))
    assert frozen_tutors("searched", rows) == ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    assert frozen_tutors("uniform", rows) == rows
