"""Each fault of a model is found, named, and found on no sound one."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.core.errors import DataError
from hwnas.robustness.model_checks import ModelFacts, check_model, refuse_probabilities

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from tests.hwnas.robustness.conftest import Problem

N = 40


class Behind(nn.Module):
    """A network with something put behind it."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.change = change

    def forward(self, images: Tensor) -> Tensor:
        return self.change(self.network(images))


def facts_of(model: nn.Module, problem: Problem, classes: int = 4) -> ModelFacts:
    return check_model(model, problem.images[:N], classes=classes, batch=16)


def failed(facts: ModelFacts) -> dict[str, str]:
    return {check.name: check.meaning for check in facts.checks() if not check.passed}


def test_a_sound_model_passes_every_check(problem: Problem) -> None:
    facts = facts_of(problem.model, problem)
    assert failed(facts) == {}
    assert facts.n == N
    assert facts.repeat_difference == 0.0
    assert facts.batch_difference < 1e-4
    assert facts.distinct_logits > N
    assert facts.zero_gradients == 0.0
    assert {check.name for check in facts.checks()} == {
        "finite_logits", "deterministic", "alone_as_in_batch", "tie_rate", "unit_range",
        "zero_gradients", "zero_margin_gradients", "no_optimization",
    }  # fmt: skip


def test_an_array_function_is_checked_by_its_logits_alone(problem: Problem) -> None:
    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            logits: NDArray[np.float32] = problem.model(torch.from_numpy(images)).numpy()
        return logits

    facts = check_model(predict, problem.images[:N], classes=4)
    assert failed(facts) == {}
    assert facts.zero_gradients is None
    assert facts.optimizes is None
    assert len(facts.checks()) == 5


@pytest.mark.parametrize("bits", [None, 8])
def test_probabilities_are_an_error(problem: Problem, bits: int | None) -> None:
    def softmax(logits: Tensor) -> Tensor:
        shares = torch.softmax(logits, 1)
        return shares if bits is None else torch.round(shares * 2**bits) / 2**bits

    with pytest.raises(DataError, match="probabilities, not logits") as caught:
        facts_of(Behind(problem.model, softmax), problem)
    assert "softmax" in caught.value.hint


def test_bare_decisions_are_refused_as_probabilities(problem: Problem) -> None:
    one_hot = Behind(problem.model, lambda logits: nn.functional.one_hot(logits.argmax(1), 4))
    with pytest.raises(DataError, match="probabilities"):
        facts_of(one_hot, problem)


def test_log_probabilities_are_logits(problem: Problem) -> None:
    model = Behind(problem.model, lambda logits: torch.log_softmax(logits, 1))
    assert failed(facts_of(model, problem)) == {}


def test_logits_that_happen_to_be_positive_are_no_probabilities() -> None:
    refuse_probabilities(np.array([[0.2, 0.9], [0.1, 0.3]], dtype=np.float32))
    refuse_probabilities(np.array([[3.0, -2.0]], dtype=np.float32))
    with pytest.raises(DataError):
        refuse_probabilities(np.array([[0.2, 0.8], [0.1, 0.9]], dtype=np.float32))


def test_sigmoids_are_said(problem: Problem) -> None:
    model = Behind(problem.model, torch.sigmoid)
    assert "sigmoid" in failed(facts_of(model, problem))["unit_range"]


def test_nan_logits_are_said_with_their_images(problem: Problem) -> None:
    images = problem.images[:N].copy()
    images[[3, 17], :, 0, 0] = 1.0

    def spoil(pixels: Tensor) -> Tensor:
        marked = pixels[:, :, 0, 0].amin(1) == 1.0
        return torch.where(marked[:, None], torch.nan, 0.0)

    class Spoiled(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            logits: Tensor = problem.model(pixels) + spoil(pixels)
            return logits

    facts = check_model(Spoiled(), images, classes=4)
    assert facts.nonfinite == (3, 17)
    assert "images 3, 17:" in failed(facts)["finite_logits"]


def test_a_model_of_nothing_but_nan_is_an_error(problem: Problem) -> None:
    with pytest.raises(DataError, match=f"infinity for all of {N} images"):
        facts_of(Behind(problem.model, lambda logits: logits / 0.0), problem)


def test_train_mode_is_said_and_not_evaluated(problem: Problem) -> None:
    sound = facts_of(problem.model, problem)
    dropout = problem.model.get_submodule("4")
    dropout.train()
    try:
        facts = facts_of(problem.model, problem)
        assert dropout.training
    finally:
        dropout.eval()
    assert facts.training_parts == ("4",)
    assert facts.repeat_difference == 0.0  # dropout would have made it random
    assert facts.largest_logit == sound.largest_logit


def test_a_random_model_is_said(problem: Problem) -> None:
    model = Behind(problem.model, lambda logits: nn.functional.dropout(logits, 0.3))
    found = failed(facts_of(model, problem))
    assert "Every figure of attacks" in found["deterministic"]


def test_a_model_that_depends_on_its_batch_is_said(problem: Problem) -> None:
    model = Behind(problem.model, lambda logits: logits - logits.mean(0, keepdim=True))
    assert set(failed(facts_of(model, problem))) >= {"alone_as_in_batch"}
    assert "deterministic" not in failed(facts_of(model, problem))


def test_saturated_logits_leave_the_margin(problem: Problem) -> None:
    model = Behind(problem.model, lambda logits: logits * 1e5)
    found = failed(facts_of(model, problem))
    assert set(found) == {"zero_gradients"}
    assert "trust CW" in found["zero_gradients"]


def test_a_model_without_gradients_is_said(problem: Problem) -> None:
    model = Behind(problem.model, lambda logits: torch.round(logits * 20))
    found = failed(facts_of(model, problem))
    assert {"zero_gradients", "zero_margin_gradients"} <= set(found)
    assert "trust CW" not in found["zero_gradients"]

    detached = Behind(problem.model, lambda logits: logits.detach())
    assert facts_of(detached, problem).zero_gradients == 1.0


def test_ties_are_said(problem: Problem) -> None:
    model = Behind(problem.model, lambda logits: (logits - logits.detach()) + (logits / 8).round())
    facts = facts_of(model, problem)
    assert facts.distinct_logits < 20
    assert f"{facts.distinct_logits} distinct" in failed(facts)["tie_rate"]


@pytest.mark.parametrize("how", ["grad", "backward", "tensor"])
def test_optimization_at_inference_is_said(problem: Problem, how: str) -> None:
    model = copy.deepcopy(problem.model)  # `backward` leaves gradients on weights

    class Purifier(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            with torch.enable_grad():
                pixels = images.detach().clone().requires_grad_()
                energy = model(pixels).square().sum()
                if how == "grad":
                    (gradient,) = torch.autograd.grad(energy, pixels)
                else:
                    torch.autograd.backward(energy) if how == "backward" else energy.backward()
                    assert pixels.grad is not None
                    gradient = pixels.grad
            logits: Tensor = model(images - 1e-3 * gradient.sign())
            return logits

    facts = facts_of(Purifier(), problem)
    assert facts.optimizes
    assert "purifies" in failed(facts)["no_optimization"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda logits: logits[:, :3], r"\(16, 3\) for 16 images"),
        (lambda logits: logits[:1], r"\(1, 4\)"),
        (lambda logits: logits[:, :, None], r"\(16, 4, 1\)"),
        (lambda logits: {"logits": logits}, "`dict` instead of a tensor"),
    ],
)
def test_what_is_no_logits_is_an_error(
    problem: Problem, change: Callable[[Tensor], Tensor], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        facts_of(Behind(problem.model, change), problem)


def test_images_outside_the_unit_range_are_an_error(problem: Problem) -> None:
    with pytest.raises(DataError, match=r"pixels in \[0, 1\]"):
        check_model(problem.model, problem.images[:N] * 255, classes=4)
    with pytest.raises(DataError, match="no images"):
        check_model(problem.model, problem.images[:0], classes=4)
