"""The parts that attacks are made of: balls, losses, projections, and the lean copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.fab_projections import projection_l2, projection_linf
from torch import fx, nn

from hwnas.robustness.attacks.ball import ball_around, sizes_of
from hwnas.robustness.attacks.fab import onto_plane
from hwnas.robustness.attacks.lean import fold_batch_norms, lean_copy
from hwnas.robustness.attacks.losses import dlr, dlr_targeted, fooled, gradient_of, margin
from hwnas.robustness.attacks.pgd import pgd
from hwnas.robustness.threat import Eps, Norm

if TYPE_CHECKING:
    from torch import Tensor

    from tests.hwnas.robustness.attacks.conftest import Digits

NORMS = st.sampled_from(["linf", "l2"])


def random_images(seed: int, count: int = 4) -> Tensor:
    return torch.rand(count, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


@given(norm=NORMS, seed=st.integers(0, 999), eps=st.floats(0.01, 2.0))
def test_a_ball_holds_all_that_it_gives(norm: Norm, seed: int, eps: float) -> None:
    images, generator = random_images(seed), torch.Generator().manual_seed(seed)
    ball = ball_around(images, norm, eps)
    far = images + torch.randn(images.shape, generator=generator)
    gradient = torch.randn(images.shape, generator=generator)
    start = ball.random_point(generator)
    for points in (start, ball.project(far.clone()), ball.step(start, gradient, 2 * eps)):
        assert (sizes_of(points - images, norm) <= eps * (1 + 1e-5)).all()
        assert 0 <= points.min() <= points.max() <= 1
    kept = torch.tensor([2, 0])
    torch.testing.assert_close(
        ball.keep(kept).project(far[kept].clone()), ball.project(far.clone())[kept]
    )


@settings(max_examples=50)
@given(norm=NORMS, seed=st.integers(0, 9999))
def test_the_projection_onto_a_plane_is_the_sorted_one(norm: Norm, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = random_images(seed, count=8)
    normal = torch.randn(points.shape, generator=generator)
    # From planes through the point to planes that the box does not reach.
    gap = torch.randn(8, generator=generator) * torch.logspace(-3, 1.5, 8)
    change = onto_plane(points, normal, gap, norm)
    flat, weights = points.flatten(1), normal.flatten(1)
    sort = projection_linf if norm == "linf" else projection_l2
    offset = (weights * flat).sum(1) - gap
    wanted = sort(flat, weights, offset)
    torch.testing.assert_close(change.flatten(1), wanted, rtol=1e-3, atol=2e-5)
    assert (points + change).min() + 1e-6 >= 0
    assert (points + change).max() <= 1 + 1e-6


@given(norm=NORMS)
def test_a_pixel_without_slope_is_left_alone(norm: Norm) -> None:
    points, normal = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[1.0, 0.0], [0.0, -1.0]]]])
    change = onto_plane(points, normal, torch.tensor([0.4]), norm)
    torch.testing.assert_close(change, torch.tensor([[[[-0.2, 0.0], [0.0, 0.2]]]]))
    assert not onto_plane(points, torch.zeros_like(normal), torch.tensor([1.0]), norm).any()


def test_losses_are_what_their_papers_say() -> None:
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0], [4.0, 1.0, 3.0, 0.0]])
    labels, targets = torch.tensor([0, 1]), torch.tensor([1, 3])
    torch.testing.assert_close(margin(logits, labels, targets), torch.tensor([-1.0, 3.0]))
    torch.testing.assert_close(dlr(logits, labels, targets), torch.tensor([-1 / 3, 1.0]))
    wanted = torch.tensor([(1 - 4) / (4 - 0.5), (0 - 1) / (4 - 0.5)])
    torch.testing.assert_close(dlr_targeted(logits, labels, targets), wanted)
    scaled = dlr(7 * logits + 3, labels, targets)
    torch.testing.assert_close(scaled, dlr(logits, labels, targets))


def test_a_logit_that_is_no_number_fools() -> None:
    logits = torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [torch.inf, 0.0], [0.0, 1.0]])
    labels = torch.zeros(4, dtype=torch.int64)
    assert fooled(logits, labels).tolist() == [False, True, True, True]


def test_a_gradient_that_is_no_number_is_none() -> None:
    points = torch.tensor([0.0, 1.0], requires_grad=True)
    assert gradient_of((points * 0).sqrt() + points, points).tolist() == [0.0, 0.0]


def test_momentum_and_norm_change_the_path(digits: Digits) -> None:
    images, labels = (part[:16] for part in digits.tensors())
    common = {"eps": Eps(0.05), "steps": 4, "noise": 0.0, "stop_when_broken": False}
    paths = [
        pgd(digits.model, images, labels, generator=torch.Generator(), **common, **more)  # type: ignore[arg-type]
        for more in ({}, {"momentum": 1.0}, {"norm": "l2"})
    ]
    assert not torch.equal(paths[0], paths[1])
    assert (sizes_of(paths[2] - images, "l2") <= 0.05 * (1 + 1e-5)).all()
    assert sizes_of(paths[1] - images, "linf").max() <= 0.05 * (1 + 1e-5)


class Residual(nn.Module):
    """A shortcut, a convolution that two normalizations follow, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.fork = nn.Conv2d(4, 4, 1)
        self.left, self.right = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.twice = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        forked = self.fork(features)
        features = features + self.left(forked) * self.right(forked)
        features = self.twice(self.twice(features))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def residual() -> Residual:
    torch.manual_seed(0)
    network = Residual()
    for _ in range(3):
        network(torch.rand(16, 1, 8, 8))
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2.0)
            nn.init.uniform_(part.bias, -1.0, 1.0)
    return network.eval()


def test_normalizations_are_folded_where_they_follow_alone() -> None:
    network, images = residual(), torch.rand(5, 1, 8, 8)
    traced = fx.symbolic_trace(network)
    fold_batch_norms(traced)
    called = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert "stem.1" not in called
    assert {"left", "right", "twice.1"} <= set(called)
    torch.testing.assert_close(traced(images), network(images))
    with lean_copy(network, images) as lean:
        assert lean is not network
        assert not any(weight.requires_grad for weight in lean.parameters())
        torch.testing.assert_close(lean(images), network(images))
    assert all(weight.requires_grad for weight in network.parameters())


class Tapped(Residual):
    """Takes more than images, as our networks do, and gives more where it is given."""

    def forward(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        if taps is not None:
            taps.append(images)
        return super().forward(images)


def test_what_attacks_leave_out_is_traced_as_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    network, images = Tapped().eval(), torch.rand(5, 1, 8, 8)
    with lean_copy(network, images) as lean:
        assert isinstance(lean, fx.GraphModule)  # and with it folded
        torch.testing.assert_close(lean(images), network(images))
    assert capfd.readouterr() == ("", "")  # torch.fx prints the trace of what fails in one


class HiddenGradient(Residual):
    """Hides its gradient in a way that a trace does not see."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = super().forward(images)
        return hidden + 1e-3 * super().forward(images - images.detach())


class Branching(Residual):
    """Decides by its data, so it cannot be traced."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + float(images.sum() > 0)


class Random(Residual):
    """Answers differently each time."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + torch.rand(3)


class Uncopyable(Branching):
    """Refuses to be copied."""

    def __deepcopy__(self, memo: object) -> Residual:
        raise TypeError


@pytest.mark.parametrize(
    ("kind", "original"),
    [(HiddenGradient, False), (Branching, False), (Random, True), (Uncopyable, True)],
)
def test_a_copy_that_computes_something_else_is_not_used(
    kind: type[Residual], original: bool
) -> None:
    torch.manual_seed(0)
    network = kind().eval()
    images = torch.rand(4, 1, 8, 8)
    with lean_copy(network, images) as lean:
        assert not isinstance(lean, fx.GraphModule)
        assert (lean is network) == original
        assert not any(weight.requires_grad for weight in lean.parameters())
    assert all(weight.requires_grad for weight in network.parameters())
    assert np.isfinite(images.numpy()).all()
