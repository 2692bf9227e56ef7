from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from hwnas.core.artifacts import ManifestDraft, new_artifact
from hwnas.core.decoding import encode_json
from hwnas.core.errors import ArtifactError, ConfigError, InputFileError
from hwnas.distill.attention import attention_distances, attention_maps
from hwnas.distill.losses import kl_to_teacher
from hwnas.distill.tapping import choose_layers
from hwnas.distill.teacher import (
    TEACHER_FILE,
    WEIGHTS_FILE,
    Precision,
    Teacher,
    TeacherCard,
    check_logits,
    load_teacher,
    write_teacher,
)
from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec
from hwnas.distill.teacher_sources import network_from_source

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = TeacherSpec(image_shape=(3, 12, 12), classes=4, width=4, blocks=(1, 2, 1))
CODE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4),
    )
"""

TIED = """
from torch import nn

def make():
    first, second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
    second.weight = first.weight
    return nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
"""


@pytest.fixture
def network() -> TeacherNetwork:
    network = TeacherNetwork(SPEC)
    network.normalize.set_statistics([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    network(torch.rand(8, 3, 12, 12))  # moves the running statistics
    return network.eval()


def teacher_of(network: TeacherNetwork, precision: Precision = "fp32") -> Teacher:
    return Teacher(
        network,
        network.tap_names,
        image_shape=SPEC.image_shape,
        classes=SPEC.classes,
        attention_size=6,
        precision=precision,
    )


def card_of(taught: nn.Module, **changes: Any) -> TeacherCard:
    values: dict[str, Any] = {
        "image_shape": SPEC.image_shape,
        "classes": SPEC.classes,
        "precision": "fp32",
        "check_logits": check_logits(taught, SPEC.image_shape),
    }
    return TeacherCard(**(values | changes))


def made(path: Path, network: nn.Module, card: TeacherCard, *, kind: str = "teacher") -> Path:
    with new_artifact(path, ManifestDraft(kind=kind)) as folder:
        write_teacher(folder, network, card)
    return path


def own(path: Path, network: TeacherNetwork, **changes: Any) -> Path:
    card = card_of(network, layers=network.tap_names, network=SPEC, **changes)
    return made(path, network, card)


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[Path, Path, nn.Sequential]:
    """A teacher of a user's file, the file, and the network that it was made of."""
    code = tmp_path / "code.py"
    code.write_text(CODE)
    source = f"{code}:make"
    network = network_from_source(source, classes=4, pretrained=True)
    assert isinstance(network, nn.Sequential)
    # Trained meanwhile: the folder's weights are its own.
    network.get_buffer("1.running_mean").add_(0.1)
    layers = choose_layers(network, torch.rand(2, 3, 12, 12), what="it")
    card = card_of(network, layers=layers, source=source)
    return made(tmp_path / "teacher", network, card), code, network


def test_a_teacher_is_frozen_and_gives_no_gradient(network: TeacherNetwork) -> None:
    teacher = teacher_of(network.train())
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.rand(2, 3, 12, 12, requires_grad=True)
    logits, maps = teacher.observe(images)
    assert not logits.requires_grad
    assert not maps.requires_grad
    assert maps.shape == (2, 9, 36)
    assert torch.equal(logits, teacher.logits(images))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_maps_are_those_of_the_layers_though_activations_work_in_place(
    foreign: tuple[Path, Path, nn.Sequential],
) -> None:
    path, _, network = foreign
    images = torch.rand(2, 3, 12, 12)
    first = network[1](network[0](images)).relu()
    second = network[3](first).relu()
    _, maps = load_teacher(path, attention_size=6).observe(images)
    torch.testing.assert_close(maps, attention_maps([first, second], 6))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_teacher_gives_can_be_learned_from(
    network: TeacherNetwork, precision: Precision
) -> None:
    teacher = teacher_of(network, precision)
    images = torch.rand(4, 3, 12, 12)
    logits, maps = teacher.observe(images)
    assert logits.dtype == maps.dtype == torch.float32
    student = torch.zeros(4, 4, requires_grad=True)
    mine = torch.rand(4, 2, 36, requires_grad=True)
    loss = kl_to_teacher(student, logits).sum() + attention_distances(mine, maps).sum()
    loss = loss + kl_to_teacher(student, teacher.logits(images)).sum()
    loss = loss + (student * logits).sum()  # saves them for the backward pass
    torch.autograd.backward(loss)
    assert student.grad is not None
    assert mine.grad is not None


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_close_and_leaves_weights_alone(
    network: TeacherNetwork, precision: Precision
) -> None:
    images = torch.rand(16, 3, 12, 12)
    exact_logits, exact_maps = teacher_of(network).observe(images)
    logits, maps = teacher_of(network, precision).observe(images)
    assert not torch.equal(logits, exact_logits)  # it was really computed otherwise
    torch.testing.assert_close(logits, exact_logits, rtol=0.05, atol=0.05)
    torch.testing.assert_close(maps, exact_maps, rtol=0.05, atol=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_a_teacher_moves_to_a_device(network: TeacherNetwork) -> None:
    teacher = teacher_of(network)
    assert teacher.to("meta") is teacher
    assert all(each.is_meta for each in teacher.network.state_dict().values())


def test_our_own_teacher_loads_back_as_it_was(tmp_path: Path, network: TeacherNetwork) -> None:
    images = torch.rand(3, 3, 12, 12)
    expected = teacher_of(network).observe(images)
    loaded = load_teacher(own(tmp_path / "teacher", network), attention_size=6)
    assert loaded.layers == network.tap_names
    assert (loaded.image_shape, loaded.classes) == (SPEC.image_shape, SPEC.classes)
    for now, before in zip(loaded.observe(images), expected, strict=True):
        assert torch.equal(now, before)


def test_the_precision_is_that_of_the_folder(tmp_path: Path, network: TeacherNetwork) -> None:
    loaded = load_teacher(own(tmp_path / "teacher", network, precision="bf16"), attention_size=6)
    images = torch.rand(3, 3, 12, 12)
    assert torch.equal(loaded.logits(images), teacher_of(network, "bf16").logits(images))


def test_a_teacher_of_a_users_code_loads_with_the_weights_of_its_folder(
    foreign: tuple[Path, Path, nn.Sequential], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, network = foreign
    monkeypatch.chdir(path)  # from wherever it is loaded
    images = torch.rand(3, 3, 12, 12)
    loaded = load_teacher(path, attention_size=6)
    assert loaded.layers == ("2", "4")
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(images), network(images))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("nn.Conv2d(4, 4, 3)", "nn.Conv2d(4, 5, 3)", "`3.weight` has shape"),
        ("nn.Linear(4, 4),", "nn.Linear(4, 4), nn.Linear(4, 4),", "holds no tensor `8."),
        ("nn.ReLU(inplace=True),\n        nn.Conv", "nn.Conv", "holds no tensor `2."),
        # The weights fit and the layers are there, but it computes something else.
        ("nn.ReLU", "nn.Hardswish", "it gives other logits with the same weights"),
    ],
)
def test_code_that_was_changed_is_found_out(
    foreign: tuple[Path, Path, nn.Sequential], old: str, new: str, says: str
) -> None:
    path, code, _ = foreign
    assert old in CODE
    code.write_text(CODE.replace(old, new))
    with pytest.raises(ArtifactError, match="builds another network than the teacher") as caught:
        load_teacher(path, attention_size=6)
    assert says in caught.value.message
    assert "hwnas teacher" in caught.value.hint


def test_code_that_is_gone_or_broken_is_named(foreign: tuple[Path, Path, nn.Sequential]) -> None:
    path, code, _ = foreign
    code.write_text("def mak(): ...")
    with pytest.raises(ConfigError, match=r"cannot be built again: .*there is no `make`"):
        load_teacher(path, attention_size=6)
    code.unlink()
    with pytest.raises(InputFileError, match=r"cannot be built again: .*code\.py does not exist"):
        load_teacher(path, attention_size=6)


def test_weights_that_are_tied_are_kept(tmp_path: Path) -> None:
    (tmp_path / "tied.py").write_text(TIED)
    source = f"{tmp_path / 'tied.py'}:make"
    network = network_from_source(source, classes=4, pretrained=True)
    card = card_of(network, layers=("0", "1"), source=source)
    loaded = load_teacher(made(tmp_path / "teacher", network, card), attention_size=6)
    assert loaded.network.get_parameter("0.weight") is loaded.network.get_parameter("1.weight")


def test_a_teacher_that_was_changed_is_refused(tmp_path: Path, network: TeacherNetwork) -> None:
    path = own(tmp_path / "teacher", network)
    (path / WEIGHTS_FILE).write_bytes(b"x")
    with pytest.raises(ArtifactError, match="was changed after it was made"):
        load_teacher(path, attention_size=6)
    card = card_of(network, layers=network.tap_names, network=SPEC)
    other = made(tmp_path / "other", network, card, kind="train")
    with pytest.raises(ArtifactError, match="needs one of `hwnas teacher`"):
        load_teacher(other, attention_size=6)


def test_a_folder_of_an_older_hwnas_is_to_be_made_again(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "old", ManifestDraft(kind="teacher")) as folder:
        (folder / TEACHER_FILE).write_bytes(encode_json(SPEC))
    with pytest.raises(ArtifactError) as caught:
        load_teacher(tmp_path / "old", attention_size=6)
    assert "make " in caught.value.hint
