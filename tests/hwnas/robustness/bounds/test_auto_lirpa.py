"""Our bounds beside those of auto_LiRPA, where it is installed.

Intervals are unique, up to what is made of the last layer; its linear bounds have the same ReLU
relaxation by default ("adaptive"), so they are equal too. It has no rule for h-swish of its own
kind, so there ours is only not to be looser than what it makes of the parts.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec
from hwnas.robustness.bounds import Method, margin_lower_bounds
from hwnas.robustness.threat import Eps
from hwnas.space.operators import as_trained

if TYPE_CHECKING:
    from torch import Tensor

auto_lirpa = pytest.importorskip("auto_LiRPA")

CLASSES = 4
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("default"),  # of code that is not ours
]


def networks() -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, CLASSES),
        )
        residual = TeacherNetwork(
            TeacherSpec(image_shape=(2, 8, 8), classes=CLASSES, width=4, blocks=(1, 1))
        )
    return {
        name: as_trained(network).eval().requires_grad_(requires_grad=False).double()
        for name, network in {"plain": plain, "residual": residual}.items()
    }


NETWORKS = networks()
THEIR_NAMES = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}


def theirs(network: nn.Module, images: Tensor, labels: Tensor, eps: float, method: str) -> Tensor:
    low, high = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
    ball = auto_lirpa.PerturbationLpNorm(norm=float("inf"), eps=eps, x_L=low, x_U=high)
    bounded = auto_lirpa.BoundedModule(network, images, device="cpu", verbose=False)
    assert torch.allclose(bounded(images), network(images))
    identity = torch.eye(CLASSES, dtype=images.dtype)
    differences = identity[labels][:, None] - identity[None]  # (N, classes, classes)
    lower, _ = bounded.compute_bounds(
        x=(auto_lirpa.BoundedTensor(images, ball),),
        C=differences,
        method=THEIR_NAMES[method],
        bound_upper=False,
    )
    found: Tensor = lower.detach()
    return found


@pytest.mark.parametrize("method", THEIR_NAMES)
@pytest.mark.parametrize("eps", [1e-3, 1 / 255, 0.02])
@pytest.mark.parametrize("name", NETWORKS)
def test_relu_networks_have_the_same_bounds(name: str, eps: float, method: Method) -> None:
    network = NETWORKS[name]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 2, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.arange(3)
    ours = margin_lower_bounds(network, images, labels, eps=Eps(eps), method=method)
    other = theirs(network, images, labels, eps, method)
    sys.stderr.write(_told(f"{name} {method} {eps:.4f}", ours, other))
    if method == "ibp":
        # Theirs merges the last layer too; nothing is left to choose.
        torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-8)
    else:
        assert (ours >= other - 1e-6 * other.abs().clamp(min=1.0)).all()


def _told(what: str, ours: Tensor, other: Tensor) -> str:
    apart: Any = (ours - other).abs().max()
    return f"{what}: ours {ours.mean():.6f}, theirs {other.mean():.6f}, apart {apart:.2e}\n"
