from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from hwnas.core.errors import ConfigError, TrainingDivergedError
from hwnas.data.sources import DataConfig
from hwnas.distill.attention import attention_distances, attention_maps
from hwnas.robustness.threat import ThreatModel
from hwnas.space.channel.space import ChannelSpace
from hwnas.training.student import TrainConfig, train_student

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hwnas.core.progress import Progress
    from hwnas.data.images import ImageData
    from hwnas.distill.teacher import Teacher
    from hwnas.space.channel.network import ChannelNetwork
    from hwnas.space.channel.spec import ChannelSpec
    from hwnas.training.loop import Figures

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = TrainConfig(epochs=3, batch=32, attack_steps=2)


def rows(tutors: list[int], teacher: Teacher) -> list[list[float]]:
    """Weights of one tutor per student layer."""
    return torch.nn.functional.one_hot(torch.tensor(tutors), len(teacher.layers)).float().tolist()


class Setting:
    """A student and what it is trained with."""

    def __init__(self, space: ChannelSpace, teacher: Teacher, data: ImageData) -> None:
        self.space, self.teacher, self.data = space, teacher, data
        self.students = len(self.student().tap_names)
        self.tutors = rows([i % len(teacher.layers) for i in range(self.students)], teacher)

    def student(self) -> ChannelNetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.space.network(self.space.largest)

    def train(
        self,
        network: ChannelNetwork,
        checkpoint: Path,
        config: TrainConfig = CONFIG,
        **changes: Any,
    ) -> list[Figures]:
        given: dict[str, Any] = {
            "data_config": DataConfig(),
            "threat": ThreatModel(),
            "tutors": self.tutors,
            "seed": 0,
            "inputs": {"teacher": "ab"},
        } | changes
        return train_student(
            network, given.pop("tutors"), self.teacher, self.data, given.pop("data_config"),
            given.pop("threat"), config, checkpoint=checkpoint, **given,
        )  # fmt: skip


@pytest.fixture
def setting(small_spec: ChannelSpec, small_teacher: Teacher, few_digits: ImageData) -> Setting:
    return Setting(ChannelSpace(small_spec), small_teacher, few_digits)


def without_tutors(setting: Setting) -> list[list[float]]:
    return [[0.0] * len(row) for row in setting.tutors]


def same_state(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("robust", ["rslad", "none"])
@pytest.mark.parametrize("step", [0, 4, 8])
def test_an_interrupted_training_ends_in_the_same_numbers(
    setting: Setting,
    tmp_path: Path,
    interrupted_after: Callable[[int], Progress],
    robust: Any,
    step: int,
) -> None:
    config = replace(CONFIG, robust=robust)
    whole, cut, resumed = (setting.student() for _ in range(3))
    expected = setting.train(whole, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        setting.train(cut, tmp_path / "cut", config, progress=interrupted_after(step))
    torch.manual_seed(step)  # the global generator must not matter
    assert setting.train(resumed, tmp_path / "cut", config) == expected
    assert same_state(resumed, whole)


@pytest.mark.parametrize("robust", ["rslad", "none"])
def test_training_lowers_the_loss_and_moves_nothing_of_the_teacher(
    setting: Setting, tmp_path: Path, robust: Any
) -> None:
    teacher = setting.teacher.network
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    history = setting.train(setting.student(), tmp_path / "c", replace(CONFIG, robust=robust))
    assert len(history) == 3
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_attention_weight_draws_a_student_to_its_tutors(
    setting: Setting, tmp_path: Path
) -> None:
    distances = []
    images = setting.data.validation.pixels()
    for weight in (0.0, 300.0):
        network = setting.student()
        config = replace(CONFIG, robust="none", epochs=15, batch=16, attention_weight=weight)
        setting.train(network, tmp_path / f"{weight}", config)
        taps: list[torch.Tensor] = []
        with torch.no_grad():
            network.eval()(images, taps=taps)
            _, maps = setting.teacher.observe(images)
        size = setting.teacher.attention_size
        every = attention_distances(attention_maps(taps, size), maps)
        distances.append(float((every * torch.tensor(setting.tutors)).sum(1).mean()))
    assert distances[1] < 0.9 * distances[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inputs": {"teacher": "cd"}}, "teacher: 'ab' -> 'cd'"),
        ({"tutors": None}, r"tutors: '\w{16}' -> '\w{16}'"),
        ({"threat": ThreatModel(eps="4/255")}, "eps: 0.03.* -> 0.01"),
        ({"data_config": DataConfig(pad=2)}, "data.pad: 1 -> 2"),
        ({"config": replace(CONFIG, robust="none")}, "robust: 'rslad' -> 'none'"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    setting: Setting, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    setting.train(setting.student(), tmp_path / "c", replace(CONFIG, epochs=1))
    if "tutors" in changes:
        changes["tutors"] = without_tutors(setting)
    config = replace(changes.pop("config", CONFIG), epochs=1)
    with pytest.raises(ConfigError, match=says):
        setting.train(setting.student(), tmp_path / "c", config, **changes)


class Blind:
    """A teacher that gives its predictions, and nothing of its layers."""

    def __init__(self, teacher: Teacher) -> None:
        self.logits, self.layers = teacher.logits, teacher.layers
        self.attention_size = teacher.attention_size

    def observe(self, images: torch.Tensor) -> None:
        raise AssertionError("a layer of the teacher was looked at")


@pytest.mark.parametrize("robust", ["rslad", "none"])
@pytest.mark.parametrize(
    "changes", [{"tutors": "none"}, {"config": {"attention_weight": 0.0}}], ids=["rows", "weight"]
)
def test_without_tutors_no_layer_is_looked_at_and_nothing_else_changes(
    setting: Setting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    robust: Any,
    changes: dict[str, Any],
) -> None:
    config = replace(CONFIG, robust=robust, epochs=2, **changes.get("config", {}))
    tutors = without_tutors(setting) if "tutors" in changes else setting.tutors
    # A weight so small that all is looked at and no loss is changed, but for rounding on the way.
    looked, blind = setting.student(), setting.student()
    tiny = replace(config, attention_weight=1e-12)
    expected = setting.train(looked, tmp_path / "looked", tiny)

    forward = type(blind).forward

    def tapless(self: ChannelNetwork, images: torch.Tensor, taps: None = None) -> torch.Tensor:
        assert taps is None
        return forward(self, images)

    monkeypatch.setattr(type(blind), "forward", tapless)
    setting.teacher = Blind(setting.teacher)  # type: ignore[assignment]
    history = setting.train(blind, tmp_path / "blind", config, tutors=tutors)
    assert [each["loss"] for each in history] == pytest.approx(
        [each["loss"] for each in expected], rel=5e-3
    )


@pytest.mark.parametrize("robust", ["fast-at", "pgd-at", "trades"])
def test_a_teacher_that_nothing_is_learned_from_is_not_run(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, robust: Any
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the teacher was run")

    monkeypatch.setattr(type(setting.teacher), "logits", refuse)
    monkeypatch.setattr(type(setting.teacher), "observe", refuse)
    config = replace(CONFIG, robust=robust, epochs=1)
    tutors = without_tutors(setting)
    history = setting.train(setting.student(), tmp_path / "c", config, tutors=tutors)
    assert history[0]["loss"] > 0


class Silent:
    """A teacher that must not be run."""

    def __init__(self, teacher: Teacher) -> None:
        self.layers, self.attention_size = teacher.layers, teacher.attention_size

    def logits(self, images: torch.Tensor) -> None:
        raise AssertionError("the teacher was run")

    observe = logits


def test_without_kl_and_tutors_a_student_learns_from_labels_alone(
    setting: Setting, tmp_path: Path
) -> None:
    config = replace(CONFIG, robust="none", kl_weight=0.0, attention_weight=0.0, epochs=1, batch=96)
    expected_of = setting.student().train()
    with torch.no_grad():  # one step of all images: its loss is that of the first weights
        train = setting.data.train
        expected = functional.cross_entropy(expected_of(train.pixels()), train.labels)
    setting.teacher = Silent(setting.teacher)  # type: ignore[assignment]
    history = setting.train(
        setting.student(), tmp_path / "c", config, data_config=DataConfig(pad=0)
    )
    assert len(train) == 96
    assert history[0]["loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("tutored", [False, True])
def test_the_kl_is_weighed_beside_labels_and_tutors(
    setting: Setting, tmp_path: Path, tutored: bool
) -> None:
    tutors = setting.tutors if tutored else without_tutors(setting)

    def first_loss(weight: float) -> float:
        config = replace(CONFIG, robust="none", kl_weight=weight, epochs=1, batch=96)
        path = tmp_path / f"{weight}"
        return setting.train(setting.student(), path, config, tutors=tutors)[0]["loss"]

    none, one, three = (first_loss(weight) for weight in (0.0, 1.0, 3.0))
    assert one > none + 1e-3
    assert three - none == pytest.approx(3 * (one - none), rel=1e-4)


@pytest.mark.parametrize("robust", ["none", "rslad"])
def test_gradients_of_tutored_layers_keep_the_layout_of_the_network(
    setting: Setting, tmp_path: Path, robust: Any
) -> None:
    """In another one the passes back through the network take twice as long."""
    network = setting.student()
    kept: list[bool] = []

    def look(_: nn.Module, __: object, gradients: tuple[torch.Tensor, ...]) -> None:
        if network.training:  # the attack looks at no layer
            kept.append(gradients[0].is_contiguous(memory_format=torch.channels_last))

    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_full_backward_hook(look)
    setting.train(network, tmp_path / "c", replace(CONFIG, robust=robust, epochs=1, batch=96))
    assert len(kept) >= len(norms)
    assert all(kept)


def test_tutors_may_be_weighed_against_each_other(setting: Setting, tmp_path: Path) -> None:
    """A layer that learns from all alike is at the mean of what it is with each alone."""
    config = replace(CONFIG, robust="none", epochs=1, batch=96)  # one step: the first loss
    layers = len(setting.teacher.layers)

    def first_loss(name: str, weights: list[float]) -> float:
        tutors = [weights] * setting.students
        return setting.train(setting.student(), tmp_path / name, config, tutors=tutors)[0]["loss"]

    alone = [
        first_loss(f"{tutor}", [float(tutor == other) for other in range(layers)])
        for tutor in range(layers)
    ]
    assert len(set(alone)) == layers
    assert first_loss("all", [1 / layers] * layers) == pytest.approx(sum(alone) / layers)


@pytest.mark.parametrize("cut", ["student", "teacher"])
def test_tutors_of_other_networks_are_refused(setting: Setting, tmp_path: Path, cut: str) -> None:
    other = setting.tutors[1:] if cut == "student" else [row[1:] for row in setting.tutors]
    with pytest.raises(ConfigError, match="do not fit a network of 10 and a teacher of 5"):
        setting.train(setting.student(), tmp_path / "c", tutors=other)


def test_a_loss_that_is_no_number_is_found_out(setting: Setting, tmp_path: Path) -> None:
    network = setting.student()
    torch.nn.init.constant_(network.head.classifier.weight, float("nan"))
    with pytest.raises(TrainingDivergedError, match="loss of train is nan in epoch 1, step 1"):
        setting.train(network, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 0}, "`epochs` and `attack_steps` are at least 1"),
        ({"attack_steps": 0}, "`epochs` and `attack_steps` are at least 1"),
        ({"batch": 1}, "`batch` at least 2"),
        ({"learning_rate": 0.0}, "`learning_rate` is a positive number"),
        ({"weight_decay": float("inf")}, "`weight_decay` is a number of at least 0"),
        ({"attention_weight": -1.0}, "`attention_weight` is a number of at least 0"),
        ({"robust": "none", "kl_weight": -0.5}, "`kl_weight` is a number of at least 0, not -0.5"),
        ({"robust": "none", "kl_weight": float("nan")}, "`kl_weight` is a number of at least 0"),
        ({"kl_weight": 0.0}, "`kl_weight` is a setting of robust = none, but `robust` is rslad"),
        ({"robust": "trades", "kl_weight": 2.0}, "`kl_weight` .* but `robust` is trades"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TrainConfig(**changes)
