from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from hwnas.core.errors import ConfigError
from hwnas.search.supernet import one_hot_gates
from hwnas.space.batch_norm import SynchronizedBatchNorm2d, synchronized
from hwnas.space.cells.nodes import NodeOption
from hwnas.space.cells.space import CellSpace
from hwnas.space.cells.spec import CellSpec
from hwnas.space.cells.supernet import MixedCell, MixedEdge
from hwnas.space.energy import channel_energy

if TYPE_CHECKING:
    from hwnas.space.cells.supernet import CellSupernet

pytestmark = pytest.mark.usefixtures("one_thread")

SPACE = CellSpace(
    CellSpec(name="small", image_shape=(2, 9, 7), classes=4, cells=4, channels=4, nodes=2)
)
PARTIAL = CellSpace(replace(SPACE.spec, name="partial", channels=8, partial=4))


def trained(space: CellSpace, steps: int = 2) -> CellSupernet:
    """A supernet whose weights and statistics are off their initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        supernet = space.supernet()
        optimizer = torch.optim.SGD(supernet.parameters(), lr=0.05)
        for _ in range(steps):
            logits = supernet(torch.rand(8, *space.spec.image_shape), soft_gates(space)).logits
            optimizer.zero_grad()
            torch.autograd.backward(logits.square().mean())
            optimizer.step()
    return supernet


def soft_gates(space: CellSpace, *, requires_grad: bool = False) -> list[torch.Tensor]:
    return [
        torch.softmax(torch.randn(len(options)), dim=0).requires_grad_(requires_grad)
        for options in space.options
    ]


@pytest.fixture(scope="module")
def supernet() -> CellSupernet:
    return trained(SPACE).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 2, 9, 7, generator=torch.Generator().manual_seed(1))


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_with_one_hot_gates_it_is_the_slim_network(
    supernet: CellSupernet, images: torch.Tensor, seed: int
) -> None:
    genotype = SPACE.random_genotype(np.random.default_rng(seed))
    slim = SPACE.network(genotype)
    slim.load_state_dict(supernet.slim_state(genotype))
    slim.eval()
    taps: list[torch.Tensor] = []
    with torch.no_grad():
        expected = slim(images, taps)
        logits, energies = supernet(images, one_hot_gates(SPACE, SPACE.choices(genotype)))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert slim.tap_names == supernet.tap_names
    for tap, energy in zip(taps, energies, strict=True):
        torch.testing.assert_close(energy, channel_energy(tap), rtol=1e-4, atol=1e-5)


def test_a_slim_network_has_weights_of_its_own(supernet: CellSupernet) -> None:
    state = supernet.slim_state(SPACE.largest)
    held = {part.data_ptr() for part in supernet.state_dict().values()}
    assert held.isdisjoint(part.data_ptr() for part in state.values())
    # Batch normalization gets the scale and shift that it does not have while all share a sum.
    added = {name: part for name, part in state.items() if "cells.0.nodes.0.0.3." in name}
    assert torch.equal(added["cells.0.nodes.0.0.3.weight"], torch.ones(4))
    assert torch.equal(added["cells.0.nodes.0.0.3.bias"], torch.zeros(4))
    assert not torch.equal(added["cells.0.nodes.0.0.3.running_mean"], torch.zeros(4))


def test_an_edge_runs_as_much_of_an_operation_as_all_pairs_that_have_it() -> None:
    """Against the sum over the options, in words: how likely is the operation on that edge."""
    gates = soft_gates(SPACE)
    for index, (gate, incidence) in enumerate(zip(gates, SPACE.incidences, strict=True)):
        weights = (gate @ incidence).view(-1, len(SPACE.spec.candidates))
        for source, of_source in enumerate(weights):
            for name, weight in zip(SPACE.spec.candidates, of_source, strict=True):
                likely = sum(
                    float(share)
                    for share, option in zip(gate, SPACE.options[index], strict=True)
                    if (source, name) in NodeOption.parse(option).edges
                )
                assert float(weight) == pytest.approx(likely, abs=1e-6)
        assert float(weights.sum()) == pytest.approx(2.0, abs=1e-5)


def test_a_node_of_a_mixture_is_the_mean_node(supernet: CellSupernet) -> None:
    """With one node to mix, what it gives is linear in the gates: the mean over its options."""
    torch.manual_seed(0)
    space = CellSpace(replace(SPACE.spec, nodes=1, operations=("max3", "skip", "sep3")))
    cell = MixedCell(space.spec, space.spec.places[1]).eval()
    before, last = torch.rand(2, 12, 9, 7), torch.rand(2, 4, 9, 7)
    gate = torch.softmax(torch.randn(9), dim=0)
    incidence = space.incidences[1]

    def of(gate: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = cell(before, last, [(gate @ incidence).view(2, 3)])
        return output

    mean = sum(share * of(one_hot) for share, one_hot in zip(gate, torch.eye(9), strict=True))
    torch.testing.assert_close(of(gate), mean)


@pytest.mark.parametrize("space", [SPACE, PARTIAL], ids=["all", "partial"])
def test_gradients_reach_every_gate_and_every_weight(space: CellSpace) -> None:
    torch.manual_seed(0)
    supernet, gates = space.supernet(), soft_gates(space, requires_grad=True)
    logits, energies = supernet(torch.rand(8, 2, 9, 7), gates)
    loss = logits.square().mean() + sum(energy.mean() for energy in energies)
    torch.autograd.backward(loss)
    for gate in gates:
        assert gate.grad is not None
        assert (gate.grad != 0).all()
    for name, part in supernet.named_parameters():
        assert part.grad is not None, name
        assert torch.isfinite(part.grad).all()


def test_energies_are_made_only_where_asked_for(
    supernet: CellSupernet, images: torch.Tensor
) -> None:
    gates = soft_gates(SPACE)
    with torch.no_grad():
        seen, unseen = (supernet(images, gates, observe=observe) for observe in (True, False))
    assert torch.equal(seen.logits, unseen.logits)
    assert [tuple(energy.shape) for energy in seen.energies] == [
        (3, 9, 7), (3, 9, 7), (3, 5, 4), (3, 3, 2), (3, 3, 2),
    ]  # fmt: skip
    assert unseen.energies == ()


@pytest.mark.parametrize("space", [SPACE, PARTIAL], ids=["all", "partial"])
def test_its_state_survives_the_round_trip(space: CellSpace, images: torch.Tensor) -> None:
    first, second = trained(space).eval(), space.supernet().eval()
    second.load_state_dict(first.state_dict())
    gates = soft_gates(space)
    with torch.no_grad():
        assert torch.equal(first(images, gates).logits, second(images, gates).logits)


def test_over_processes_it_computes_the_same(images: torch.Tensor) -> None:
    """One process shares its statistics with none; batch normalization has no scale of its own."""
    plain, shared = trained(SPACE).train(), synchronized(trained(SPACE)).train()
    assert sum(isinstance(part, SynchronizedBatchNorm2d) for part in shared.modules()) > 100
    gates = soft_gates(SPACE)
    torch.testing.assert_close(
        plain(images, gates).logits, shared(images, gates).logits, rtol=1e-4, atol=1e-5
    )


# Partial channels


def test_operations_see_a_part_of_the_channels_and_the_others_go_by() -> None:
    torch.manual_seed(0)
    place = PARTIAL.spec.places[0]
    edge = MixedEdge(PARTIAL.spec, place, 0).eval()
    features = torch.randn(2, 8, 9, 7)
    only_skip = torch.tensor([0.25 * (name == "skip") for name in PARTIAL.spec.candidates])
    given = edge(features, only_skip)
    # Channels 0 and 1 went through a skip, which changes nothing: all are weighed alike. One of
    # each group of two is taken in turn.
    shuffled = features[:, [0, 2, 4, 6, 1, 3, 5, 7]]
    torch.testing.assert_close(given, 0.25 * shuffled)
    widths = {part.in_channels for part in edge.modules() if isinstance(part, nn.Conv2d)}
    assert widths == {2}


def test_what_goes_by_a_reduction_is_pooled() -> None:
    place = PARTIAL.spec.places[1]
    edge = MixedEdge(PARTIAL.spec, place, 1).eval()
    features = torch.rand(2, place.channels, 9, 7)
    only_pool = torch.tensor([1.0 * (name == "max3") for name in PARTIAL.spec.candidates])
    given = edge(features, only_pool)
    assert given.shape == (2, 16, 5, 4)
    pooled = functional.max_pool2d(features, 2, ceil_mode=True)
    torch.testing.assert_close(given[:, 1], pooled[:, 4])


def test_partial_channels_hold_no_network() -> None:
    supernet = PARTIAL.supernet()
    full = CellSpace(replace(PARTIAL.spec, partial=1)).supernet()
    assert sum(p.numel() for p in supernet.parameters()) < sum(p.numel() for p in full.parameters())
    with pytest.raises(ConfigError, match="1/4 of the channels") as caught:
        supernet.slim_state(PARTIAL.smallest)
    assert 'init = "scratch"' in caught.value.hint
