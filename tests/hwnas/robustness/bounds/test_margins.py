"""Lower bounds of margins: exact where they can be, sound everywhere, and differentiable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import pytest
import torch
from torch import nn

from hwnas.core.errors import DataError, UnboundedOperationError
from hwnas.robustness.bounds import Method, margin_lower_bounds
from hwnas.robustness.bounds.certified import margins_of
from hwnas.robustness.bounds.refine import refined
from hwnas.robustness.bounds.tensor import BoundedTensor
from hwnas.robustness.threat import Eps

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS: tuple[Method, ...] = get_args(Method)
CLASSES = 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_and_labels(count: int = 4, size: int = 6) -> tuple[Tensor, Tensor]:
    images = torch.rand(count, 2, size, size, generator=seeded(), dtype=torch.float64)
    return images, torch.arange(count) % CLASSES


def relu_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 12),
            nn.ReLU(),
            nn.Linear(12, CLASSES),
        )
    return network.double().eval().requires_grad_(requires_grad=False)


def bounds_of(
    forward: Callable[[Any], Any], images: Tensor, labels: Tensor, eps: float, method: Method
) -> Tensor:
    return margin_lower_bounds(forward, images, labels, eps=Eps(eps), method=method)


@pytest.mark.parametrize("method", METHODS)
def test_bounds_of_a_linear_network_are_exact(method: Method) -> None:
    images, labels = images_and_labels()
    images[0] = 1.0  # brighter than white is no image
    classifier = nn.Linear(72, CLASSES).double().requires_grad_(requires_grad=False)
    network = nn.Sequential(nn.Flatten(), classifier)
    eps = 0.1
    found = bounds_of(network, images, labels, eps, method)
    differences = classifier.weight[labels][:, None] - classifier.weight  # (N, classes, pixels)
    low, high = ((images + way * eps).clamp(0, 1).flatten(1)[:, None] for way in (-1, 1))
    least = torch.where(differences > 0, low, high)
    shifts = classifier.bias[labels][:, None] - classifier.bias
    expected = (differences * least).sum(2) + shifts
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_perturbation_they_are_the_margins(method: Method) -> None:
    images, labels = images_and_labels()
    network = relu_network()
    found = bounds_of(network, images, labels, 0.0, method)
    torch.testing.assert_close(found, margins_of(network(images), labels), rtol=0, atol=1e-9)
    assert (found.gather(1, labels[:, None]) == 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("eps", [0.004, 0.03, 0.2])
def test_no_point_of_the_ball_is_below(method: Method, eps: float, worst_found: Any) -> None:
    images, labels = images_and_labels()
    network = relu_network()
    found = bounds_of(network, images, labels, eps, method)
    assert (found <= worst_found(network, images, labels, eps)).all()


@pytest.mark.parametrize("eps", [0.004, 0.03, 0.2])
def test_what_costs_more_is_tighter(eps: float) -> None:
    images, labels = images_and_labels()
    means = []
    for seed in range(3):
        ibp, crown_ibp, crown = (
            bounds_of(relu_network(seed), images, labels, eps, method) for method in METHODS
        )
        assert (crown_ibp >= ibp).all()
        assert (crown >= ibp - 1e-12).all()
        means.append([each.mean() for each in (ibp, crown_ibp, crown)])
    ibp, crown_ibp, crown = torch.tensor(means).mean(0).tolist()
    assert crown > crown_ibp > ibp


def test_refined_intervals_lie_within_those_before(worst_found: Any) -> None:
    seen: list[Any] = []

    def watched(value: Any) -> Any:
        hidden = torch.relu(first(value))
        if isinstance(hidden, BoundedTensor):
            before = second(hidden).bounded
            everything = torch.ones(before.shape[1:].numel(), dtype=torch.bool)
            seen.append((before.interval, refined(before, everything)))
        return second(hidden).flatten(1)[:, :CLASSES]

    first, second = relu_network()[0], relu_network()[2]  # type: ignore[index]
    images, labels = images_and_labels()
    bounds_of(watched, images, labels, 0.02, "crown-ibp")
    ((before, after),) = seen
    meeting = before.meet(after)
    assert (meeting.lower > before.lower).float().mean() > 0.5
    assert (meeting.upper < before.upper).float().mean() > 0.5
    values = second(torch.relu(first(images)))
    assert (values >= after.lower - 1e-9).all()
    assert (values <= after.upper + 1e-9).all()


def test_a_larger_ball_has_lower_bounds() -> None:
    images, labels = images_and_labels()
    network = relu_network()
    sizes = (0.0, 0.002, 0.01, 0.05, 0.3)
    for method in METHODS:
        found = torch.stack([bounds_of(network, images, labels, eps, method) for eps in sizes])
        others = torch.ones(len(images), CLASSES, dtype=torch.bool).scatter(
            1, labels[:, None], value=False
        )
        assert (found[1:] < found[:-1])[:, others].all()


@pytest.mark.parametrize("method", METHODS)
def test_each_image_may_have_its_own_ball(method: Method) -> None:
    images, labels = images_and_labels()
    network = relu_network()
    sizes = torch.tensor([0.0, 0.01, 0.05, 0.2])
    found = margin_lower_bounds(network, images, labels, eps=sizes, method=method)
    for row, eps in enumerate(sizes.tolist()):
        alone = slice(row, row + 1)
        expected = bounds_of(network, images[alone], labels[alone], eps, method)
        torch.testing.assert_close(found[alone], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_float32_lies_below_float64(method: Method) -> None:
    images, labels = images_and_labels(8)
    for seed in range(5):
        network = relu_network(seed)
        wide = bounds_of(network, images.float().double(), labels, 0.01, method)
        network = network.float()
        narrow = bounds_of(network, images.float(), labels, 0.01, method)
        exact = bounds_of(network.double(), images.float().double(), labels, 0.01, method)
        assert narrow.dtype == torch.float32
        assert (narrow <= exact).all()
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_finite_differences(method: Method) -> None:
    images, labels = images_and_labels(2, size=5)
    generator = seeded(3)
    weights = [
        torch.randn(4, 2, 3, 3, generator=generator, dtype=torch.float64) / 3,
        torch.randn(CLASSES, 36, generator=generator, dtype=torch.float64) / 6,
        torch.rand(4, generator=generator, dtype=torch.float64),
    ]
    kernel, matrix, gates = (each.requires_grad_() for each in weights)

    def lowest(kernel: Tensor, matrix: Tensor, gates: Tensor) -> Tensor:
        def forward(x: Any) -> Any:
            y = nn.functional.hardswish(nn.functional.conv2d(x, kernel)) * gates[:, None, None]
            return nn.functional.linear(torch.relu(y - 0.1).flatten(1), matrix)

        return bounds_of(forward, images, labels, 0.02, method).sum()

    assert torch.autograd.gradcheck(lowest, (kernel, matrix, gates), fast_mode=True)


def test_autocast_does_not_round_bounds() -> None:
    images, labels = images_and_labels()
    network = relu_network().float()
    expected = bounds_of(network, images.float(), labels, 0.01, "ibp")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bounds_of(network, images.float(), labels, 0.01, "ibp"), expected)


def test_intervals_keep_no_features_alive() -> None:
    outputs = []

    def forward(x: Any) -> Any:
        outputs.append(network[:4](x))  # type: ignore[index]
        return network[4:](outputs[-1])  # type: ignore[index]

    network = relu_network()
    images, labels = images_and_labels()
    bounds_of(forward, images, labels, 0.01, "ibp")
    assert outputs[0].bounded.step is None


def test_images_outside_the_unit_range_are_refused() -> None:
    images, labels = images_and_labels()
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        bounds_of(relu_network(), 255 * images, labels, 0.01, "ibp")


def test_images_in_half_precision_are_refused() -> None:
    images, labels = images_and_labels()
    with pytest.raises(DataError, match="float16"):
        bounds_of(relu_network(), images.half(), labels, 0.01, "ibp")


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda x: torch.zeros(4, CLASSES), "Tensor in place of"),
        (lambda x: (x.flatten(1), x), "tuple in place of"),
        (lambda x: x, r"\(4, 2, 6, 6\) in place of"),
    ],
)
def test_what_gives_no_logits_is_refused(forward: Any, said: str) -> None:
    images, labels = images_and_labels()
    with pytest.raises(UnboundedOperationError, match=said):
        bounds_of(forward, images, labels, 0.01, "ibp")
