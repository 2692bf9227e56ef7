from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwnas.distill.losses import kl_to_teacher

pytestmark = pytest.mark.usefixtures("one_thread")

logits = st.lists(st.lists(st.floats(-20, 20), min_size=3, max_size=3), min_size=1, max_size=4).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64)
)


@given(student=logits)
def test_a_student_that_agrees_loses_nothing(student: torch.Tensor) -> None:
    loss = kl_to_teacher(student, student + 3.0)  # logits of the same probabilities
    assert loss.shape == (len(student),)
    torch.testing.assert_close(loss, torch.zeros_like(loss))


@given(teacher=logits, seed=st.integers(0, 99))
def test_a_student_that_differs_loses_what_the_formula_says(
    teacher: torch.Tensor, seed: int
) -> None:
    noise = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(seed))
    student = teacher + noise.double()
    p, q = torch.softmax(student, 1), torch.softmax(teacher, 1)
    for row, loss in enumerate(kl_to_teacher(student, teacher).tolist()):
        terms = zip(q[row].tolist(), p[row].tolist(), strict=True)
        by_hand = sum(b * math.log(b / a) for b, a in terms)
        assert loss == pytest.approx(by_hand, rel=1e-6, abs=1e-12)
        assert loss > -1e-12


def test_the_divergence_is_from_the_teacher() -> None:
    sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    # Being sure where the teacher is not costs far more than the other way around.
    assert kl_to_teacher(sure, unsure) > 3 * kl_to_teacher(unsure, sure)


def test_very_sure_predictions_stay_finite() -> None:
    loss = kl_to_teacher(torch.tensor([[500.0, -500.0]]), torch.tensor([[-500.0, 500.0]]))
    assert loss.isfinite().all()
    assert loss > 100
