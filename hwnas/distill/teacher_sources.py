"""Where a teacher's network comes from: a callable of the user's own, or a zoo.

Building it runs the code that the source names. A file of weights is only ever read as safetensors.
"""

from __future__ import annotations

import copy
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from hwnas.core.artifacts import sha256_of_file
from hwnas.core.errors import ConfigError, nearest
from hwnas.core.named_code import is_file
from hwnas.core.weights import read_weights
from hwnas.distill.model_zoos import ZOOS, NormalizedNetwork, network_from_zoo
from hwnas_profilers.breakdown.model import model_source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_FORMS = "package.module:callable, FILE.py:callable, " + ", ".join(f"{zoo}:NAME" for zoo in ZOOS)
_CONVERT = (
    "import sys, torch, safetensors.torch as s; "
    "w = torch.load(sys.argv[1], weights_only=True, map_location='cpu'); "
    "w = w.get('state_dict', w); "
    "s.save_file({k: v.contiguous() for k, v in w.items()}, sys.argv[2])"
)
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def check_source(source: str) -> None:
    """Check the form of a source.

    Raises:
        ConfigError: It names neither a callable nor a network of a zoo.
    """
    place, _, name = source.rpartition(":")
    if source and not (place and name):
        similar = nearest(source, ZOOS)
        hint = f"did you mean `{similar[0]}:NAME`?" if similar else f"write one of {_FORMS}"
        raise ConfigError(f"`{source}` names no network", hint=hint)


def source_inputs(source: str) -> Mapping[str, str]:
    """Return the hash of the file that a source names, for the inputs of what is made from it."""
    path = Path(_place(source))
    return {"source": sha256_of_file(path)} if is_file(str(path)) and path.is_file() else {}


def anchored(source: str) -> str:
    """Return a source that names the same file from any folder."""
    place, _, name = source.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if is_file(place) else source


def network_from_source(source: str, *, classes: int, pretrained: bool) -> nn.Module:
    """Build the network that a source names.

    Args:
        source: `package.module:callable` or `FILE.py:callable`, which takes nothing and returns an
            `nn.Module`; or `torchvision:NAME`, `timm:NAME` or `robustbench:NAME`.
        classes: Classes to build a zoo's network for, where it is not pretrained.
        pretrained: Take a zoo's published weights. A callable brings what it brings.

    Returns:
        In eval mode, in fp32, on the CPU; it takes pixels in [0, 1].

    Raises:
        ConfigError: There is no such callable or network, or it fails or gives something else.
        InputFileError: There is no such file, or published weights cannot be had.
        MissingDependencyError: The zoo is not installed.
    """
    check_source(source)
    zoo, _, name = source.partition(":")
    if zoo in ZOOS:
        network = network_from_zoo(zoo, name, classes=classes, pretrained=pretrained)
    else:
        made = model_source(Path(source)).module
        if made is None:
            raise ConfigError(f"`{source}` names no network", hint=f"write one of {_FORMS}")
        # A module that the code holds is not ours to change.
        network = copy.deepcopy(made)
    return network.cpu().float().eval()


def load_weights(path: Path, network: nn.Module) -> None:
    """Load a file of weights into a network of a source; every tensor must fit.

    Names are those of the network itself, without the normalization that we put before it.

    Raises:
        InputFileError: The file is missing or unreadable.
        ArtifactError: Its tensors are not the network's.
        ConfigError: It is a pickle.
    """
    _refuse_pickle(path)
    read_weights(path, network.network if isinstance(network, NormalizedNetwork) else network)


def _refuse_pickle(path: Path) -> None:
    """Raises ConfigError, with the command that converts it, at a pickle or PyTorch's own zip."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_ZIP))
    except OSError:
        return  # for `read_weights` to tell
    if start == _ZIP or start.startswith(_PICKLE):
        new = path.with_suffix(".safetensors")
        raise ConfigError(
            f"{path} is a pickle, which hwnas does not open: it could run code from the file",
            hint=f'convert it: python -c "{_CONVERT}" {quote(str(path))} {quote(str(new))}',
        )


def _place(source: str) -> str:
    return source.rpartition(":")[0]
