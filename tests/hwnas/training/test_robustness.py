"""What robust training is for: accuracy under attack, on real digits.

eps is 16/255, twice the usual: large strokes on 16x16 pixels are not much moved by less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

from hwnas.data.images import ImageData
from hwnas.data.sources import DataConfig
from hwnas.distill.teacher import Teacher
from hwnas.distill.teacher_network import TeacherNetwork
from hwnas.robustness.threat import ThreatModel
from hwnas.space.channel.space import ChannelSpace
from hwnas.training.figures import accuracy, accuracy_and_robustness
from hwnas.training.student import TrainConfig, train_student
from hwnas.training.teacher import TeacherConfig, train_teacher

if TYPE_CHECKING:
    from hwnas.space.channel.spec import ChannelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = "16/255"
ATTACK = ThreatModel(eps=EPS, steps=10)


class Judged(NamedTuple):
    network: torch.nn.Module
    clean: float
    robust: float


@pytest.fixture(scope="module")
def some_digits(digits: ImageData) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    return ImageData(
        name="some digits",
        train=digits.train.subset(512, generator),
        validation=digits.validation.subset(200, generator),
        test=digits.test,
        class_names=digits.class_names,
    )


def judged(network: torch.nn.Module, data: ImageData) -> Judged:
    clean, robust = accuracy_and_robustness(network, data.validation, ATTACK, seed=0)
    assert clean.n == robust.n == 200
    assert clean.value == accuracy(network, data.validation.pixels(), data.validation.labels)
    return Judged(network, clean.value, robust.value)


def teacher_of(
    data: ImageData, eps: str, tmp_path_factory: pytest.TempPathFactory, **settings: Any
) -> Judged:
    given: dict[str, Any] = {"epochs": 8, "batch": 32, "attack_steps": 2} | settings
    network, _, _ = train_teacher(
        data,
        DataConfig(),
        ThreatModel(eps=eps),
        TeacherConfig(width=8, blocks=(1, 1), **given),
        seed=0,
        checkpoint=tmp_path_factory.mktemp("teacher") / "checkpoint",
    )
    return judged(network, data)


@pytest.fixture(scope="module")
def plain_teacher(some_digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return teacher_of(some_digits, EPS, tmp_path_factory, robust="none")


@pytest.fixture(scope="module")
def robust_teacher(some_digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return teacher_of(some_digits, EPS, tmp_path_factory)


def test_adversarial_training_makes_a_robust_teacher(
    plain_teacher: Judged, robust_teacher: Judged
) -> None:
    assert plain_teacher.clean > 0.5
    assert robust_teacher.clean > 0.4
    assert robust_teacher.robust > plain_teacher.robust + 0.15


@pytest.mark.parametrize(
    "settings",
    [
        {"robust": "fast-at"},
        {"robust": "fast-at", "fast_variant": "fgsm-rs", "averaging": 0.9},
        {"robust": "trades", "keep": "best"},
    ],
)
def test_every_robust_training_beats_the_plain_one_under_attack(
    some_digits: ImageData,
    plain_teacher: Judged,
    tmp_path_factory: pytest.TempPathFactory,
    settings: dict[str, Any],
) -> None:
    robust = teacher_of(some_digits, EPS, tmp_path_factory, **settings)
    assert robust.clean > 0.4
    assert robust.robust > plain_teacher.robust + 0.1


def test_robust_distillation_makes_a_robust_student(
    some_digits: ImageData,
    robust_teacher: Judged,
    small_spec: ChannelSpec,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assert isinstance(robust_teacher.network, TeacherNetwork)
    teacher = Teacher(
        robust_teacher.network,
        robust_teacher.network.tap_names,
        image_shape=some_digits.image_shape,
        classes=len(some_digits.class_names),
        attention_size=4,
    )
    space = ChannelSpace(small_spec)

    def student(robust: Any) -> Judged:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = space.network(space.largest)
        network.stem.normalize.set_statistics(*some_digits.pixel_statistics())
        train_student(
            network,
            [[1.0, *(0.0,) * (len(teacher.layers) - 1)]] * len(network.tap_names),
            teacher,
            some_digits,
            DataConfig(),
            ThreatModel(eps=EPS),
            TrainConfig(robust=robust, epochs=14, batch=32, attack_steps=2),
            seed=0,
            checkpoint=tmp_path_factory.mktemp("student") / "checkpoint",
            inputs={},
        )
        return judged(network, some_digits)

    plain, robust = student("none"), student("rslad")
    assert plain.clean > 0.6
    assert robust.clean > 0.25
    assert robust.robust > plain.robust + 0.08
