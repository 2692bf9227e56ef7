"""Networks of torchvision, timm and RobustBench, by name.

None of the three is needed by hwnas itself: each is an extra. Of their published weights nothing is
unpickled but plain tensors.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hwnas.core.errors import ConfigError, InputFileError, MissingDependencyError, nearest
from hwnas.core.weights import tensors_only
from hwnas.space.blocks import Normalize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor


_ROBUSTBENCH_FORM = "write e.g. robustbench:cifar10/Linf/Wong2020Fast, with the data set and norm"


class NormalizedNetwork(nn.Module):
    """A network that wants normalized images, made to take pixels in [0, 1]."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalize = Normalize(len(mean))
        self.normalize.set_statistics(mean, std)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, channels, height, width) in [0, 1] to what the network gives."""
        made: Tensor = self.network(self.normalize(images))
        return made


def network_from_zoo(zoo: str, name: str, *, classes: int, pretrained: bool) -> nn.Module:
    """Build a network of a zoo; it takes pixels in [0, 1].

    torchvision's and timm's are normalized inside, by the mean and standard deviation that the
    zoo gives for its own weights. RobustBench's bring their normalization along.

    Args:
        zoo: One of `ZOOS`.
        name: The network, as the zoo calls it.
        classes: Classes to build it for, where no published weights are taken.
        pretrained: Take the published weights, which the zoo may download.

    Raises:
        MissingDependencyError: The zoo is not installed, or cannot be loaded.
        ConfigError: It has no such network; the nearest is named.
        InputFileError: The published weights cannot be had.
    """
    return _ZOOS[zoo](name, classes, pretrained)


def _from_torchvision(name: str, classes: int, pretrained: bool) -> nn.Module:
    models = _imported("torchvision").models
    _require_name("torchvision", name, models.list_models(module=models))
    if pretrained:
        network = _fetched("torchvision", name, lambda: models.get_model(name, weights="DEFAULT"))
    else:
        network = models.get_model(name, weights=None, num_classes=classes)
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    return NormalizedNetwork(network, transforms.mean, transforms.std)


def _from_timm(name: str, classes: int, pretrained: bool) -> nn.Module:
    timm = _imported("timm")
    # Names of a hub, `hf-hub:...`, are not in timm's own list; `.tag` says which weights.
    if ":" not in name and not timm.is_model(name):
        _require_name("timm", name, timm.list_models())
    if pretrained:
        network = _fetched("timm", name, lambda: timm.create_model(name, pretrained=True))
    else:
        network = timm.create_model(name, pretrained=False, num_classes=classes)
    data = timm.data.resolve_model_data_config(network)
    return NormalizedNetwork(network, data["mean"], data["std"])


def _from_robustbench(name: str, classes: int, pretrained: bool) -> nn.Module:
    dataset, threat, model = _robustbench_parts(name)
    with _autoattack_by_its_old_name():
        robustbench = _imported("robustbench")
        zoo = importlib.import_module("robustbench.model_zoo")
        enums = importlib.import_module("robustbench.model_zoo.enums")
    try:
        models = zoo.model_dicts[enums.BenchmarkDataset(dataset)][enums.ThreatModel(threat)]
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"RobustBench has no networks for `{dataset}/{threat}`",
            hint=_ROBUSTBENCH_FORM,
        ) from error
    _require_name("robustbench", model, models)
    if pretrained:
        folder = Path(torch.hub.get_dir()) / "robustbench"
        network: nn.Module = _fetched(
            "robustbench",
            name,
            lambda: robustbench.load_model(
                model, model_dir=folder, dataset=dataset, threat_model=threat
            ),
        )
        return network
    if "model" not in models[model]:
        raise ConfigError(f"RobustBench does not tell how to build `{name}` without its weights")
    network = models[model]["model"]()
    return network


_ZOOS: dict[str, Callable[[str, int, bool], nn.Module]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "robustbench": _from_robustbench,
}

ZOOS = tuple(_ZOOS)
"""Packages that a network can be taken from by name; each is an extra of hwnas."""


def _robustbench_parts(name: str) -> tuple[str, str, str]:
    """Split `[DATASET/THREAT/]NAME`; as RobustBench itself does, CIFAR-10 and Linf by default."""
    parts = name.split("/")
    if len(parts) == 1:
        return ("cifar10", "Linf", name)
    if len(parts) != 3:
        raise ConfigError(
            f"`robustbench:{name}` is not of the form robustbench:[DATASET/THREAT/]NAME",
            hint=_ROBUSTBENCH_FORM,
        )
    return (parts[0], parts[1], parts[2])


def _imported(zoo: str) -> Any:
    try:
        return importlib.import_module(zoo)
    except ModuleNotFoundError as error:
        if error.name == zoo:
            raise MissingDependencyError(
                f"{zoo} is not installed", hint=f'pip install "hwnas[{zoo}]"'
            ) from error
        raise _unloadable(zoo, error) from error
    # A build for another torch or without its libraries fails in more ways than ImportError.
    except Exception as error:
        raise _unloadable(zoo, error) from error


def _unloadable(zoo: str, error: Exception) -> MissingDependencyError:
    return MissingDependencyError(
        f"{zoo} is installed, but cannot be loaded: {type(error).__name__}: {error}",
        hint=f"it must be built for torch {torch.__version__}: pip install --upgrade "
        f'"hwnas[{zoo}]"',
    )


def _require_name(zoo: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        similar = nearest(name, known)
        hint = f"did you mean `{zoo}:{similar[0]}`?" if similar else ""
        raise ConfigError(f"{zoo} has no network `{name}`", hint=hint)


def _fetched(zoo: str, name: str, load: Callable[[], nn.Module]) -> nn.Module:
    try:
        with tensors_only():
            return load()
    except Exception as error:  # of the network, the disk, the hub's own library, the file
        reason = str(error).strip().partition("\n")[0]
        raise InputFileError(
            f"the weights of {zoo}:{name} cannot be had: {type(error).__name__}: {reason}",
            hint="without a network, set `weights` to a safetensors file of them: see "
            "docs/teachers.md",
        ) from error


@contextmanager
def _autoattack_by_its_old_name() -> Iterator[None]:
    """Let RobustBench find AutoAttack, which it imports by the name that it had before.

    RobustBench 1.1.1 asks for the distribution `pyautoattack`, whose module is `pyautoattack`
    since 0.2, and imports `autoattack`. Only its evaluation uses it, which we never call.
    """
    names = ("autoattack", "autoattack.state")
    hidden = [name for name in names if name not in sys.modules]
    if importlib.util.find_spec("autoattack") is not None or len(hidden) < len(names):
        yield
        return
    for name in names:
        sys.modules[name] = importlib.import_module(f"py{name}")
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
