from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from hwnas.core.artifacts import ManifestDraft, new_artifact
from hwnas.core.decoding import encode_json
from hwnas.core.errors import ArtifactError, ConfigError
from hwnas.core.weights import write_weights
from hwnas.distill.teacher import (
    TEACHER_FILE,
    WEIGHTS_FILE,
    Teacher,
    TeacherNetwork,
    TeacherSpec,
    load_teacher,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = TeacherSpec(image_shape=(3, 12, 12), classes=4, width=4, blocks=(1, 2, 1))


@pytest.fixture
def network() -> TeacherNetwork:
    network = TeacherNetwork(SPEC)
    network.normalize.set_statistics([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    network(torch.rand(8, 3, 12, 12))  # moves the running statistics
    return network


def made(path: Path, network: TeacherNetwork, *, kind: str = "teacher") -> Path:
    with new_artifact(path, ManifestDraft(kind=kind)) as folder:
        write_weights(folder / WEIGHTS_FILE, network)
        (folder / TEACHER_FILE).write_bytes(encode_json(SPEC))
    return path


def test_a_stage_doubles_the_channels_and_halves_the_size(network: TeacherNetwork) -> None:
    teacher = Teacher(network, network.tap_names, attention_size=6)
    shapes: list[tuple[int, ...]] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    assert teacher.logits(torch.rand(2, 3, 12, 12)).shape == (2, 4)
    assert shapes == [(4, 12, 12), (8, 6, 6), (8, 6, 6), (16, 3, 3)]


def test_tutors_are_the_stem_and_every_convolution_of_a_block(network: TeacherNetwork) -> None:
    modules = dict(network.named_modules())
    assert set(network.tap_names) <= set(modules)
    assert len(network.tap_names) == 1 + 2 * 4
    main_path = [
        name
        for name, each in modules.items()
        if isinstance(each, nn.Conv2d) and "shortcut" not in name
    ]
    assert len(main_path) == len(network.tap_names)


def test_what_a_tutor_shows_is_after_its_activation(network: TeacherNetwork) -> None:
    modules = dict(network.named_modules())
    lowest: list[float] = []
    for name in network.tap_names:
        modules[name].register_forward_hook(lambda _, __, out: lowest.append(float(out.min())))
    with torch.no_grad():
        network(torch.rand(2, 3, 12, 12))
    assert len(lowest) == len(network.tap_names)
    assert min(lowest) == 0  # before it, normalization would have made half of it negative


def test_a_teacher_is_frozen_and_gives_no_gradient(network: TeacherNetwork) -> None:
    teacher = Teacher(network.train(), network.tap_names, attention_size=6)
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


def test_a_teacher_loads_back_as_it_was(tmp_path: Path, network: TeacherNetwork) -> None:
    images = torch.rand(3, 3, 12, 12)
    expected = Teacher(network, network.tap_names, attention_size=6).observe(images)
    loaded, spec = load_teacher(made(tmp_path / "teacher", network), attention_size=6)
    assert spec == SPEC
    assert loaded.layers == network.tap_names
    for now, before in zip(loaded.observe(images), expected, strict=True):
        assert torch.equal(now, before)


def test_a_teacher_that_was_changed_is_refused(tmp_path: Path, network: TeacherNetwork) -> None:
    path = made(tmp_path / "teacher", network)
    (path / WEIGHTS_FILE).write_bytes(b"x")
    with pytest.raises(ArtifactError, match="was changed after it was made"):
        load_teacher(path, attention_size=6)
    with pytest.raises(ArtifactError, match="needs one of `hwnas teacher`"):
        load_teacher(made(tmp_path / "other", network, kind="train"), attention_size=6)


@pytest.mark.parametrize("changes", [{"width": 0}, {"blocks": ()}, {"blocks": (1, 0)}])
def test_a_teacher_without_layers_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="positive width and blocks in each stage"):
        TeacherSpec(image_shape=(1, 8, 8), classes=2, **changes)
