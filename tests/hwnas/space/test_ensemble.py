from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
import torch

from hwnas.core.errors import ConfigError
from hwnas.robustness.evaluate import logits_from_module, logits_from_runner
from hwnas.robustness.pgd import pgd
from hwnas.robustness.threat import Eps
from hwnas.space.blocks import Normalize
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.ensemble import COMBINATIONS, Combination, Ensemble, feature_shape
from hwnas.space.handcrafted.registry import network
from hwnas.space.mbconv.space import MBConvSpace
from hwnas.space.mbconv.spec import MBConvSpec, MBConvStage
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.space.channel.network import ChannelNetwork
    from hwnas.space.channel.spec import ChannelSpec
    from hwnas.space.supernet import SlimNetwork

SHAPE = (1, 16, 16)


@pytest.fixture
def small_space(small_spec: ChannelSpec) -> ChannelSpace:
    return ChannelSpace(small_spec)


def members(space: ChannelSpace, *choices: tuple[int, ...]) -> list[SlimNetwork]:
    torch.manual_seed(1)
    return [space.network(space.genotype_of_choices(each)).eval() for each in choices]


def ensemble(networks: list[SlimNetwork], combination: str) -> Ensemble:
    made = Ensemble(networks, cast("Combination", combination), image_shape=SHAPE, classes=10)
    return made.eval()


def test_identical_members_that_average_logits_are_the_member(small_space: ChannelSpace) -> None:
    (member,) = members(small_space, (0, 1, 0))
    together = ensemble([member, copy.deepcopy(member), copy.deepcopy(member)], "logits")
    images = torch.rand(5, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(together(images), member(images), rtol=1e-5, atol=1e-6)


def test_identical_members_that_average_features_are_the_member(small_space: ChannelSpace) -> None:
    (member,) = members(small_space, (0, 1, 0))
    together = ensemble([copy.deepcopy(member) for _ in range(3)], "average")
    together.head.load_state_dict(cast("torch.nn.Module", member.head).state_dict())
    images = torch.rand(5, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(together(images), member(images), rtol=1e-5, atol=1e-6)


def test_concat_holds_every_members_features(small_space: ChannelSpace) -> None:
    made = members(small_space, (0, 1, 0), (1, 1, 2))
    images = torch.rand(2, *SHAPE)
    with torch.no_grad():
        maps = [member.features(images) for member in made]
        together = ensemble(made, "concat")
        merge = cast("torch.nn.Conv2d", together.merge)
        assert (merge.in_channels, merge.out_channels) == (16 + 8, 16)
        expected = together.head(merge(torch.cat(maps, dim=1)))
        torch.testing.assert_close(together(images), expected)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_every_parameter_counts(small_space: ChannelSpace, combination: str) -> None:
    together = ensemble(members(small_space, (0, 0, 1), (1, 2, 1)), combination)
    torch.autograd.backward(together(torch.rand(2, *SHAPE)).square().sum())
    unused = [name for name, each in together.named_parameters() if each.grad is None]
    assert not unused


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_members_share_one_normalization(small_space: ChannelSpace, combination: str) -> None:
    together = ensemble(members(small_space, (0, 0, 1), (1, 2, 1)), combination)
    together.normalize.set_statistics([0.25], [0.5])
    found = [part for part in together.modules() if isinstance(part, Normalize)]
    assert found == [together.normalize]
    for member in together.members:
        normalize = cast("SlimNetwork", member).normalize
        assert (normalize.mean.item(), normalize.std.item()) == (0.25, 0.5)


def test_members_of_different_data_are_refused(small_space: ChannelSpace) -> None:
    made = members(small_space, (0, 0, 1), (1, 2, 1))
    made[1].normalize.set_statistics([0.3], [0.2])
    with pytest.raises(ConfigError, match="normalize pixels differently"):
        ensemble(made, "logits")


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_onnx_is_one_graph_with_the_same_logits(
    small_space: ChannelSpace, combination: str
) -> None:
    together = ensemble(members(small_space, (0, 0, 1), (1, 2, 1), (0, 1, 1)), combination)
    images = np.random.default_rng(0).random((4, *SHAPE), dtype=np.float32)
    exported = onnx_from_module(together, (1, *SHAPE), dynamic_batch=True).SerializeToString()
    with OnnxRuntimeRunner(exported) as runner:
        found = logits_from_runner(runner, images, batch=4)
    np.testing.assert_allclose(found, logits_from_module(together, images, batch=4), atol=1e-5)


def test_hand_crafted_networks_of_other_families_average_logits() -> None:
    made = [network(name, SHAPE, width=0.125) for name in ("resnet20", "vgg16", "mobilenetv2")]
    assert ensemble(list(made), "logits")(torch.rand(2, *SHAPE)).shape == (2, 10)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_attacked_as_one_it_is_weaker_than_through_one_member(
    small_space: ChannelSpace, combination: str
) -> None:
    """The gradient goes through all members: an attack that sees one of them raises less."""
    together = ensemble(members(small_space, (0, 0, 1), (0, 0, 1), (0, 0, 1)), combination)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(64, *SHAPE, generator=generator)
    together.train()  # statistics of batch normalization that let these images through
    for _ in range(30):
        together(images)
    together.eval()
    with torch.no_grad():
        labels = together(images).argmax(1)  # all are right from the start

    def found(attacked: torch.nn.Module) -> tuple[float, float]:
        """Return loss and accuracy on what an attack finds."""
        points = pgd(
            attacked, images, labels, eps=Eps(0.1), steps=10, generator=generator,
            stop_when_broken=False,
        )  # fmt: skip
        with torch.no_grad():
            logits = together(points)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return float(loss), float((logits.argmax(1) == labels).float().mean())

    whole, one = found(together), found(_ThroughOne(together))
    assert whole[0] > one[0]
    assert whole[1] < one[1] <= 1.0


class _ThroughOne(torch.nn.Module):
    """An ensemble of which all members but the first one see the images without a gradient."""

    def __init__(self, whole: Ensemble) -> None:
        super().__init__()
        self.whole = copy.deepcopy(whole)
        for member in list(self.whole.members)[1:]:
            stem = cast("ChannelNetwork", member).stem
            stem.register_forward_hook(lambda _, __, output: output.detach())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.whole(images)
        return logits


def test_features_of_every_kind_of_space_make_the_logits(tmp_path: Path) -> None:
    user = tmp_path / "net.py"
    user.write_text(
        "from torch import nn\n"
        "from hwnas.space.user.parts import Searched, Follows\n"
        "def conv(i, o): return nn.Conv2d(i, o, 3, padding=1)\n"
        "def network(classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), Searched({'a': conv}, widths=(8, 6)),\n"
        "        nn.ReLU(), Follows(lambda w: nn.Conv2d(w, 5, 1)), nn.AdaptiveAvgPool2d(1),\n"
        "        nn.Flatten(), nn.Linear(5, classes))\n"
    )
    spaces = [
        space_from_spec(space_spec("rnas-cl-xs")),
        space_from_spec(space_spec("rnas-cl-imagenet", image_shape=SHAPE, classes=10)),
        MBConvSpace(
            MBConvSpec(
                name="tiny", image_shape=SHAPE, classes=10, stem=8, stem_stride=2,
                stages=(MBConvStage(blocks=2, widths=(12, 8)),), kernels=(3,), expansions=(1, 3),
            )
        ),
        space_from_spec(space_spec(f"user:{user}:network", image_shape=SHAPE, classes=10)),
    ]  # fmt: skip
    for space in spaces:
        slim = space.network(space.smallest).eval()
        images = torch.rand(2, *SHAPE)
        taps: list[torch.Tensor] = []
        with torch.no_grad():
            before, logits = slim.features(images), slim(images, taps)
            assert len(taps) == len(slim.tap_names), space.spec.name
            assert feature_shape(slim, SHAPE) == before.shape[1:]
            names = {name for name, _ in slim.named_parameters()}
            slim.drop_head()
            assert torch.equal(slim.features(images), before)
        assert logits.shape == (2, 10)
        dropped = names - {name for name, _ in slim.named_parameters()}
        assert dropped, space.spec.name  # the classifier at least
        torch.autograd.backward(slim.features(images).sum())
        assert all(each.grad is not None for each in slim.parameters()), space.spec.name


@pytest.mark.parametrize(
    ("choices", "combination", "message", "hint"),
    [
        ([(0, 0, 0)], "average", "at least two members, not 1", ""),
        ([(0, 0, 0)] * 2, "averge", "cannot be combined by `averge`", "did you mean `average`?"),
        ([(0, 0, 0)] * 2, "vote", "cannot be combined by `vote`", "known: average, concat, logits"),
        ([(0, 0, 0), (0, 0, 2)], "average", r"16x4x4|16x2x2, 8x2x2", "use `concat` or `logits`"),
    ],
)
def test_bad_input_is_named(
    small_space: ChannelSpace,
    choices: list[tuple[int, ...]],
    combination: str,
    message: str,
    hint: str,
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ensemble(members(small_space, *choices), combination)
    assert hint in caught.value.hint


def test_maps_of_unequal_sides_are_refused_by_concat() -> None:
    made: list[SlimNetwork] = [network(name, SHAPE, width=0.125) for name in ("resnet20", "vgg16")]
    with pytest.raises(ConfigError, match="equal in height and width") as caught:
        ensemble(made, "concat")
    assert caught.value.hint.startswith("use `logits`")
