from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hwnas.core.artifacts import sha256_of_file
from hwnas.core.errors import ArtifactError, ConfigError, InputFileError
from hwnas.distill.model_zoos import NormalizedNetwork
from hwnas.distill.teacher_sources import (
    anchored,
    check_source,
    load_weights,
    network_from_source,
    source_inputs,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")

CODE = """
import torch
from torch import nn
from beside import CLASSES

def make():
    return nn.Linear(2, CLASSES)

def half():
    return nn.Linear(2, 3).bfloat16().train()

def fails():
    raise TypeError("no such thing")

def gives_text():
    return "a network"

shared = nn.Linear(2, 3)
number = 3
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("CLASSES = 3")
    path = tmp_path / "my_code.py"
    path.write_text(CODE)
    return path


def built(source: str) -> nn.Module:
    return network_from_source(source, classes=3, pretrained=True)


def test_a_file_or_a_package_names_what_builds_the_network(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = built(f"{code}:make")
    assert isinstance(network, nn.Linear)
    assert network.out_features == 3  # from the file beside it
    monkeypatch.chdir(code.parent)
    assert isinstance(built("my_code.py:make"), nn.Linear)
    assert isinstance(built("torch.nn:Identity"), nn.Identity)


def test_what_is_built_is_in_eval_mode_and_in_fp32(code: Path) -> None:
    network = built(f"{code}:half")
    assert not network.training
    assert {each.dtype for each in network.parameters()} == {torch.float32}


def test_a_module_that_code_holds_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    held = nn.Linear(2, 3)
    monkeypatch.setattr(torch.nn, "held_by_a_test", held, raising=False)
    network = built("torch.nn:held_by_a_test")
    assert network is not held
    assert torch.equal(network.weight, held.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("mak", "there is no `mak`", "did you mean `make`?"),
        ("fails", "TypeError: no such thing", ""),
        ("gives_text", "gives str, not a torch.nn.Module", ""),
        ("number", "is int, not a callable", ""),
    ],
)
def test_a_callable_that_builds_none_is_refused(
    code: Path, name: str, says: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        built(f"{code}:{name}")
    assert says in caught.value.message
    assert caught.value.hint == hint


def test_code_that_cannot_be_found_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="does not exist"):
        built(f"{tmp_path / 'none.py'}:make")
    with pytest.raises(ConfigError, match="No module named 'no_such_package'"):
        built("no_such_package.module:make")


@pytest.mark.parametrize(
    ("source", "hint"), [("timn", "did you mean `timm:NAME`?"), ("what", "write one of package")]
)
def test_a_source_of_no_known_form_is_refused(source: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="names no network") as caught:
        check_source(source)
    assert hint in caught.value.hint


def test_a_source_names_its_file_from_any_folder(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(code.parent)
    assert anchored("my_code.py:make") == f"{code.resolve()}:make"
    assert source_inputs("my_code.py:make") == {"source": sha256_of_file(code)}
    for source in ("", "timm:resnet18", "package.module:make"):
        assert anchored(source) == source
        assert source_inputs(source) == {}


def test_weights_are_those_of_the_network_itself(tmp_path: Path) -> None:
    inner = nn.Linear(2, 3)
    save_file({name: value + 1 for name, value in inner.state_dict().items()}, tmp_path / "w")
    before = inner.weight.detach().clone()
    load_weights(tmp_path / "w", NormalizedNetwork(inner, [0.5], [0.5]))
    assert torch.equal(inner.weight, before + 1)
    with pytest.raises(ArtifactError, match=r"the network needs \[4, 2\]"):
        load_weights(tmp_path / "w", nn.Linear(2, 4))


@pytest.mark.parametrize("inside", ["state", "checkpoint", "old"])
def test_a_pickle_is_refused_and_the_command_converts_it(
    tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = nn.Linear(2, 3)
    path = tmp_path / "teacher.pth"
    state: Any = network.state_dict()
    torch.save(
        {"state_dict": state, "epoch": 3} if inside == "checkpoint" else state,
        path,
        _use_new_zipfile_serialization=inside != "old",
    )
    with pytest.raises(ConfigError, match="is a pickle, which hwnas does not open") as caught:
        load_weights(path, nn.Linear(2, 3))
    _, program, arguments = caught.value.hint.split('"')
    monkeypatch.setattr(sys, "argv", ["-c", *arguments.split()])
    exec(program, {})
    other = nn.Linear(2, 3)
    load_weights(tmp_path / "teacher.safetensors", other)
    assert torch.equal(other.weight, network.weight)
