"""`hwnas teacher` with networks that are not ours."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hwnas.core.decoding import read_json
from hwnas.core.errors import ArtifactError, ConfigError, InputFileError
from hwnas.data.sources import DataConfig
from hwnas.distill.teacher import TeacherCard, load_teacher
from hwnas.distill.teacher_network import TeacherSpec
from hwnas.distill.teacher_precision import PrecisionChoice
from hwnas.robustness.threat import ThreatModel
from hwnas.stages.config import RunConfig
from hwnas.stages.teacher import make_teacher
from hwnas.training.teacher import TeacherConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")

# Brightness decides the class: a network made by hand tells them apart.
CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3)
        self.relu = nn.ReLU(inplace=True)
        for conv in (self.first, self.second):
            nn.init.constant_(conv.weight, 1 / conv.weight[0].numel())
            nn.init.zeros_(conv.bias)

    def forward(self, pixels):
        features = self.relu(self.second(self.relu(self.first(pixels))))
        bright = features.mean(dim=(1, 2, 3))[:, None]
        return torch.cat([0.5 - bright, bright - 0.5], dim=1)

class Backward(Net):
    def forward(self, pixels):
        return -super().forward(pixels)

class Verbose(Net):
    def forward(self, pixels):
        return {"logits": super().forward(pixels)}

def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

def three():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))

def larger():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 2))
"""


class Said:
    """Progress that keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[Said]:
        yield self

    def advance(self, steps: float = 1, note: str = "") -> None:
        pass

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(CODE)
    return path


@pytest.fixture
def config(tmp_path: Path, code: Path) -> RunConfig:
    """Forty images of 8x8, dark or bright, and a teacher that knows which."""
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = generator.integers(0, 100, (40, 8, 8)) + 150 * labels[:, None, None]
    np.savez(tmp_path / "data.npz", images=images.astype(np.uint8), labels=labels)
    return RunConfig(
        training_threads=1,
        accelerator="cpu",
        data=DataConfig(source=f"npz:{tmp_path / 'data.npz'}"),
        threat=ThreatModel(eps="8/255", steps=2),
        teacher=TeacherConfig(source=f"{code}:Net"),
    )


def with_teacher(config: RunConfig, **changes: Any) -> RunConfig:
    return replace(config, teacher=replace(config.teacher, **changes))


def test_a_users_network_becomes_a_teacher(tmp_path: Path, config: RunConfig, code: Path) -> None:
    out, said = tmp_path / "teacher", Said()
    result = make_teacher(config, out, progress=said)
    assert (result.trained, result.source) == (False, config.teacher.source)
    assert result.clean_accuracy == 1.0
    assert 0 <= result.robust_accuracy <= 1
    assert (result.n, result.layers, result.precision) == (8, 2, "fp32")
    card = read_json(out / "teacher.json", TeacherCard)
    assert card.layers == ("relu#1", "relu#2")
    assert (card.image_shape, card.classes, card.network) == ((1, 8, 8), 2, None)
    assert not any("warning" in line for line in said.lines)

    teacher = load_teacher(out, attention_size=4)
    logits, maps = teacher.observe(torch.ones(3, 1, 8, 8))
    torch.testing.assert_close(logits, torch.tensor([[-0.5, 0.5]] * 3))
    assert maps.shape == (3, 2, 16)

    assert make_teacher(config, out, progress=said) == result
    assert "is finished already" in said.lines[-1]
    code.write_text(CODE + "\n# another day")  # the same network, but who would know
    make_teacher(config, out, progress=said)
    assert "is finished already" not in said.lines[-1]


def test_weights_of_a_file_go_into_the_source(tmp_path: Path, config: RunConfig) -> None:
    save_file(
        {
            "first.weight": torch.full((2, 1, 3, 3), 2 / 9),
            "first.bias": torch.zeros(2),
            "second.weight": torch.full((1, 2, 3, 3), 1 / 18),
            "second.bias": torch.zeros(1),
        },
        tmp_path / "w.safetensors",
    )
    given = with_teacher(config, weights=str(tmp_path / "w.safetensors"))
    make_teacher(given, tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher", attention_size=4)
    torch.testing.assert_close(teacher.logits(torch.ones(1, 1, 8, 8)), torch.tensor([[-1.5, 1.5]]))
    make_teacher(config, tmp_path / "teacher")  # without them it is another teacher
    teacher = load_teacher(tmp_path / "teacher", attention_size=4)
    torch.testing.assert_close(teacher.logits(torch.ones(1, 1, 8, 8)), torch.tensor([[-0.5, 0.5]]))


def test_layers_and_judged_images_can_be_set(tmp_path: Path, config: RunConfig) -> None:
    result = make_teacher(
        with_teacher(config, layers=("first", "relu*"), judged_images=5), tmp_path / "teacher"
    )
    assert (result.n, result.layers) == (5, 3)
    card = read_json(tmp_path / "teacher" / "teacher.json", TeacherCard)
    assert card.layers == ("first", "relu#1", "relu#2")


def test_the_precision_is_chosen_once_and_kept(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices: Any = iter(["bf16", "fp32"])

    def choose(teacher: object, images: torch.Tensor) -> PrecisionChoice:
        assert len(images) == 8  # all that there are to validate on
        return PrecisionChoice(precision=next(choices), reason="a test said so")

    monkeypatch.setattr("hwnas.distill.teacher_precision.choose_precision", choose)
    said = Said()
    for _ in range(2):
        result = make_teacher(config, tmp_path / "teacher", progress=said)
        assert result.precision == "bf16"
        assert load_teacher(tmp_path / "teacher", attention_size=4).precision == "bf16"
    assert "teacher: computes in bf16: a test said so" in said.lines
    asked = make_teacher(with_teacher(config, precision="bf16"), tmp_path / "asked")
    assert asked.precision == "bf16"


def test_a_teacher_near_chance_is_doubted(tmp_path: Path, config: RunConfig, code: Path) -> None:
    said = Said()
    result = make_teacher(
        with_teacher(config, source=f"{code}:Backward"), tmp_path / "teacher", progress=said
    )
    assert result.clean_accuracy == 0.0
    (doubt,) = (line for line in said.lines if line.startswith("warning: "))
    assert "0.0% of the validation images" in doubt
    assert "chance is 50.0%" in doubt


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"source": "CODE:Nett"}, ConfigError, "there is no `Nett`"),
        ({"source": "CODE:three"}, ConfigError, "tells 3 classes apart, the data has 2"),
        ({"source": "CODE:larger"}, ConfigError, "cannot take images of 1x8x8"),
        ({"source": "CODE:Verbose"}, ConfigError, "a dict of 'logits' instead of logits"),
        ({"source": "CODE:flat"}, ConfigError, "no usable feature maps"),
        ({"layers": ("frist",)}, ConfigError, "runs no layer `frist`"),
        ({"weights": "CODE"}, ArtifactError, "is no safetensors file"),
        ({"weights": "nowhere"}, InputFileError, "nowhere cannot be read"),
    ],
)
def test_a_network_that_cannot_teach_leaves_nothing(
    tmp_path: Path,
    config: RunConfig,
    code: Path,
    changes: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    given = {
        key: value.replace("CODE", str(code)) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(error, match=says):
        make_teacher(with_teacher(config, **given), tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()


def test_our_own_weights_need_no_source(tmp_path: Path, config: RunConfig) -> None:
    own = replace(
        config, teacher=TeacherConfig(width=4, blocks=(1, 1), epochs=1, batch=8, attack_steps=1)
    )
    trained = make_teacher(own, tmp_path / "trained")
    assert (trained.trained, trained.source, trained.layers) == (True, "", 5)
    weights = str(tmp_path / "trained" / "weights.safetensors")
    taken = make_teacher(with_teacher(own, weights=weights), tmp_path / "taken")
    assert taken.trained is False
    assert (taken.clean_accuracy, taken.n) == (trained.clean_accuracy, trained.n)
    card = read_json(tmp_path / "taken" / "teacher.json", TeacherCard)
    assert card.network == TeacherSpec(image_shape=(1, 8, 8), classes=2, width=4, blocks=(1, 1))
