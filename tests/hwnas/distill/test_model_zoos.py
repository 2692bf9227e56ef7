"""Against fakes: the three packages bring other builds of torch and are not installed here."""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hwnas.core.errors import ConfigError, InputFileError, MissingDependencyError
from hwnas.distill.model_zoos import ZOOS, NormalizedNetwork, network_from_zoo

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Net(nn.Module):
    def __init__(self, classes: int, *, pretrained: bool = False) -> None:
        super().__init__()
        self.classes, self.pretrained = classes, pretrained
        self.only_tensors = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    for key, value in attributes.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    models = ModuleType("torchvision.models")
    transforms = SimpleNamespace(mean=list(MEAN), std=list(STD))

    def get_model(name: str, *, weights: str | None, num_classes: int = 1000) -> nn.Module:
        return Net(num_classes, pretrained=weights == "DEFAULT")

    def get_model_weights(name: str) -> Any:
        return SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: transforms))

    def list_models(*, module: ModuleType) -> list[str]:
        assert module is models  # the classifiers alone
        return ["resnet18", "vgg11"]

    models.__dict__.update(
        get_model=get_model, get_model_weights=get_model_weights, list_models=list_models
    )
    fake(monkeypatch, "torchvision", models=models)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, *, pretrained: bool, num_classes: int = 1000) -> nn.Module:
        return Net(num_classes, pretrained=pretrained)

    fake(
        monkeypatch,
        "timm",
        create_model=create_model,
        is_model=lambda name: name.partition(".")[0] == "resnet18",
        list_models=lambda: ["resnet18"],
        data=SimpleNamespace(
            resolve_model_data_config=lambda _: {"mean": MEAN, "std": STD, "crop_pct": 0.9}
        ),
    )


@pytest.fixture
def robustbench(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    class BenchmarkDataset(Enum):
        cifar_10 = "cifar10"
        imagenet = "imagenet"

    class ThreatModel(Enum):
        Linf = "Linf"
        L2 = "L2"

    calls: list[dict[str, Any]] = []

    def load_model(name: str, **arguments: Any) -> nn.Module:
        calls.append({"name": name, **arguments})
        return Net(10, pretrained=True)

    entries = {"Wong2020Fast": {"model": lambda: Net(10)}, "FromTimm": {}}
    dicts = {BenchmarkDataset.cifar_10: {ThreatModel.Linf: entries}}
    fake(monkeypatch, "robustbench", load_model=load_model)
    fake(monkeypatch, "robustbench.model_zoo", model_dicts=dicts)
    fake(
        monkeypatch,
        "robustbench.model_zoo.enums",
        BenchmarkDataset=BenchmarkDataset,
        ThreatModel=ThreatModel,
    )
    return calls


@pytest.mark.parametrize("zoo", ["torchvision", "timm"])
@pytest.mark.parametrize("pretrained", [False, True])
def test_normalization_is_put_inside(
    request: pytest.FixtureRequest, zoo: str, pretrained: bool
) -> None:
    request.getfixturevalue(zoo)
    network = network_from_zoo(zoo, "resnet18", classes=7, pretrained=pretrained)
    assert isinstance(network, NormalizedNetwork)
    assert isinstance(network.network, Net)
    assert network.network.pretrained == pretrained
    # Published weights keep their classes; what is trained elsewhere has those of the data.
    assert network.network.classes == (1000 if pretrained else 7)
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    torch.testing.assert_close(network(pixels), (pixels - mean) / std)


@pytest.mark.usefixtures("timm")
def test_timm_names_may_have_tags_and_hubs() -> None:
    for name in ("resnet18.a1_in1k", "hf-hub:somebody/resnet18_cifar10"):
        network_from_zoo("timm", name, classes=7, pretrained=True)


def test_robustbench_brings_its_own_normalization(robustbench: list[dict[str, Any]]) -> None:
    for name in ("Wong2020Fast", "cifar10/Linf/Wong2020Fast"):
        network = network_from_zoo("robustbench", name, classes=10, pretrained=True)
        assert isinstance(network, Net)
    assert robustbench[0] == robustbench[1]
    assert (robustbench[0]["dataset"], robustbench[0]["threat_model"]) == ("cifar10", "Linf")
    # Not into the current folder, as RobustBench does by default.
    assert Path(robustbench[0]["model_dir"]).is_absolute()
    network_from_zoo("robustbench", "Wong2020Fast", classes=10, pretrained=False)
    assert len(robustbench) == 2  # built without a download


@pytest.mark.parametrize(
    ("zoo", "name", "says", "hint"),
    [
        ("torchvision", "resnet19", "torchvision has no network", "mean `torchvision:resnet18`?"),
        ("timm", "resnet", "timm has no network", "did you mean `timm:resnet18`?"),
        ("robustbench", "Wong2020Fas", "robustbench has no network", "`robustbench:Wong2020Fast`?"),
        ("robustbench", "imagenet/Linf/X", "no networks for `imagenet/Linf`", "cifar10/Linf/Wong"),
        ("robustbench", "mnist/Linf/X", "no networks for `mnist/Linf`", "cifar10/Linf/Wong"),
        ("robustbench", "cifar10/X", "is not of the form", "cifar10/Linf/Wong"),
        ("robustbench", "FromTimm", "does not tell how to build", ""),
    ],
)
def test_a_network_that_a_zoo_has_not_is_refused(
    request: pytest.FixtureRequest, zoo: str, name: str, says: str, hint: str
) -> None:
    request.getfixturevalue(zoo)
    with pytest.raises(ConfigError) as caught:
        network_from_zoo(zoo, name, classes=10, pretrained=False)
    assert says in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("zoo", ZOOS)
def test_a_zoo_that_is_not_installed_names_its_extra(
    zoo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, zoo, None)
    monkeypatch.delitem(sys.modules, zoo)

    class Without:
        def find_spec(self, name: str, *_: object) -> None:
            if name == zoo:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Without(), *sys.meta_path])
    with pytest.raises(MissingDependencyError, match=f"{zoo} is not installed") as caught:
        network_from_zoo(zoo, "resnet18", classes=10, pretrained=True)
    assert caught.value.hint == f'pip install "hwnas[{zoo}]"'
    pyproject = Path(__file__).parents[3] / "pyproject.toml"
    assert f'\n{zoo} = ["{zoo}>=' in pyproject.read_text()


@pytest.mark.parametrize(
    "failure",
    [
        'raise RuntimeError("operator torchvision::nms does not exist")',  # another torch's build
        "import a_package_that_it_needs",
    ],
)
def test_a_zoo_that_cannot_be_loaded_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    (tmp_path / "torchvision.py").write_text(failure)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(MissingDependencyError, match="installed, but cannot be loaded") as caught:
        network_from_zoo("torchvision", "resnet18", classes=10, pretrained=True)
    assert f"torch {torch.__version__}" in caught.value.hint


def test_published_weights_are_plain_tensors_and_may_be_out_of_reach(
    timm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = network_from_zoo("timm", "resnet18", classes=7, pretrained=True)
    assert network.network.only_tensors == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ

    def unreachable(name: str, **_: Any) -> nn.Module:
        raise OSError("Name or service not known\nand more")

    monkeypatch.setattr(sys.modules["timm"], "create_model", unreachable)
    with pytest.raises(InputFileError, match="timm:resnet18 cannot be had: OSError") as caught:
        network_from_zoo("timm", "resnet18", classes=7, pretrained=True)
    assert "safetensors" in caught.value.hint
    assert "and more" not in caught.value.message


def test_robustbench_finds_autoattack_by_its_old_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "robustbench"
    (package / "model_zoo").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from autoattack import AutoAttack\nfrom autoattack.state import EvaluationState\n"
    )
    (package / "model_zoo" / "__init__.py").write_text("model_dicts = {}")
    (package / "model_zoo" / "enums.py").write_text("BenchmarkDataset = ThreatModel = str")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="RobustBench has no networks"):
        network_from_zoo("robustbench", "X", classes=10, pretrained=False)
    assert "autoattack" not in sys.modules
    for name in [each for each in sys.modules if each.partition(".")[0] == "robustbench"]:
        monkeypatch.delitem(sys.modules, name)
