"""Bounds of whole networks and supernets of every space, held against drawn and attacked points."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec
from hwnas.robustness.bounds import Method, margin_lower_bounds
from hwnas.robustness.bounds.certified import margins_of
from hwnas.robustness.threat import Eps
from hwnas.search.supernet import one_hot_gates
from hwnas.space.channel.spec import ChannelSpec, StageSpec
from hwnas.space.mbconv.spec import MBConvSpec, MBConvStage
from hwnas.space.operators import as_trained
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import SPACES, space_spec
from hwnas.space.user.parts import Follows, Searched

if TYPE_CHECKING:
    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.genotype import Genotype
    from hwnas.space.supernet import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 3
SMALL = {
    "channel": ChannelSpec(
        name="small channels",
        image_shape=(2, 9, 7),
        classes=CLASSES,
        stem=6,
        stem_stride=2,
        stages=(
            StageSpec(blocks=2, widths=(6, 4)),
            StageSpec(blocks=1, widths=(10, 8), stride=2),
        ),
        expansion=2,
        head=12,
    ),
    "mbconv": MBConvSpec(
        name="small mbconv",
        image_shape=(2, 9, 7),
        classes=CLASSES,
        stem=6,
        stem_stride=2,
        stages=(
            MBConvStage(blocks=2, widths=(8, 6)),
            MBConvStage(blocks=1, widths=(10, 8), stride=2),
        ),
        kernels=(3, 5),
        expansions=(1, 2),
    ),
}


def conv(kernel: int, stride: int = 1) -> Any:
    return lambda width_in, width_out: nn.Sequential(
        nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(width_out),
        nn.ReLU(inplace=True),
    )


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(width, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        features = features + features * torch.sigmoid(self.score(features))
        features += 0.1
        return features


def users_network(image_shape: tuple[int, int, int] = (2, 8, 8), classes: int = 3) -> nn.Module:
    return nn.Sequential(
        conv(3)(image_shape[0], 6),
        Searched({"conv5": conv(5, 2), "conv3": conv(3, 2)}, widths=(8, 6)),
        Searched({"attention": lambda i, o: Attention(i), "skip": None}),
        nn.MaxPool2d(2, 1),
        Searched({"conv1": conv(1), "skip": None}),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        Follows(lambda width: nn.Sequential(nn.Dropout(), nn.Linear(width, classes))),
    )


def cells() -> Any:
    from hwnas.space.cells.spec import CELL_SPACES

    small = replace(CELL_SPACES["darts-xs"], image_shape=(2, 8, 8), classes=CLASSES)
    return replace(small, cells=3, channels=2, nodes=2)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A supernet in float64 with gates that have learned nothing in particular."""

    space: ChainSpace
    supernet: Supernet
    gates: list[Tensor]
    images: Tensor
    labels: Tensor

    def mixed(self, images: Any) -> Any:
        return self.supernet(images, self.gates, observe=False).logits

    def chosen(self, genotype: Genotype) -> Any:
        gates = [gate.double() for gate in one_hot_gates(self.space, self.space.choices(genotype))]
        return lambda images: self.supernet(images, gates, observe=False).logits

    def slim(self, genotype: Genotype) -> nn.Module:
        network = self.space.network(genotype)
        network.load_state_dict(self.supernet.slim_state(genotype))
        return network.double().eval().requires_grad_(requires_grad=False)

    def genotypes(self) -> list[Genotype]:
        sizes = [len(options) for options in self.space.options]
        generator = torch.Generator().manual_seed(1)
        drawn = [
            [int(torch.randint(size, (), generator=generator)) for size in sizes] for _ in range(2)
        ]
        return [self.space.genotype_of_choices(each) for each in ([0] * len(sizes), *drawn)]


def case_of(spec: Any) -> Case:
    space = space_from_spec(spec)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        supernet = as_trained(space.supernet())
    supernet.double().eval().requires_grad_(requires_grad=False)
    logits = [torch.randn(len(options), generator=generator).double() for options in space.options]
    images = torch.rand(2, *spec.image_shape, generator=generator).double()
    return Case(
        space=space,
        supernet=supernet,
        gates=[torch.softmax(each, 0).requires_grad_() for each in logits],
        images=images,
        labels=torch.arange(2),
    )


@functools.cache
def small_case(name: str) -> Case:
    if name == "user":
        return case_of(space_spec(f"user:{__file__}:users_network"))
    return case_of(cells() if name == "cells" else SMALL[name])


NAMES = ("channel", "mbconv", "user", "cells")
METHODS: tuple[Method, ...] = ("ibp", "crown-ibp", "crown")


def check(forward: Any, case: Case, eps: float, method: Method, worst_found: Any) -> None:
    found = margin_lower_bounds(forward, case.images, case.labels, eps=Eps(eps), method=method)
    worst = worst_found(forward, case.images, case.labels, eps)
    assert found.isfinite().all()
    assert (found <= worst).all()
    still = margin_lower_bounds(forward, case.images, case.labels, eps=Eps(0.0), method=method)
    with torch.no_grad():
        margins = margins_of(forward(case.images), case.labels)
    torch.testing.assert_close(still, margins, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_mixes_are_bounded(name: str, method: Method, worst_found: Any) -> None:
    case = small_case(name)
    if method == "crown" and name == "cells":
        pytest.skip("a mix of all cells has too many values")
    for eps in (0.002, 0.05):
        check(case.mixed, case, eps, method, worst_found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_slim_networks_are_bounded(name: str, method: Method, worst_found: Any) -> None:
    case = small_case(name)
    for genotype in case.genotypes():
        check(case.slim(genotype), case, 0.01, method, worst_found)


@pytest.mark.parametrize("method", METHODS[:2])
@pytest.mark.parametrize("name", NAMES)
def test_one_hot_gates_give_the_bounds_of_the_slim_network(name: str, method: Method) -> None:
    case = small_case(name)
    for genotype in case.genotypes():
        mixed, slim = (
            margin_lower_bounds(each, case.images, case.labels, eps=Eps(0.01), method=method)
            for each in (case.chosen(genotype), case.slim(genotype))
        )
        torch.testing.assert_close(mixed, slim, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS[:2])
@pytest.mark.parametrize("name", NAMES)
def test_gates_learn_what_finite_differences_say(name: str, method: Method) -> None:
    case = small_case(name)

    def lowest(*gates: Tensor) -> Tensor:
        return margin_lower_bounds(
            lambda images: case.supernet(images, gates, observe=False).logits,
            case.images,
            case.labels,
            eps=Eps(0.004),
            method=method,
        ).sum()

    gradients = torch.autograd.grad(lowest(*case.gates), case.gates)
    step = 1e-6
    for place, gradient in enumerate(gradients):
        assert gradient.abs().sum() > 0 or len(gradient) == 1
        choice = int(gradient.abs().argmax())
        moved = []
        for way in (-1, 1):
            gates = [gate.detach().clone() for gate in case.gates]
            gates[place][choice] += way * step
            moved.append(float(lowest(*gates)))
        slope = (moved[1] - moved[0]) / (2 * step)
        assert slope == pytest.approx(float(gradient[choice]), rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS[:2])
@pytest.mark.parametrize("name", ["rnas-cl-xs", "rnas-cl-s3", "mbconv-32"])
def test_named_spaces_are_bounded(name: str, method: Method, worst_found: Any) -> None:
    assert name in SPACES
    case = case_of(space_spec(name, image_shape=(3, 16, 16), classes=CLASSES))
    for eps in (0.0001, 1 / 255):
        check(case.mixed, case, eps, method, worst_found)


@pytest.mark.parametrize("method", METHODS)
def test_our_teacher_is_bounded(method: Method, worst_found: Any) -> None:
    spec = TeacherSpec(image_shape=(2, 9, 7), classes=CLASSES, width=4, blocks=(1, 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = as_trained(TeacherNetwork(spec))
    network = network.double().eval().requires_grad_(requires_grad=False)
    check(network, small_case("channel"), 0.02, method, worst_found)
