"""Our bounds beside those of auto_LiRPA, where it is installed (from git; PyPI's is too old).

Both have CROWN's ReLU relaxation, and merge the last layer into the margins, so bounds are equal:
what is left are the places where intervals of both kinds are known, of which we take the overlap.

`conv_mode="matrix"`: by its default, "patches", version 0.7.1 finds intervals with CROWN behind a
depthwise convolution that do not hold the network's own values. It has no h-swish.
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
    from collections.abc import Iterator

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
    options = {"conv_mode": "matrix"}
    bounded = auto_lirpa.BoundedModule(network, images, bound_opts=options, device="cpu")
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


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """It makes tensors of the default type, whatever the network's is."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_by_default")
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
    # Slopes are chosen by intervals: the overlap may choose another one than either.
    tolerance = 1e-3 if method == "crown" and eps > 0.01 else 1e-9
    torch.testing.assert_close(ours, other, rtol=0, atol=tolerance)
    assert ours.mean() >= other.mean() - 1e-9


def _told(what: str, ours: Tensor, other: Tensor) -> str:
    apart: Any = (ours - other).abs().max()
    return f"{what}: ours {ours.mean():.6f}, theirs {other.mean():.6f}, apart {apart:.2e}\n"
