"""A user's supernet computes what each of its networks does, whatever their modules do."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hwnas.search.supernet import one_hot_gates
from hwnas.space.batch_norm import SynchronizedBatchNorm2d, synchronized
from hwnas.space.chain_space import all_genotypes
from hwnas.space.energy import channel_energy
from hwnas.space.operators import as_trained
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.space.user.parts import Follows, Searched
from hwnas.space.user.shared import SharedModule
from hwnas.space.user.space import UserSpace

if TYPE_CHECKING:
    from hwnas.space.user.supernet import UserSupernet


class Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = torch.relu(self.norm(self.conv(features)))
        return result


class Bottleneck(nn.Module):
    """Its hidden channels are open where a mask alone closes its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Conv(width, 2 * width, 1), nn.Conv2d(2 * width, width, 3, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features + self.body(features)
        return result


class Scaled(nn.Module):
    """Keeps buffers that follow from the width: one that is saved, one that is not."""

    scale: Tensor
    shift: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)
        self.register_buffer("scale", torch.tensor(width**-0.5))
        self.register_buffer("shift", torch.full((1,), float(width)), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.conv(features) * self.scale + self.shift
        return result


class Deeper(nn.Module):
    """Of another number of layers for each width: its weights cannot be shared."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        more = (Conv(outputs, outputs) for _ in range(outputs // 4))
        self.body = nn.Sequential(Conv(inputs, outputs), *more)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.body(features)
        return result


class Tied(nn.Module):
    """Uses one layer's weights under two names, and normalizes over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 1)
        self.second = nn.Conv2d(width, width, 1)
        self.second.weight = self.first.weight
        self.norm = nn.GroupNorm(1, width)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.second(torch.relu(self.norm(self.first(features))))
        return result


def head(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes))


def all_kinds(image_shape: tuple[int, int, int] = (2, 8, 8), classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        Conv(image_shape[0], 8),
        Searched(
            {"conv5": lambda i, o: Conv(i, o, 5, 2), "conv3": lambda i, o: Conv(i, o, 3, 2)},
            widths=(12, 8),
        ),
        Searched({"bottleneck": lambda i, o: Bottleneck(i), "skip": None}),
        nn.ReLU6(),
        Searched(
            {"deeper": Deeper, "conv": lambda i, o: nn.Conv2d(i, o, 1)},
            widths=(8, 4),
        ),
        Searched({"tied": lambda i, o: Tied(i), "scaled": lambda i, o: Scaled(i), "skip": None}),
        Follows(lambda width: Conv(width, 6)),
        Searched({"skip": None, "conv": Conv}),
        Follows(lambda width: head(width, classes)),
    )


def bare(image_shape: tuple[int, int, int] = (2, 8, 8), classes: int = 3) -> nn.Sequential:
    """Begins with what is searched, which may be nothing; its end is several parts."""
    return nn.Sequential(
        Searched({"conv": Conv, "skip": None}),
        Searched({"conv": Conv}, widths=(9, 5)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        Follows(lambda width: nn.Linear(width, 6)),
        nn.Linear(6, classes),
    )


def space_of(function: str) -> UserSpace:
    space = space_from_spec(space_spec(f"user:{__file__}:{function}"))
    assert isinstance(space, UserSpace)
    return space


@functools.cache
def trained(function: str) -> tuple[UserSpace, UserSupernet]:
    space = space_of(function)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        supernet = as_trained(space.supernet())
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return space, supernet.eval()


SPACES = ("all_kinds", "bare")
IMAGES = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SPACES)
def test_one_hot_gates_give_every_slim_network(name: str) -> None:
    space, supernet = trained(name)
    genotypes = all_genotypes(space)
    assert len(genotypes) == len(set(genotypes)) == {"all_kinds": 8 * 12 * 2, "bare": 4}[name]
    for genotype in genotypes[::7] if name == "all_kinds" else genotypes:
        slim = space.network(genotype).eval()
        slim.load_state_dict(supernet.slim_state(genotype))
        taps: list[Tensor] = []
        with torch.no_grad():
            logits = slim(IMAGES, taps)
            observed = supernet(IMAGES, one_hot_gates(space, space.choices(genotype)))
        torch.testing.assert_close(observed.logits, logits, rtol=1e-4, atol=1e-5)
        energies = dict(zip(supernet.tap_names, observed.energies, strict=True))
        assert set(slim.tap_names) <= set(energies)
        for tapped, features in zip(slim.tap_names, taps, strict=True):
            torch.testing.assert_close(
                energies[tapped], channel_energy(features), rtol=1e-4, atol=1e-5
            )


def test_a_module_is_run_once_where_a_mask_is_enough() -> None:
    _, supernet = trained("all_kinds")
    assert supernet.runs == {
        "part2.conv5": 1,
        "part2.conv3": 1,
        "part3.bottleneck": 2,
        "part4": 1,
        "part5.deeper": 3,
        "part5.conv": 1,
        "part6.tied": 2,
        "part6.scaled": 2,
        "part7": 1,
        "part8.conv": 1,
        "end": 1,
    }
    parts = {part.name: part for part in supernet._mixed}
    assert set(parts["part5"].shared["deeper"].own) == {"1", "3"}  # both of the narrow outputs
    assert not parts["part6"].shared["tied"].own


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=5)
@given(data=st.data())
def test_soft_gates_mix_and_every_gate_learns(name: str, data: st.DataObject) -> None:
    space, supernet = trained(name)
    seed = data.draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    gates = [
        torch.softmax(torch.randn(len(options), generator=generator), 0).requires_grad_()
        for options in space.options
    ]
    training = copy.deepcopy(supernet).train()
    observed = training(IMAGES, gates)
    (observed.logits.square().sum() + sum(map(torch.sum, observed.energies))).backward()
    for gate, options in zip(gates, space.options, strict=True):
        assert gate.grad is not None
        assert bool(gate.grad.isfinite().all())
        assert len(options) == 1 or float(gate.grad.std()) > 0
    for parameter in training.parameters():
        assert parameter.grad is not None
    assert training(IMAGES, [gate.detach() for gate in gates], observe=False).energies == ()


def test_closed_gates_still_learn() -> None:
    space, supernet = trained("all_kinds")
    gates = [gate.requires_grad_() for gate in one_hot_gates(space, space.choices(space.smallest))]
    supernet(IMAGES, gates).logits.square().sum().backward()
    for gate in gates:
        assert gate.grad is not None
        assert int((gate.grad != 0).sum()) == len(gate)


def test_training_moves_the_statistics_of_windows_in_place() -> None:
    space, supernet = trained("all_kinds")
    training = copy.deepcopy(supernet).train()
    before = {name: buffer.clone() for name, buffer in training.named_buffers()}
    training(IMAGES, [torch.full((len(each),), 1 / len(each)) for each in space.options])
    moved = {
        name
        for name, buffer in training.named_buffers()
        if name.endswith("running_mean") and not torch.equal(buffer, before[name])
    }
    assert moved == {name for name in before if name.endswith("running_mean")}


def test_a_state_is_saved_and_read_back() -> None:
    space, supernet = trained("all_kinds")
    again = space.supernet().eval()
    again.load_state_dict(supernet.state_dict())
    gates = [torch.full((len(each),), 1 / len(each)) for each in space.options]
    with torch.no_grad():
        assert torch.equal(again(IMAGES, gates).logits, supernet(IMAGES, gates).logits)


def test_modes_reach_the_modules_that_lend_their_code() -> None:
    def build(width_in: int, width_out: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(width_in, width_out, 1), nn.GroupNorm(1, width_out),
                             nn.Dropout(0.5))  # fmt: skip

    shared = SharedModule(build, [(8, 8), (4, 4)], (4, 4))
    assert len(shared.runs) == 2
    features, weights = torch.rand(2, 8, 4, 4), torch.tensor([0.0, 1.0])
    shared.eval()
    assert torch.equal(shared(features, weights), shared(features, weights))
    shared.train()
    assert not torch.equal(shared(features, weights), shared(features, weights))


def test_a_pair_reads_no_channel_that_it_does_not_have() -> None:
    shared = SharedModule(lambda i, o: nn.Conv2d(i, o, 1), [(8, 8), (4, 4)], (4, 4))
    features = torch.rand(2, 8, 4, 4)
    closed = features.clone()
    closed[:, 4:] = 0.0
    own = SharedModule(lambda i, o: Tied(i), [(8, 8), (4, 4)], (4, 4))
    narrow = torch.tensor([0.0, 1.0])
    assert torch.equal(own(features, narrow), own(closed, narrow))
    assert not bool(shared(closed, narrow)[:, 4:].any())


def test_lent_code_is_synchronized_as_the_registered_layers_are() -> None:
    space, supernet = trained("all_kinds")
    alone, together = (copy.deepcopy(supernet).train() for _ in range(2))
    synchronized(together)
    gates = [torch.full((len(each),), 1 / len(each)) for each in space.options]
    torch.testing.assert_close(together(IMAGES, gates).logits, alone(IMAGES, gates).logits)
    for (name, own), other in zip(alone.named_buffers(), together.buffers(), strict=True):
        torch.testing.assert_close(other, own, msg=name)
    bottleneck = next(part for part in together._mixed if part.name == "part3")
    codes = bottleneck.shared["bottleneck"]._codes
    norms = [each for code in codes for each in code.modules() if isinstance(each, nn.BatchNorm2d)]
    assert {type(norm) for norm in norms} == {SynchronizedBatchNorm2d}


def test_bf16_keeps_the_sum_of_the_gates() -> None:
    space, supernet = trained("all_kinds")
    gates = [torch.full((len(each),), 1 / len(each)) for each in space.options]
    with torch.no_grad():
        exact = supernet(IMAGES, gates).logits
        with torch.autocast("cpu", torch.bfloat16):
            rounded = supernet(IMAGES, gates).logits.float()
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1 * float(exact.abs().max()))
