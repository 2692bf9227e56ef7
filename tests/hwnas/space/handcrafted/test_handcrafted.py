import numpy as np
import pytest
import torch

from hwnas.core.errors import ConfigError
from hwnas.distill.teacher_sources import network_from_source
from hwnas.robustness.evaluate import logits_from_module, logits_from_runner
from hwnas.space.handcrafted.densenet import densenet
from hwnas.space.handcrafted.mobilenet import mobilenet_v2
from hwnas.space.handcrafted.parts import HandcraftedNetwork, scaled_width
from hwnas.space.handcrafted.registry import HANDCRAFTED, network
from hwnas.space.handcrafted.resnet import resnet
from hwnas.space.handcrafted.vgg import vgg
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner

# Published: ResNet-20 0.27 M (He et al., table 6), DenseNet 1.0 M and -BC 0.8 M (Huang et al.,
# table 2); the exact counts are those of the implementations in common use at 32 pixels.
PARAMETERS = {
    "resnet20": 272_474,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "vgg16": 14_728_266,
    "densenet40": 1_019_722,
    "densenet-bc100": 769_162,
    "densenet121": 6_956_298,
    "mobilenetv2": 2_236_682,
}
DIGITS = (1, 16, 16)


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_network_has_its_published_count() -> None:
    assert list(HANDCRAFTED) == list(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        assert parameters(network(name)) == PARAMETERS[name]


def test_mobilenetv2_for_imagenet_classes_has_the_published_count() -> None:
    with torch.device("meta"):  # 3.4 M by table 4 of the paper; the stem's stride has no weights
        assert parameters(network("mobilenetv2", (3, 224, 224), 1000)) == 3_504_872


@pytest.mark.parametrize("name", HANDCRAFTED)
@pytest.mark.parametrize("image_shape", [DIGITS, (3, 32, 32), (3, 8, 8), (3, 20, 28)])
def test_logits_taps_and_features_at_any_size(name: str, image_shape: tuple[int, int, int]) -> None:
    model = network(name, image_shape, classes=7, width=0.125).eval()
    images, taps = torch.rand(2, *image_shape), list[torch.Tensor]()
    with torch.no_grad():
        logits = model(images, taps)
        features = model.features(images)
        assert torch.equal(model.head(features), logits)
    assert logits.shape == (2, 7)
    assert len(taps) == len(model.tap_names) == len(set(model.tap_names))
    assert torch.equal(taps[-1], features)


@pytest.mark.parametrize("name", HANDCRAFTED)
def test_width_scales_the_size(name: str) -> None:
    with torch.device("meta"):
        sizes = [parameters(network(name, width=width)) for width in (0.25, 0.5, 1.0, 1.5)]
    assert sizes == sorted(set(sizes))
    assert sizes[0] < 0.3 * sizes[2]


def test_width_one_changes_nothing_that_does_not_divide() -> None:
    assert [scaled_width(channels, 1.0) for channels in (1, 7, 12, 30)] == [1, 7, 12, 30]


def test_normalization_is_inside() -> None:
    model = network("resnet20", DIGITS, width=0.25).eval()
    images = torch.rand(2, *DIGITS)
    with torch.no_grad():
        plain = model(images)
        model.normalize.set_statistics([0.5], [0.25])
        assert not torch.allclose(model(images), plain)
        shifted = model(images * 0.25 + 0.5)
    torch.testing.assert_close(shifted, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        resnet(DIGITS, 10, 0.25, stages=((16, 1), (32, 1))),
        vgg(DIGITS, 10, 0.125, stages=((64, 1), (128, 2))),
        densenet(
            DIGITS, 10, 1.0, growth=4, stages=(2, 2), stem=8, bottleneck=True, compression=0.5
        ),
        mobilenet_v2(DIGITS, 10, 0.125),
    ],
    ids=["resnet", "vgg", "densenet", "mobilenet"],
)
def test_onnx_gives_the_same_logits(model: HandcraftedNetwork) -> None:
    images = np.random.default_rng(0).random((3, *DIGITS), dtype=np.float32)
    exported = onnx_from_module(model, (1, *DIGITS), dynamic_batch=True).SerializeToString()
    with OnnxRuntimeRunner(exported) as runner:
        found = logits_from_runner(runner, images, batch=3)
    np.testing.assert_allclose(found, logits_from_module(model, images, batch=3), atol=1e-4)


def test_a_teachers_source_may_name_one() -> None:
    source = "hwnas.space.handcrafted:resnet20"
    teacher = network_from_source(source, classes=10, pretrained=False)
    assert teacher(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "width", "message", "hint"),
    [
        ("resnet-20", 1.0, "unknown hand-crafted network `resnet-20`", "did you mean `resnet20`?"),
        ("transformer", 1.0, "unknown hand-crafted network", "known: resnet20, resnet18"),
        ("vgg16", 0.0, "a positive number, not 0.0", ""),
        ("resnet18", float("nan"), "a positive number, not nan", ""),
        ("densenet40", float("inf"), "a positive number, not inf", ""),
        ("mobilenetv2", -1.0, "a positive number, not -1.0", ""),
    ],
)
def test_bad_input_is_named(name: str, width: float, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        network(name, DIGITS, width=width)
    assert hint in caught.value.hint
