from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.space.batch_norm import synchronized
from hwnas.space.energy import channel_energy
from hwnas.space.mbconv.masks import FLOOR, PathOptions
from hwnas.space.mbconv.space import MBConvSpace
from hwnas.space.mbconv.spec import MBCONV_SPACES, MBConvSpec, MBConvStage
from hwnas.space.operators import as_trained

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from hwnas.space.genotype import Genotype
    from hwnas.space.mbconv.superblock import MBConvSuperblock
    from hwnas.space.mbconv.supernet import MBConvSupernet

pytestmark = pytest.mark.usefixtures("one_thread")

# Sizes that strides do not divide, hidden widths that are rounded, shortcuts within a stage, from
# the stem and between stages.
FULL = MBConvSpec(
    name="full",
    image_shape=(2, 13, 9),
    classes=4,
    stem=12,
    stem_stride=2,
    stages=(
        MBConvStage(blocks=2, widths=(16, 12)),
        MBConvStage(blocks=2, widths=(20, 16, 8), stride=2),
        MBConvStage(blocks=2, widths=(20, 12)),
    ),
    kernels=(3, 5),
    expansions=(1, 3, 6),
)


def shrunken(name: str) -> MBConvSpec:
    """A named space with an eighth of its widths, for small images."""
    spec = MBCONV_SPACES[name]
    stages = tuple(
        replace(stage, widths=tuple(width // 8 for width in stage.widths)) for stage in spec.stages
    )
    return replace(spec, image_shape=(3, 17, 15), classes=4, stem=2, stages=stages)


SPECS = {
    "full": FULL,
    "one kernel": replace(FULL, kernels=(5,)),
    "no excitation": replace(FULL, se=(False,)),
    "excitation alone": replace(FULL, se=(True,)),
    "no expansion": replace(FULL, expansions=(1,)),
    "expansion alone": replace(FULL, expansions=(3, 6)),
    "one width": replace(FULL, stages=(MBConvStage(blocks=3, widths=(12,)),)),
}
SPACES = {name: MBConvSpace(spec) for name, spec in SPECS.items()}
FULL_SPACE = SPACES["full"]


def trained(space: MBConvSpace) -> MBConvSupernet:
    """A supernet whose statistics are not those it began with."""
    torch.manual_seed(0)
    return as_trained(space.supernet()).eval()


SUPERNETS = {name: trained(space) for name, space in SPACES.items()}


def images_of(space: MBConvSpace, batch: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, *space.spec.image_shape, generator=generator)


def one_hot(space: MBConvSpace, genotype: Genotype) -> list[Tensor]:
    return [
        torch.nn.functional.one_hot(torch.tensor(choice), len(options)).float()
        for choice, options in zip(space.choices(genotype), space.options, strict=True)
    ]


def soft(space: MBConvSpace, seed: int, temperature: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.softmax(torch.randn(len(options), generator=generator) / temperature, 0)
        for options in space.options
    ]


def slim_of(space: MBConvSpace, net: MBConvSupernet, genotype: Genotype) -> nn.Module:
    slim = space.network(genotype)
    slim.load_state_dict(net.slim_state(genotype))
    return slim.train(net.training)


def loss_of(net: MBConvSupernet, images: Tensor, gates: Sequence[Tensor]) -> Tensor:
    """A loss that depends on all that a supernet gives."""
    logits, energies = net(images, gates)
    shares = [torch.nn.functional.normalize(each.flatten(1), dim=1) for each in energies]
    weighted = [(share * torch.linspace(0, 1, share.shape[1])).sum() for share in shares]
    loss: Tensor = logits.square().mean() + torch.stack(weighted).mean()
    return loss


# The slim network is the supernet's path


def check_equal(space: MBConvSpace, net: MBConvSupernet, genotype: Genotype, seed: int) -> None:
    images = images_of(space, seed=seed)
    slim = slim_of(space, net, genotype)
    taps: list[Tensor] = []
    with torch.no_grad():
        expected = slim(images, taps)
        logits, energies = net(images, one_hot(space, genotype))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    by_name = dict(zip(net.tap_names, energies, strict=True))
    for name, tap in zip(space.network(genotype).tap_names, taps, strict=True):
        torch.testing.assert_close(by_name[name], channel_energy(tap), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32))
def test_one_hot_gates_give_the_slim_network(name: str, seed: int) -> None:
    space = SPACES[name]
    genotype = space.random_genotype(np.random.default_rng(seed))
    check_equal(space, SUPERNETS[name], genotype, seed)


@pytest.mark.parametrize("name", MBCONV_SPACES)
def test_one_hot_gates_give_the_slim_network_in_every_named_space(name: str) -> None:
    space = MBConvSpace(shrunken(name))
    net = trained(space)
    generator = np.random.default_rng(0)
    drawn = [space.random_genotype(generator) for _ in range(3)]
    for genotype in (space.largest, space.smallest, *drawn):
        check_equal(space, net, genotype, seed=1)


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=6)
@given(seed=st.integers(0, 2**32))
def test_one_hot_gates_train_as_the_slim_network_does(name: str, seed: int) -> None:
    """Also statistics of a batch, and what becomes of running ones, are the slim network's."""
    space = SPACES[name]
    net = copy.deepcopy(SUPERNETS[name]).train()
    genotype = space.random_genotype(np.random.default_rng(seed))
    slim = slim_of(space, net, genotype)
    images = images_of(space, 4, seed)
    with torch.no_grad():
        logits = net(images, one_hot(space, genotype), observe=False).logits
        torch.testing.assert_close(logits, slim(images), atol=1e-4, rtol=1e-4)
    trained_state = net.slim_state(genotype)
    for key, value in slim.state_dict().items():
        torch.testing.assert_close(trained_state[key], value, atol=1e-5, rtol=1e-5, msg=key)


def test_layers_of_blocks_that_are_run_have_their_names_in_the_supernet() -> None:
    net = SUPERNETS["full"]
    assert net.tap_names[:4] == ("stem", "block1.expand", "block1.depthwise", "block1.project")
    assert len(net.tap_names) == 1 + 3 * 6
    genotype = FULL_SPACE.genotype(
        ["k3-e1-w16", "skip-w12", "k5-e6-w8", "skip-w8", "k3-e3-se-w20", "k3-e1-w20"]
    )
    left_out = {name for name in net.tap_names if name.startswith(("block2", "block4"))}
    slim = FULL_SPACE.network(genotype)
    assert slim.tap_names == tuple(name for name in net.tap_names if name not in left_out)


def test_every_weight_is_of_some_network() -> None:
    net = SUPERNETS["full"]
    state = net.state_dict()
    wide = net.slim_state(FULL_SPACE.largest)
    narrow = net.slim_state(
        FULL_SPACE.genotype(["k5-e1-se-w16"] * 2 + ["k5-e1-se-w20"] * 4)
    )  # each the largest of expansion 1
    found = {name.replace("blocks.", "").replace("wide.", ""): each for name, each in state.items()}
    for name, value in wide.items():
        assert torch.equal(found[name.replace("blocks.", "")], value)
    for name, value in narrow.items():
        index, _, rest = name.removeprefix("blocks.").partition(".")
        own = name if "blocks" not in name else f"blocks.{index}.narrow.{rest}"
        assert torch.equal(state[own], value)
    shared = sum("blocks" not in name for name in state)
    assert len(state) == len(wide) + len(narrow) - shared


def test_smaller_kernels_and_widths_are_cut_from_the_middle_and_the_front() -> None:
    net = SUPERNETS["full"]
    genotype = FULL_SPACE.genotype(["k3-e3-se-w12", *FULL_SPACE.largest.blocks[1:]])
    slim = net.slim_state(genotype)
    full = net.state_dict()
    kernel = full["blocks.0.wide.depthwise.0.weight"]
    assert torch.equal(slim["blocks.0.depthwise.0.weight"], kernel[:40, :, 1:4, 1:4])
    excite = full["blocks.0.wide.squeeze_excite.expand.weight"]
    assert torch.equal(slim["blocks.0.squeeze_excite.expand.weight"], excite[:40, :16])
    project = full["blocks.0.wide.project.0.weight"]
    assert torch.equal(slim["blocks.0.project.0.weight"], project[:12, :40])
    slim["blocks.0.project.0.weight"].zero_()
    assert full["blocks.0.wide.project.0.weight"].any()  # cut out, not shared


def test_a_supernet_survives_its_round_trip() -> None:
    net = SUPERNETS["full"]
    state = net.state_dict()
    weights = (
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
        "mean",
        "std",
    )
    assert all(name.rpartition(".")[2] in weights for name in state)  # no masks
    again = FULL_SPACE.supernet().eval()
    again.load_state_dict(copy.deepcopy(state))
    gates = soft(FULL_SPACE, 3)
    with torch.no_grad():
        for one, other in zip(
            net(images_of(FULL_SPACE), gates), again(images_of(FULL_SPACE), gates), strict=True
        ):
            torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_nothing_is_observed_unless_asked_for() -> None:
    net, gates, images = SUPERNETS["full"], soft(FULL_SPACE, 1), images_of(FULL_SPACE)
    with torch.no_grad():
        blind, seeing = net(images, gates, observe=False), net(images, gates)
    assert blind.energies == ()
    torch.testing.assert_close(blind.logits, seeing.logits)
    assert len(seeing.energies) == len(net.tap_names)
    assert all(each.shape[0] == 3 and each.ndim == 3 for each in seeing.energies)
    assert net.normalize is net.stem.normalize


# What is between networks


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_masks_are_probabilities_over_pairs_of_options(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    widths_in, widths, kernels, expansions, se = (
        (20, 12),
        (16, 12, 8),
        (5, 3),
        (6, 3),
        (True, False),
    )
    hidden = {(20, 6): 120, (20, 3): 64, (12, 6): 72, (12, 3): 40}
    options = PathOptions(widths_in, widths, kernels=kernels, expansions=expansions, se=se)
    before = torch.softmax(torch.randn(2, generator=generator), 0)
    gates = 0.7 * torch.softmax(torch.randn(24, generator=generator), 0).view(2, 2, 2, 3)
    masks = options(before, gates)
    assert masks.taps is not None
    assert masks.excited is not None
    # By counting, with all as plain sums over what can be drawn.
    share = torch.zeros(120)
    excited, inner = torch.zeros(120), torch.zeros(120)
    projection, out = torch.zeros(16, 120), torch.zeros(16)
    for i, width_in in enumerate(widths_in):
        for (k, e, s, w), gate in np.ndenumerate(gates.numpy()):
            likely = before[i] * gate
            opened = hidden[width_in, expansions[e]]
            share[:opened] += likely
            excited[:opened] += likely * se[s]
            inner[:opened] += likely * (kernels[k] == 5)
            projection[: widths[w], :opened] += likely
            out[: widths[w]] += likely
    close = torch.testing.assert_close
    close(masks.share, torch.tensor(0.7))
    close(masks.hidden_share, share)
    close(masks.hidden, share / 0.7)
    close(masks.excited, excited / share)
    close(masks.hidden_excited, excited / excited[0])
    close(masks.taps[:, 0, 0, 3], inner / share)
    close(masks.taps[:, 0, 1:4, 1:4], torch.ones(120, 3, 3))
    close(masks.projection, projection / out[:, None])
    close(masks.out, out / 0.7)
    assert masks.squeezed.shape == (32,)
    assert masks.squeezed[:8].allclose(torch.ones(8))
    assert (masks.squeezed.diff() <= 1e-6).all()


@pytest.mark.parametrize("changes", [{"se": (False,)}, {"expansions": (3,)}, {"expansions": (1,)}])
def test_where_all_is_linear_the_mix_is_the_mean_of_slim_blocks(
    changes: dict[str, Any],
) -> None:
    """Joint gates over expansion, width and skip; over squeeze-and-excitation at one width."""
    widths = (16, 12) if "se" in changes else (16,)
    spec = replace(
        FULL,
        kernels=(3,),
        expansions=(1, 3),
        stem=16,
        stages=(MBConvStage(blocks=2, widths=widths),),
    )
    space = MBConvSpace(replace(spec, **changes))
    net = trained(space)
    block: MBConvSuperblock = net.blocks[1]  # type: ignore[assignment]
    features = torch.rand(2, 16, 7, 5)
    gates = soft(space, 5)[1]
    before = torch.tensor([1.0, 0.0][: len(widths)])
    expected = torch.zeros_like(features)
    with torch.no_grad():
        for name, gate in zip(space.options[1], gates, strict=True):
            genotype = space.genotype([space.options[0][0], name])
            own = slim_of(space, net, genotype).get_submodule("blocks.1")(features)
            expected[:, : own.shape[1]] += gate * own
        output = block(features, before, gates, observe=False)
    torch.testing.assert_close(output.features, expected, atol=1e-5, rtol=1e-5)
    probabilities = [
        sum(
            float(gate) for gate, choice in zip(gates, widths_of(space), strict=True) if choice == w
        )
        for w in widths
    ]
    torch.testing.assert_close(output.widths, torch.tensor(probabilities), atol=1e-6, rtol=1e-5)


def widths_of(space: MBConvSpace) -> list[int]:
    return [choice.width for choice in space.spec.blocks[1].options.values()]


@pytest.mark.parametrize("name", SPACES)
def test_gradients_reach_every_gate_and_every_weight(name: str) -> None:
    space, net = SPACES[name], copy.deepcopy(SUPERNETS[name]).train()
    gates = [each.requires_grad_() for each in soft(space, 2)]
    loss_of(net, images_of(space, 4), gates).backward()  # type: ignore[no-untyped-call]
    for gate in gates:
        assert gate.grad is not None
        assert gate.grad.isfinite().all()
        assert gate.grad.abs().min() > 0
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_gates_are_those_of_finite_differences(seed: int) -> None:
    net = copy.deepcopy(SUPERNETS["full"]).double()
    images = images_of(FULL_SPACE).double()
    gates = [each.double().requires_grad_() for each in soft(FULL_SPACE, seed)]

    def logits(given: list[Tensor]) -> Tensor:
        loss: Tensor = net(images, given, observe=False).logits.square().sum()
        return loss

    logits(gates).backward()  # type: ignore[no-untyped-call]
    generator = np.random.default_rng(seed)
    for block, gate in enumerate(gates):
        index, step = int(generator.integers(len(gate))), 1e-6
        ends = []
        for sign in (1, -1):
            moved = [each.detach().clone() for each in gates]
            moved[block][index] += sign * step
            ends.append(float(logits(moved).detach()))
        assert gate.grad is not None
        assert float(gate.grad[index]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_gates_that_are_closed_have_gradients_of_ordinary_size(
    seed: int, *, training: bool
) -> None:
    """What is conditional is divided by gates of 0: nothing of that may be left in the end."""
    net = copy.deepcopy(SUPERNETS["full"]).train(training)
    genotype = FULL_SPACE.random_genotype(np.random.default_rng(seed))
    hard = [each.requires_grad_() for each in one_hot(FULL_SPACE, genotype)]
    loss_of(net, images_of(FULL_SPACE, 4), hard).backward()  # type: ignore[no-untyped-call]
    for gate in hard:
        assert gate.grad is not None
        assert gate.grad.isfinite().all()
        assert (gate.grad != 0).sum() > len(gate) / 2
        assert gate.grad.abs().max() < 1e-6 / FLOOR
    for parameter in net.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_a_skip_that_is_better_gains() -> None:
    """The gradient of a gate is what its option would change."""
    space, net = SPACES["one width"], SUPERNETS["one width"]
    images = images_of(space)
    skipped = space.genotype(["k5-e6-se", "skip", "k5-e6-se"])
    with torch.no_grad():
        wanted = net(images, one_hot(space, skipped), observe=False).logits
    gates = [each.requires_grad_() for each in one_hot(space, space.largest)]
    (net(images, gates, observe=False).logits - wanted).square().sum().backward()
    assert gates[1].grad is not None
    assert gates[1].grad[-1] < gates[1].grad[0]


def test_layers_of_a_skipped_block_are_seen_but_learn_nothing() -> None:
    space, net = SPACES["one width"], copy.deepcopy(SUPERNETS["one width"]).train()
    genotype = space.genotype(["k5-e6-se", "skip", "k5-e6-se"])
    energies = net(images_of(space), one_hot(space, genotype)).energies
    of_block = [name.startswith("block2") for name in net.tap_names]
    seen = [each for each, own in zip(energies, of_block, strict=True) if own]
    assert all(bool((each.mean() > 1e-3).item()) for each in seen)
    net.zero_grad()
    torch.stack([each.mean() for each in seen]).sum().backward()  # type: ignore[no-untyped-call]
    for parameter in net.blocks[1].parameters():
        assert parameter.grad is None or parameter.grad.abs().max() < 1e-5


# Statistics


def test_channels_that_a_network_lacks_keep_their_statistics() -> None:
    net = copy.deepcopy(SUPERNETS["full"]).train()
    before = copy.deepcopy(net.state_dict())
    genotype = FULL_SPACE.genotype(
        ["k3-e3-w12", "skip-w16", "k3-e1-w8", *("skip-w8",), *(["k3-e3-w12"] * 2)]
    )
    with torch.no_grad():
        net(images_of(FULL_SPACE, 4), one_hot(FULL_SPACE, genotype))
    after = net.state_dict()

    def moved(name: str) -> list[bool]:
        return [bool(each) for each in (after[name] - before[name]).abs() > 1e-6]

    for kind in ("mean", "var"):
        statistic = f"1.running_{kind}"
        assert moved(f"blocks.0.wide.depthwise.{statistic}") == [True] * 40 + [False] * 32
        assert moved(f"blocks.0.wide.project.{statistic}") == [True] * 12 + [False] * 4
        # Neither a path that is not taken nor a block that is skipped.
        for path in ("0.narrow", "1.wide", "1.narrow", "2.wide", "3.wide", "3.narrow"):
            for part in ("depthwise", "project"):
                assert not any(moved(f"blocks.{path}.{part}.{statistic}"))
        assert moved(f"blocks.2.narrow.project.{statistic}") == [True] * 8 + [False] * 12
        # Of 16 channels padded from 12, the last are open, and constant.
        assert sum(moved(f"blocks.2.narrow.depthwise.{statistic}")) == 16


def test_soft_gates_move_statistics_by_how_open_they_are() -> None:
    net = copy.deepcopy(SUPERNETS["one width"]).train()
    space = SPACES["one width"]
    path = net.blocks[1].get_submodule("wide.project.1")
    mean = path.get_buffer("running_mean").clone()
    gates = one_hot(space, space.largest)
    moves = []
    for share in (1.0, 0.25):
        path.get_buffer("running_mean").copy_(mean)
        gates[1] = torch.zeros_like(gates[1])
        gates[1][0], gates[1][-1] = share, 1 - share
        with torch.no_grad():
            net(images_of(space, 4), gates)
        moves.append(path.get_buffer("running_mean") - mean)
    torch.testing.assert_close(moves[1], moves[0] / 4, atol=1e-6, rtol=1e-4)


def test_statistics_of_many_processes_are_weighted_alike() -> None:
    """Alone, a synchronized layer is the plain one."""
    plain = copy.deepcopy(SUPERNETS["full"]).train()
    together = synchronized(copy.deepcopy(plain))
    gates, images = soft(FULL_SPACE, 7), images_of(FULL_SPACE, 4)
    with torch.no_grad():
        one, other = plain(images, gates), together(images, gates)
    torch.testing.assert_close(one.logits, other.logits, atol=1e-4, rtol=1e-4)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(together.state_dict()[key], value, atol=1e-4, rtol=1e-4, msg=key)


# Settings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_computes_about_the_same(dtype: torch.dtype) -> None:
    net, gates, images = SUPERNETS["full"], soft(FULL_SPACE, 4), images_of(FULL_SPACE)
    with torch.no_grad():
        expected = net(images, gates)
        with torch.autocast("cpu", dtype=dtype):
            found = net(images, gates)
    torch.testing.assert_close(found.logits.float(), expected.logits, atol=0.1, rtol=0.1)
    assert all(each.dtype == torch.float32 for each in found.energies)


def test_no_option_is_rounded_away_by_the_floor() -> None:
    assert 1.0 + FLOOR > 1.0  # it is there
    assert torch.tensor(1.0) + FLOOR == 1.0  # and no gate of 1 in float32 knows


@pytest.mark.slow
def test_it_is_one_graph() -> None:
    """No control flow depends on data: torch.compile finds nothing to break the graph at."""
    net, gates = SUPERNETS["one width"], soft(SPACES["one width"], 4)
    images = images_of(SPACES["one width"])
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images, gates).logits, net(images, gates).logits)
