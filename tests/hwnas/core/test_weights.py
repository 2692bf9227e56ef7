from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hwnas.core.errors import ArtifactError, InputFileError
from hwnas.core.weights import read_weights, write_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_weights_and_buffers_survive_the_round_trip(tmp_path: Path) -> None:
    first, second = network(), network()
    first(torch.randn(5, 3, 3, 3))  # moves the running statistics
    # mypy knows no such overload, torch does.
    first.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    write_weights(tmp_path / "w.safetensors", first)
    read_weights(tmp_path / "w.safetensors", second)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def without(state: dict[str, Tensor]) -> None:
    del state["0.weight"]


def misnamed(state: dict[str, Tensor]) -> None:
    state["00.weight"] = state.pop("0.weight")


def reshaped(state: dict[str, Tensor]) -> None:
    state["3.weight"] = torch.zeros(2, 5)


def extra(state: dict[str, Tensor]) -> None:
    state["4.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("damage", "says", "hint"),
    [
        (without, "holds no tensor `0.weight`", ""),
        (misnamed, "holds no tensor `0.weight`", "the nearest name in the file is `00.weight`"),
        (reshaped, r"`3.weight` has shape \[2, 5\], the network needs \[2, 4\]", ""),
        (extra, r"holds 1 tensors that the network has not: 4\.weight", ""),
    ],
)
def test_weights_of_another_network_are_refused_and_change_nothing(
    tmp_path: Path, damage: Callable[[dict[str, Tensor]], None], says: str, hint: str
) -> None:
    state = {name: torch.ones_like(value) for name, value in network().state_dict().items()}
    damage(state)
    save_file(state, tmp_path / "w.safetensors")
    into = network()
    before = {name: value.clone() for name, value in into.state_dict().items()}
    with pytest.raises(ArtifactError, match=says) as caught:
        read_weights(tmp_path / "w.safetensors", into)
    assert hint in caught.value.hint
    assert all(torch.equal(value, before[name]) for name, value in into.state_dict().items())


def pickled(path: Path) -> None:
    torch.save(network().state_dict(), path)


def cut(path: Path) -> None:
    write_weights(path, network())
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: Path) -> None:
    path.touch()


def boastful(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize("damage", [pickled, cut, empty, boastful])
def test_what_is_no_safetensors_file_is_refused_and_never_unpickled(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(tmp_path / "w")
    with pytest.raises(ArtifactError, match="is no safetensors file") as caught:
        read_weights(tmp_path / "w", network())
    assert "save_file" in caught.value.hint


def test_a_file_that_is_missing_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="No such file"):
        read_weights(tmp_path / "w", network())
    (tmp_path / "file").touch()
    with pytest.raises(InputFileError, match="cannot be written"):
        write_weights(tmp_path / "file" / "w", network())
