from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from hwnas.core.errors import ConfigError, TrainingDivergedError
from hwnas.data.sources import DataConfig
from hwnas.robustness.threat import ThreatModel
from hwnas.training.teacher import TeacherConfig, train_teacher

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hwnas.core.progress import Progress
    from hwnas.data.images import ImageData
    from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec
    from hwnas.training.loop import Figures

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = TeacherConfig(width=4, blocks=(1, 1), epochs=3, batch=32, attack_steps=2)
THREAT = ThreatModel(eps="8/255")


def train(
    data: ImageData, checkpoint: Path, config: TeacherConfig = CONFIG, **changes: Any
) -> tuple[TeacherNetwork, TeacherSpec, list[Figures]]:
    arguments: dict[str, Any] = {"data_config": DataConfig(), "threat": THREAT, "seed": 0}
    given = arguments | changes
    data_config, threat = given.pop("data_config"), given.pop("threat")
    return train_teacher(data, data_config, threat, config, checkpoint=checkpoint, **given)


def same_state(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_teacher_is_made_for_its_data(few_digits: ImageData, tmp_path: Path) -> None:
    network, spec, history = train(few_digits, tmp_path / "c")
    assert (spec.image_shape, spec.classes) == ((1, 16, 16), 10)
    assert (spec.width, spec.blocks) == (CONFIG.width, CONFIG.blocks)
    mean, std = few_digits.pixel_statistics()
    assert network.normalize.mean.flatten().tolist() == pytest.approx(mean)
    assert network.normalize.std.flatten().tolist() == pytest.approx(std)
    assert len(history) == 3
    assert history[-1]["loss"] < history[0]["loss"]
    assert 0 <= history[-1]["validation_accuracy"] <= 1


# Three steps an epoch: at the start, within each epoch, and after the last step.
@pytest.mark.parametrize("step", [0, 2, 4, 8])
def test_an_interrupted_training_ends_in_the_same_numbers(
    few_digits: ImageData,
    tmp_path: Path,
    interrupted_after: Callable[[int], Progress],
    step: int,
) -> None:
    whole, _, expected = train(few_digits, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(few_digits, tmp_path / "cut", progress=interrupted_after(step))
    torch.manual_seed(step)  # the global generator must not matter
    network, _, history = train(few_digits, tmp_path / "cut")
    assert history == expected
    assert same_state(network, whole)


def test_the_seed_decides_everything(few_digits: ImageData, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1)
    first, _, _ = train(few_digits, tmp_path / "a", config)
    second, _, _ = train(few_digits, tmp_path / "b", config)
    other, _, _ = train(few_digits, tmp_path / "c", config, seed=1)
    assert same_state(first, second)
    assert not same_state(first, other)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"threat": ThreatModel(eps="4/255")}, "eps: 0.03.* -> 0.01"),
        ({"config": replace(CONFIG, width=8)}, "width: 4 -> 8"),
        ({"config": replace(CONFIG, blocks=(1, 2))}, r"blocks: \(1, 1\) -> \(1, 2\)"),
        # Another split would train on images that were held out before.
        ({"data_config": DataConfig(seed=1)}, "data.seed: 0 -> 1"),
        ({"data_config": DataConfig(source="npz:x")}, "data.source: 'digits' -> 'npz'"),
        ({"inputs": {"data": "ab"}}, "data: None -> 'ab'"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    few_digits: ImageData, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    train(few_digits, tmp_path / "c", replace(CONFIG, epochs=1))
    config = replace(changes.pop("config", CONFIG), epochs=1)
    with pytest.raises(ConfigError, match=says):
        train(few_digits, tmp_path / "c", config, **changes)


def test_a_checkpoint_goes_on_with_images_that_were_moved(
    few_digits: ImageData, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"inputs": {"data": "ab"}, "config": replace(CONFIG, epochs=1)}
    here, there = (DataConfig(source=f"npz:{place}.npz") for place in ("here", "there"))
    _, _, expected = train(few_digits, tmp_path / "c", data_config=here, **given)
    _, _, history = train(few_digits, tmp_path / "c", data_config=there, **given)
    assert history == expected
    with pytest.raises(ConfigError, match="data: 'ab' -> 'cd'"):
        train(few_digits, tmp_path / "c", data_config=here, **given | {"inputs": {"data": "cd"}})


def test_a_rate_too_high_is_found_out(few_digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match="teacher"):
        train(few_digits, tmp_path / "c", replace(CONFIG, learning_rate=1e30))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 0}, "`epochs` and `attack_steps` are at least 1"),
        ({"attack_steps": 0}, "`epochs` and `attack_steps` are at least 1"),
        ({"batch": 1}, "`batch` at least 2"),
        ({"learning_rate": -1.0}, "`learning_rate` is a positive number"),
        ({"learning_rate": float("nan")}, "`learning_rate` is a positive number"),
        ({"weight_decay": -1.0}, "`weight_decay` is a number of at least 0"),
        ({"kl_weight": 0.0}, "`kl_weight` weighs a teacher's predictions"),
        ({"robust": "none", "kl_weight": 0.0}, "`kl_weight` weighs a teacher's predictions"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TeacherConfig(**changes)
