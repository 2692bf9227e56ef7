"""A user's space: operators, records without code, and code that has changed since."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from hwnas.core.errors import ConfigError
from hwnas.data.sources import DataConfig, load_data
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec, spec_from_plain
from hwnas.space.user.space import UserSpace
from hwnas_profilers.workload import Chain, OperatorKey, chain_of

if TYPE_CHECKING:
    from collections.abc import Callable


EXAMPLE = Path(__file__).parents[4] / "examples" / "user_space.py"
NETWORK = """
import torch
from torch import nn
from hwnas.space.user.parts import Follows, Searched

class Head(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.classifier = nn.Linear(width, classes)

    def forward(self, features):
        return self.classifier(features.mean((2, 3)))

def conv(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())

def network(image_shape=(1, 8, 8), classes=3):
    return nn.Sequential(
        nn.Conv2d(image_shape[0], 4, 1),
        Searched({"conv": conv}, widths=(8, 6)),
        Searched({"bias": lambda i, o: nn.Conv2d(i, o, 1), "skip": None}),
        Searched({"conv": conv}, widths=(5,)),
        Searched({"pool": lambda i, o: nn.AvgPool2d(3, 1, 1), "skip": None}),
        Follows(lambda width: Head(width, classes)),
    )
"""


@pytest.fixture
def name(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NETWORK, encoding="utf-8")
    return f"user:{tmp_path}/net.py:network"


@functools.cache
def example() -> UserSpace:
    space = space_from_spec(space_spec(f"user:{EXAMPLE}:network"), batch=2)
    assert isinstance(space, UserSpace)
    return space


def space_of(name: str) -> UserSpace:
    space = space_from_spec(space_spec(name))
    assert isinstance(space, UserSpace)
    return space


def test_options_and_operators_are_those_declared(name: str) -> None:
    space = space_of(name)
    assert space.options == (
        ("conv-8+bias", "conv-8+skip", "conv-6+bias", "conv-6+skip"),
        ("conv",),
        ("pool", "skip"),
    )
    links = space.transitions
    assert [(len(link), len(link[0])) for link in links] == [(1, 1), (1, 4), (4, 1), (1, 2), (2, 1)]
    assert [str(operator.key) for operator in space.operators()] == [
        "user-begin 1x8x8->4x8x8 k0 s1 h0 b1 fp32",
        "user-part2.conv-8+bias 4x8x8->8x4x4 k0 s2 h0 b1 fp32",
        "user-part2.conv-8+skip 4x8x8->8x4x4 k0 s2 h0 b1 fp32",
        "user-part2.conv-6+bias 4x8x8->6x4x4 k0 s2 h0 b1 fp32",
        "user-part2.conv-6+skip 4x8x8->6x4x4 k0 s2 h0 b1 fp32",
        "user-part4.conv 8x4x4->5x2x2 k0 s2 h0 b1 fp32",
        "user-part4.conv 6x4x4->5x2x2 k0 s2 h0 b1 fp32",
        "user-part5.pool 5x2x2->5x2x2 k0 s1 h0 b1 fp32",
        "user-end 5x2x2->3x1x1 k0 s1 h0 b1 fp32",
    ]
    assert links[3][0] == ((space.operators()[7].key,), ())
    assert space.largest.blocks == ("conv-8+bias", "conv", "pool")
    assert space.smallest.widths == (6, 5, 5)


def test_a_genotype_is_checked(name: str) -> None:
    space = space_of(name)
    genotype = space.genotype(["conv-6+skip", "conv", "skip"])
    assert space.choices(genotype) == (3, 0, 1)
    assert genotype.label == "conv-6+skip conv skip"
    with pytest.raises(ConfigError, match=r"part2 of .* cannot be `conv-7`") as caught:
        space.genotype(["conv-7", "conv", "skip"])
    assert "did you mean `conv-" in caught.value.hint
    with pytest.raises(ConfigError, match="contradicts itself"):
        space.choices(replace(genotype, widths=(8, 5, 5)))


@pytest.mark.parametrize("seed", range(4))
def test_a_networks_operators_are_the_network(
    seed: int, counted_macs: Callable[[nn.Module, torch.Tensor], int]
) -> None:
    space = example()
    genotype = space.random_genotype(np.random.default_rng(seed))
    workload = space.workload(genotype)
    assert isinstance(workload, Chain)
    network, operators = workload.build(), workload.parts
    images = torch.rand(workload.input_shape)
    # Of one state, the chain of operators computes what the network does.
    chain = chain_of(operators).build()
    chain.load_state_dict(dict(zip(chain.state_dict(), network.state_dict().values(), strict=True)))
    with torch.no_grad():
        torch.testing.assert_close(chain(images), network(images))
    assert space.parameters(genotype) == sum(each.numel() for each in network.parameters())
    attends = sum("attention" in key.variant for key in space.operators_of(genotype))
    # Two products of 16 pixels with 16 others, per channel, are no layer of their own.
    products = attends * 2 * 16 * 16 * genotype.widths[1]
    assert space.macs(genotype) == counted_macs(network, images[:1]) + products


def test_weights_are_counted_with_normalization_folded(name: str) -> None:
    space = space_of(name)
    keys = {operator.key.variant: operator.key for operator in space.operators()}
    key = keys["part2.conv-8+skip"]
    assert space.parameters_of(key) == 4 * 8 * 9 + 16
    assert space.weights_of(key) == 4 * 8 * 9 + 8
    assert space.macs_of(key) == 4 * 8 * 9 * 4 * 4
    other = OperatorKey(kind="user", in_shape=(1, 1, 1), out_shape=(1, 1, 1))
    for method in (space.macs_of, space.weights_of, space.parameters_of, space.operator_of):
        with pytest.raises(ConfigError, match="is no operator of"):
            method(other)


def test_a_description_is_plain_data_and_reading_it_runs_no_code(name: str, tmp_path: Path) -> None:
    spec = space_spec(name)
    plain = msgspec.json.decode(msgspec.json.encode(spec))
    (tmp_path / "net.py").write_text("raise SystemExit('it was run')", encoding="utf-8")
    again = spec_from_plain(plain, source="table")
    assert again == spec
    assert again.fingerprint == spec.fingerprint
    space = space_from_spec(again)
    assert len(space.operators()) == 9
    assert space.parameters(space.largest) > space.parameters(space.smallest)


def test_a_description_depends_on_its_name_but_not_on_where_the_file_lies(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "net.py").write_text(NETWORK, encoding="utf-8")
    found = []
    for folder in (tmp_path, elsewhere):
        monkeypatch.chdir(folder)
        found.append(space_spec("user:net.py:network"))
    assert found[0] == found[1]
    assert str(tmp_path) not in msgspec.json.encode(found[0]).decode()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"conv": conv}, widths=(8, 6)', '"conv": conv}, widths=(8, 4)', "part2 has conv-8+bias"),
        ("nn.Conv2d(i, o, 1)", "nn.Conv2d(i, o, 1, bias=False)", "conv-6+bias of part2 changed"),
        ("nn.AvgPool2d(3, 1, 1)", "nn.MaxPool2d(3, 1, 1)", "pool of part5 changed"),
        ("image_shape[0], 4, 1)", "image_shape[0], 4, 1, bias=False)", "the begin (part1)"),
        ("nn.Linear(width, classes)", "nn.Linear(width, classes, False)", "the end (part6)"),
        (
            '        Searched({"conv": conv}, widths=(5,)),\n',
            "",
            "1 searched blocks instead of 3",
        ),
        ("nn.ReLU())", "nn.ReLU(), nn.MaxPool2d(3, 1, 1))", "part2 changed"),
    ],
)  # fmt: skip
def test_code_that_has_changed_is_refused_when_it_is_to_be_run(
    name: str, tmp_path: Path, old: str, new: str, told: str
) -> None:
    spec = space_spec(name)
    assert NETWORK.count(old) == 1
    (tmp_path / "net.py").write_text(NETWORK.replace(old, new), encoding="utf-8")
    assert space_spec(name).fingerprint != spec.fingerprint
    space = space_from_spec(spec)
    assert isinstance(space, UserSpace)
    builds: list[Callable[[], object]] = [
        space.supernet,
        lambda: space.network(space.largest),
        space.operators()[1].build,
    ]
    for build in builds:
        with pytest.raises(ConfigError, match="has changed since it was profiled") as caught:
            build()
        assert told in caught.value.message
        assert f"hwnas profile --space {name} --image-shape 1,8,8 --classes 3" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"blocks": []}, "at least one searched block"),
        ({"end": []}, "the end does not tell"),
        ({"classes": 1}, "at least two classes"),
        ({"begins": 3}, "unknown key `begins`"),
    ],
)
def test_a_description_that_was_edited_is_refused(
    name: str, change: dict[str, Any], told: str
) -> None:
    plain = msgspec.to_builtins(space_spec(name))
    with pytest.raises(ConfigError, match=told):
        spec_from_plain(plain | change, source="table.jsonl")
    plain["blocks"][0]["options"][0]["operators"] = []
    with pytest.raises(ConfigError, match="`part2` does not tell an operator for each width"):
        spec_from_plain(plain, source="table.jsonl")


def test_networks_begin_with_other_weights_each_time() -> None:
    space = example()
    first, second = (space.network(space.largest).state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert not torch.equal(first["parts.part1.conv.weight"], second["parts.part1.conv.weight"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        third = space.network(space.largest).state_dict()
        torch.manual_seed(0)
        fourth = space.network(space.largest).state_dict()
    assert all(torch.equal(third[key], fourth[key]) for key in third)


def test_the_example_learns_digits(one_thread: None) -> None:
    """A few steps on real images: the loss falls, through the supernet and a slim network."""
    space = example()
    digits = load_data(DataConfig()).train
    images, labels = digits.pixels()[:96], digits.labels[:96]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        supernet, slim = space.supernet(), space.network(space.smallest)
    even = [torch.full((len(each),), 1 / len(each)) for each in space.options]
    runs: list[tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]] = [
        (supernet, lambda pixels: supernet(pixels, even, observe=False).logits),
        (slim, slim),
    ]
    for network, logits in runs:
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        losses = []
        for _ in range(15):
            loss = nn.functional.cross_entropy(logits(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]
