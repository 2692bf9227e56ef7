from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from hwnas.robustness.jacobian import (
    even_rows,
    jacobian_bound,
    jacobian_norms,
    logit_scale,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, IMAGES = 4, 3


class Mixed(nn.Module):
    """A network with gates: all that supernets do in eval mode, at a size for exact Jacobians."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.excite = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)
        self.hard_sigmoid: Callable[[Tensor], Tensor] = functional.hardsigmoid

    def __call__(self, images: Tensor, gates: Tensor) -> Tensor:
        logits: Tensor = super().__call__(images, gates)
        return logits

    def forward(self, images: Tensor, gates: Tensor) -> Tensor:
        features = functional.hardswish(self.norm(self.conv(images)) * gates[0])
        filtered = functional.relu(self.depthwise(features)) * gates[1] + features
        factors = self.hard_sigmoid(self.excite(filtered.mean((2, 3))))
        logits: Tensor = self.head((filtered * factors[:, :, None, None]).mean((2, 3)))
        return logits * gates.sum()


@pytest.fixture(scope="module")
def network() -> Mixed:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Mixed().double()
        for _ in range(5):  # running statistics that mean something
            network(torch.rand(16, 2, 5, 5, dtype=torch.float64), torch.ones(2))
    return network.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(IMAGES, 2, 5, 5, dtype=torch.float64, generator=generator)


def gates_of(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def exact_norms(forward: Callable[[Tensor], Tensor], images: Tensor, q: int) -> Tensor:
    """Return (N, classes) from torch's own Jacobian, twice differentiated."""
    rows = []
    for image in images:
        jacobian = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
            lambda point: forward(point[None])[0], image, create_graph=True
        )
        rows.append(jacobian.flatten(1).norm(p=q, dim=1))
    return torch.stack(rows)


@pytest.mark.parametrize(("norm", "q"), [("linf", 1), ("l2", 2)])
def test_norms_and_their_gradients_are_those_of_the_exact_jacobian(
    network: Mixed, images: Tensor, monkeypatch: pytest.MonkeyPatch, norm: Any, q: int
) -> None:
    gates = gates_of(0.7, 0.3)
    weights = torch.arange(1.0, 1 + IMAGES * CLASSES, dtype=torch.float64).view(IMAGES, CLASSES)

    def forward(points: Tensor) -> Tensor:
        return network(points, gates)

    logits, norms = jacobian_norms(forward, images, norm=norm)
    with monkeypatch.context() as patch:  # torch cannot differentiate its own twice
        patch.setattr(network, "hard_sigmoid", lambda x: functional.relu6(x + 3) / 6)
        expected = exact_norms(forward, images, q)
    torch.testing.assert_close(norms, expected)
    torch.testing.assert_close(logits, forward(images))
    (own,) = torch.autograd.grad((weights * norms).sum(), gates)
    (twice,) = torch.autograd.grad((weights * expected).sum(), gates)
    assert own.abs().min() > 1e-3
    torch.testing.assert_close(own, twice)


def test_rows_are_those_asked_for_whichever_way_they_are_computed(
    network: Mixed, images: Tensor
) -> None:
    gates = gates_of(0.7, 0.3)

    def forward(points: Tensor) -> Tensor:
        return network(points, gates)

    exact = jacobian_norms(forward, images).norms
    for rows in ([[3], [0], [1]], [[3, 1], [0, 3], [1, 2]]):
        asked = torch.tensor(rows)
        for batched in (False, True):
            some = jacobian_norms(forward, images, rows=asked, batched=batched).norms
            torch.testing.assert_close(some, exact.gather(1, asked))
            (gradient,) = torch.autograd.grad(some.sum(), gates)
            (expected,) = torch.autograd.grad(
                exact.gather(1, asked).sum(), gates, retain_graph=True
            )
            torch.testing.assert_close(gradient, expected)


def test_without_gradients_none_are_kept(network: Mixed, images: Tensor) -> None:
    gates = gates_of(0.7, 0.3)
    with torch.no_grad():
        logits, norms = jacobian_norms(lambda points: network(points, gates), images)
    assert not logits.requires_grad
    assert not norms.requires_grad
    assert norms.min() > 0


def test_sampled_rows_are_unbiased(network: Mixed, images: Tensor) -> None:
    """The mean over many draws comes as near as its standard error says."""

    def forward(points: Tensor) -> Tensor:
        return network(points, torch.ones(2))

    draws = 400
    generator = torch.Generator().manual_seed(2)
    exact = jacobian_norms(forward, images).norms.mean()
    whole = jacobian_norms(forward, images).norms
    for count in (1, 2, 3):
        rows = even_rows(IMAGES * draws, CLASSES, count, generator).view(draws, IMAGES, count)
        assert all(len(set(row)) == count for row in rows.flatten(0, 1).tolist())
        means = torch.stack([whole.gather(1, each).mean() for each in rows])
        error = means.std() / draws**0.5
        assert abs(means.mean() - exact) < 4 * error
        assert means.std() > 0


def test_all_rows_drawn_are_all_rows() -> None:
    rows = even_rows(5, 7, 7, torch.Generator().manual_seed(0))
    assert rows.sort(dim=1).values.tolist() == [list(range(7))] * 5


@pytest.mark.parametrize("factor", [1e-3, 0.5, 40.0])
def test_the_bound_does_not_see_the_scale_of_logits(
    network: Mixed, images: Tensor, factor: float
) -> None:
    gates = gates_of(0.7, 0.3)
    bound = jacobian_bound(lambda points: network(points, gates), images)
    scaled = jacobian_bound(lambda points: factor * network(points, gates), images)
    torch.testing.assert_close(scaled, bound)
    gradients = [torch.autograd.grad(each, gates)[0] for each in (bound, scaled)]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_nothing_is_gained_by_shrinking_logits(network: Mixed, images: Tensor) -> None:
    temperature = gates_of(1.0)

    def forward(points: Tensor) -> Tensor:
        return network(points, torch.ones(2)) * temperature

    (gradient,) = torch.autograd.grad(jacobian_bound(forward, images), temperature)
    assert abs(float(gradient)) < 1e-9
    plain = -jacobian_norms(forward, images).norms.mean()
    (gradient,) = torch.autograd.grad(plain, temperature)
    assert float(gradient) < -1e-3  # without the scale it would be


@given(
    weights=st.lists(
        st.lists(st.floats(-4, 4).filter(lambda value: abs(value) > 1e-3), min_size=4, max_size=4),
        min_size=2,
        max_size=5,
    )
)
def test_of_a_linear_map_the_bound_holds_with_equality(weights: list[list[float]]) -> None:
    """No perturbation of the ball moves a logit by more, and one does move it as far."""
    matrix = torch.tensor(weights, dtype=torch.float64)
    images = torch.linspace(0, 1, 8, dtype=torch.float64).view(2, 1, 2, 2)
    eps = 0.1

    def forward(points: Tensor) -> Tensor:
        return points.flatten(1) @ matrix.T

    norms = jacobian_norms(forward, images).norms
    worst = eps * torch.sign(matrix)  # (classes, pixels)
    for row, direction in enumerate(worst):
        moved = forward(images + direction.view(1, 1, 2, 2)) - forward(images)
        torch.testing.assert_close(moved[:, row], eps * norms[:, row])
        assert (moved.abs() <= eps * norms + 1e-9).all()
    scale = logit_scale(forward(images))
    if scale > 1e-6:
        expected = -matrix.abs().sum(1).mean() / scale
        torch.testing.assert_close(jacobian_bound(forward, images), expected)


def test_logits_that_never_change_are_robust_and_give_no_nan() -> None:
    gate = gates_of(0.5)

    def forward(points: Tensor) -> Tensor:
        return 0.0 * points.flatten(1)[:, :3] * gate

    for norm in ("linf", "l2"):
        bound = jacobian_bound(forward, torch.rand(2, 1, 2, 2, dtype=torch.float64), norm=norm)
        (gradient,) = torch.autograd.grad(bound, gate)
        assert float(bound.detach()) == 0
        assert float(gradient) == 0
