from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.core.errors import ConfigError
from hwnas.distill.features import FeatureTaps
from hwnas.distill.tapping import choose_layers
from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec

pytestmark = pytest.mark.usefixtures("one_thread")


class PreActivationBlock(nn.Module):
    """The block of wide residual networks (Zagoruyko and Komodakis, 2016)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(inside), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.shortcut = (
            None if inside == outside else nn.Conv2d(inside, outside, 1, stride, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        active = self.relu1(self.bn1(features))
        made: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return made + (features if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    def __init__(self, depth: int, widen: int = 1, classes: int = 10) -> None:
        super().__init__()
        per_stage = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(
            *(
                PreActivationBlock(
                    widths[stage if index == 0 else stage + 1],
                    widths[stage + 1],
                    2 if stage > 0 and index == 0 else 1,
                )
                for stage in range(3)
                for index in range(per_stage)
            )
        )
        self.bn1, self.relu = nn.BatchNorm2d(widths[3]), nn.ReLU(inplace=True)
        self.fc = nn.Linear(widths[3], classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.blocks(self.conv1(images))))
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits


class PostActivationBlock(nn.Module):
    """The basic block of ResNet-18: one ReLU module that is called twice."""

    def __init__(self, inside: int, outside: int, stride: int, *, functions: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu: Any = functional.relu if functions else nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )
            if stride > 1
            else nn.Identity()
        )

    def forward(self, features: Tensor) -> Tensor:
        made = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(features)))))
        made += self.downsample(features)
        result: Tensor = self.relu(made)
        return result


def resnet18(*, functions: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    blocks, inside = [], 4
    for stage, outside in enumerate((4, 8, 16, 32)):
        for index in range(2):
            stride = 2 if stage and index == 0 else 1
            blocks.append(PostActivationBlock(inside, outside, stride, functions=functions))
            inside = outside
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(stem, nn.Sequential(*blocks), *head).eval()


class Tokens(nn.Module):
    """What a vision transformer does to images, without its attention."""

    def __init__(self, *, maps: bool = False) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU()) for _ in range(3)
        )
        self.show: nn.Module = nn.Unflatten(2, (4, 4)) if maps else nn.Identity()
        self.head = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).mT  # (B, C, H, W) -> (B, N, C)
        for block in self.blocks:
            tokens = tokens + block(tokens)
            self.show(tokens.mT)
        logits: Tensor = self.head(tokens.mean(1))
        return logits


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def features_of(network: nn.Module, layers: tuple[str, ...]) -> list[Tensor]:
    kept = {"reduce": lambda features: features.clone()}
    with torch.no_grad(), FeatureTaps(network, layers, **kept) as taps:
        network(IMAGES)
        return taps.take()


def test_a_wide_resnet_of_34_layers_has_31_tutors() -> None:
    network = WideResNet(34).eval()
    layers = choose_layers(network, IMAGES, what="WRN-34")
    assert len(layers) == len(set(layers)) == 31  # the stem and the 30 convolutions of the blocks
    assert layers[:3] == ("blocks.0.relu1", "blocks.0.relu2", "blocks.1.relu1")
    assert layers[-2:] == ("blocks.14.relu2", "relu")
    features = features_of(network, layers)
    assert all(float(each.min()) == 0 for each in features)  # after the activation
    assert [each.shape[2] for each in features] == [16] * 11 + [8] * 10 + [4] * 10


@pytest.mark.parametrize("functions", [False, True])
def test_a_resnet18_has_17_tutors_however_it_calls_its_activation(functions: bool) -> None:
    network = resnet18(functions=functions)
    layers = choose_layers(network, IMAGES, what="ResNet-18")
    assert len(layers) == 17  # shortcuts end in the sums of their blocks
    inner = "1.0.conv2:input" if functions else "1.0.relu#1"
    assert layers[:4] == ("0.2", inner, "1.0", layers[3])
    assert layers[-1] == "1.7"
    assert all(float(each.min()) == 0 for each in features_of(network, layers))
    for mine, theirs in zip(
        features_of(network, layers),
        features_of(
            resnet18(functions=not functions),
            choose_layers(resnet18(functions=not functions), IMAGES, what="other"),
        ),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_our_own_teacher_is_found_to_have_its_tutors() -> None:
    network = TeacherNetwork(TeacherSpec(image_shape=(3, 16, 16), classes=4, width=4)).eval()
    chosen = choose_layers(network, IMAGES, what="ours")
    assert len(chosen) == len(network.tap_names)
    for mine, theirs in zip(
        features_of(network, chosen), features_of(network, network.tap_names), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_linear_bottlenecks_end_in_their_sum_and_not_in_the_next_ones() -> None:
    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU6())
            self.project = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))

        def forward(self, features: Tensor) -> Tensor:
            made: Tensor = self.project(self.expand(features))
            return features + made

    body = nn.Sequential(nn.Conv2d(3, 4, 3), Bottleneck(), Bottleneck(), Bottleneck())
    layers = choose_layers(body.eval(), IMAGES, what="MobileNet")
    assert layers == ("0", "1.expand.2", "1", "2.expand.2", "2", "3.expand.2", "3")


def test_maps_of_one_pixel_are_no_tutors() -> None:
    squeezed = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(4, 2, 1),
    )
    assert choose_layers(squeezed.eval(), IMAGES, what="squeezed") == ("1", "2")


def test_without_convolutions_that_torch_tells_of_blocks_are_taken() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(3, 3))

        def forward(self, features: Tensor) -> Tensor:
            return torch.einsum("oc,bchw->bohw", self.weight, features)

    blocks = [nn.Sequential(Mixing(), nn.ReLU()) for _ in range(3)]
    assert choose_layers(nn.Sequential(*blocks), IMAGES, what="mixing") == ("0", "1", "2")
    flat = nn.Sequential(Mixing(), nn.ReLU(), Mixing())
    assert choose_layers(flat, IMAGES, what="mixing") == ("0", "1", "2")


def test_a_teacher_without_feature_maps_says_what_was_seen() -> None:
    with pytest.raises(ConfigError, match="ViT has no usable feature maps") as caught:
        choose_layers(Tokens().eval(), IMAGES, what="ViT")
    assert "(batch, 6, 4, 4) from `embed`" in caught.value.message
    assert "(batch, 16, 6) from `blocks.0.0` and " in caught.value.message
    assert "`[teacher] layers = [...]`" in caught.value.hint


def test_token_features_that_are_reshaped_are_tutors() -> None:
    layers = choose_layers(Tokens(maps=True).eval(), IMAGES, ["show"], what="ViT")
    assert layers == ("show#1", "show#2", "show#3")
    assert {each.shape for each in features_of(Tokens(maps=True), layers)} == {(2, 6, 4, 4)}


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (["1.7", "0"], ("0", "1.7")),  # in the order in which they run
        (["1.[01]"], ("1.0", "1.1")),
        (["1.3.relu"], ("1.3.relu#1", "1.3.relu#2")),
        (["1.3.relu#2", "1.3.conv2:input"], ("1.3.conv2:input", "1.3.relu#2")),
        # Patterns pass over what is no map: the pooled features, the logits.
        (["?"], ("0", "1")),
    ],
)
def test_wanted_layers_are_names_patterns_and_taps(
    wanted: list[str], chosen: tuple[str, ...]
) -> None:
    assert choose_layers(resnet18(), IMAGES, wanted, what="ResNet-18") == chosen


@pytest.mark.parametrize(
    ("wanted", "says", "hint"),
    [
        ("1.0.con1", "ResNet-18 runs no layer `1.0.con1`", "did you mean `1.0.conv1`?"),
        ("1.0.relu#3", "runs no layer `1.0.relu#3`", "did you mean `1.0.relu#"),
        ("nothing*", "runs no layer `nothing*`", "it has (batch, "),
        ("4", "layer `4` of ResNet-18 gives (batch, 10): no feature map", "it has (batch, "),
        ("2", "layer `2` of ResNet-18 gives (batch, 32, 1, 1): no feature map", "it has (batch, "),
    ],
)
def test_a_wanted_layer_that_is_none_is_refused(wanted: str, says: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_layers(resnet18(), IMAGES, [wanted], what="ResNet-18")
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_watching_leaves_no_hooks() -> None:
    network = resnet18()
    choose_layers(network, IMAGES, what="ResNet-18")
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in network.modules())
