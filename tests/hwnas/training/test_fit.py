"""What teachers' and students' trainings share, on a small teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import hwnas.training.fit as fit_module
from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT
from hwnas.data.sources import DataConfig
from hwnas.robustness.evaluate import Accuracy
from hwnas.robustness.threat import ThreatModel
from hwnas.training.figures import accuracy, fgsm_accuracy, pgd_accuracy
from hwnas.training.student import TrainConfig
from hwnas.training.teacher import TeacherConfig, train_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from hwnas.core.progress import Progress
    from hwnas.data.images import ImageData
    from hwnas.distill.teacher_network import TeacherNetwork
    from hwnas.training.loop import Figures

pytestmark = pytest.mark.usefixtures("one_thread")

THREAT = ThreatModel(eps="16/255")
CONFIG = TeacherConfig(
    width=4, blocks=(1, 1), epochs=3, batch=32, attack_steps=2, held_out_images=24, held_out_steps=2
)
RECIPE = replace(
    CONFIG,
    robust="fast-at",
    optimizer="sgd",
    learning_rate=0.1,
    weight_decay=5e-4,
    averaging=0.9,
    keep="best",
    label_smoothing=0.1,
    gradient_clip=1.0,
    training_precision="bf16",
)
"""Everything that a training can do at once."""


def train(
    data: ImageData,
    checkpoint: Path,
    config: TeacherConfig = CONFIG,
    *,
    threat: ThreatModel = THREAT,
    **given: Any,
) -> tuple[TeacherNetwork, list[Figures]]:
    network, _, history = train_teacher(
        data, DataConfig(), threat, config, seed=0, checkpoint=checkpoint, **given
    )
    return network, history


def same_state(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Scores:
    """Stands in for the accuracies that a training measures on held-out images."""

    def __init__(self, pgd: list[float], fgsm: float = 0.5) -> None:
        self.calls = 0
        self.pgd, self.fgsm = pgd, fgsm

    def install(self, patch: pytest.MonkeyPatch, *, per_epoch: int) -> None:
        def under_pgd(*_: Any, **__: Any) -> Accuracy:
            score = self.pgd[min(self.calls // per_epoch, len(self.pgd) - 1)]
            self.calls += 1
            return Accuracy.from_counts(round(200 * score), 200)

        def under_fgsm(*_: Any, **__: Any) -> Accuracy:
            return Accuracy.from_counts(round(200 * self.fgsm), 200)

        patch.setattr(fit_module, "pgd_accuracy", under_pgd)
        patch.setattr(fit_module, "fgsm_accuracy", under_fgsm)


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as context:
        yield context


# Three steps an epoch: within epochs and right before an epoch is kept.
@pytest.mark.parametrize("step", [2, 4, 8])
def test_averages_best_weights_and_guard_survive_an_interruption(
    few_digits: ImageData,
    tmp_path: Path,
    interrupted_after: Callable[[int], Progress],
    patch: pytest.MonkeyPatch,
    step: int,
) -> None:
    def scores() -> Scores:
        # The second epoch collapses; the best is the first.
        found = Scores([0.45, 0.01, 0.40], fgsm=0.6)
        found.install(patch, per_epoch=2)
        return found

    scores()
    whole, expected = train(few_digits, tmp_path / "whole", RECIPE)
    assert [each["went_back"] for each in expected] == [0, 1, 0]
    cut = scores()
    with pytest.raises(KeyboardInterrupt):
        train(few_digits, tmp_path / "cut", RECIPE, progress=interrupted_after(step))
    cut.calls = 2 * (step // 3)  # an epoch that was cut short is judged again
    torch.manual_seed(step)  # the global generator must not matter
    network, history = train(few_digits, tmp_path / "cut", RECIPE)
    assert history == expected
    assert same_state(network, whole)


class Listener:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.task = SILENT.task

    def say(self, message: str) -> None:
        self.said.append(message)


def test_a_collapse_takes_the_training_back_and_says_so(
    few_digits: ImageData,
    tmp_path: Path,
    interrupted_after: Callable[[int], Progress],
    patch: pytest.MonkeyPatch,
) -> None:
    config = replace(CONFIG, robust="fast-at", epochs=2)
    Scores([0.4], fgsm=0.5).install(patch, per_epoch=2)
    with pytest.raises(KeyboardInterrupt):
        train(few_digits, tmp_path / "c", config, progress=interrupted_after(4))
    good = torch.load(tmp_path / "c", weights_only=True)["parts"]["network"]
    Scores([0.0], fgsm=0.8).install(patch, per_epoch=2)
    listener = Listener()
    network, history = train(few_digits, tmp_path / "c", config, progress=listener)
    assert [each["guard_level"] for each in history] == [0, 1]
    assert [each["went_back"] for each in history] == [0, 1]
    assert (history[1]["guard_fgsm"], history[1]["guard_pgd"]) == (0.8, 0.0)
    assert all(torch.equal(value, good[name]) for name, value in network.state_dict().items())
    told = [line for line in listener.said if "overfitted" in line]
    assert len(told) == 1
    assert "epoch 2 overfitted to n-fgsm with noise 2 eps" in told[0]
    assert "against n-fgsm with noise 3 eps" in told[0]


def test_an_unguarded_training_goes_on_whatever_happens(
    few_digits: ImageData, tmp_path: Path, patch: pytest.MonkeyPatch
) -> None:
    Scores([0.4, 0.0], fgsm=0.8).install(patch, per_epoch=1)
    config = replace(CONFIG, robust="fast-at", guard=False, epochs=2)
    _, history = train(few_digits, tmp_path / "c", config)
    assert "guard_level" not in history[0]
    assert history[1]["pgd_accuracy"] == 0.0


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_the_best_epoch_is_what_training_gives(
    few_digits: ImageData, tmp_path: Path, patch: pytest.MonkeyPatch, averaging: float
) -> None:
    config = replace(CONFIG, keep="best", averaging=averaging)
    Scores([0.2, 0.5, 0.3]).install(patch, per_epoch=1)
    network, history = train(few_digits, tmp_path / "c", config)
    pixels, labels = few_digits.validation.pixels(), few_digits.validation.labels
    assert accuracy(network, pixels, labels) == history[1]["validation_accuracy"]
    Scores([0.2, 0.5, 0.6]).install(patch, per_epoch=1)
    last, _ = train(few_digits, tmp_path / "d", config)
    assert not same_state(network, last)


def test_training_ends_when_no_better_epoch_comes(
    few_digits: ImageData, tmp_path: Path, patch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, keep="best", patience=2, epochs=9)
    Scores([0.2, 0.5, 0.5, 0.4, 0.9]).install(patch, per_epoch=1)
    network, history = train(few_digits, tmp_path / "c", config)
    assert len(history) == 4
    # Started again, it is as finished as it was.
    again, same = train(few_digits, tmp_path / "c", config)
    assert same == history
    assert same_state(network, again)


def test_an_average_differs_from_the_last_weights_and_is_judged_itself(
    few_digits: ImageData, tmp_path: Path
) -> None:
    plain, history = train(few_digits, tmp_path / "a")
    averaged, judged = train(few_digits, tmp_path / "b", replace(CONFIG, averaging=0.95))
    assert [each["loss"] for each in history] == [each["loss"] for each in judged]
    assert not same_state(plain, averaged)
    pixels, labels = few_digits.validation.pixels(), few_digits.validation.labels
    assert judged[-1]["validation_accuracy"] == accuracy(averaged, pixels, labels)


def test_figures_under_attack_are_in_the_history(few_digits: ImageData, tmp_path: Path) -> None:
    network, history = train(few_digits, tmp_path / "c")
    held_out = few_digits.validation.subset(24, torch.Generator().manual_seed(0))
    expected = pgd_accuracy(network, held_out, THREAT.eps_pixels, steps=2, seed=0)
    assert history[-1]["pgd_accuracy"] == expected.value
    assert expected.n == 24
    _, quiet = train(few_digits, tmp_path / "d", replace(CONFIG, held_out_images=0))
    _, plain = train(few_digits, tmp_path / "e", replace(CONFIG, robust="none"))
    assert set(quiet[0]) == set(plain[0]) == {"loss", "validation_accuracy"}
    # Judging draws nothing from what training draws from.
    assert [each["loss"] for each in quiet] == [each["loss"] for each in history]


def test_more_steps_and_more_eps_leave_less_accuracy(few_digits: ImageData, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=6, robust="none", learning_rate=2e-2)
    network, _ = train(few_digits, tmp_path / "c", config)
    split, eps = few_digits.validation, THREAT.eps_pixels
    clean = accuracy(network, split.pixels(), split.labels)
    one = fgsm_accuracy(network, split, eps)
    many = pgd_accuracy(network, split, eps, steps=8, seed=0)
    everything = pgd_accuracy(network, split, type(eps)(0.9), steps=8, seed=0)
    assert clean >= one.value >= many.value >= everything.value
    assert clean > everything.value


def test_low_precision_trains_to_about_the_same(few_digits: ImageData, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=2)
    full, history = train(few_digits, tmp_path / "a", config)
    low, rounded = train(few_digits, tmp_path / "b", replace(config, training_precision="bf16"))
    assert not same_state(full, low)
    assert rounded[-1]["loss"] == pytest.approx(history[-1]["loss"], rel=0.05)
    assert all(each.dtype == torch.float32 for each in low.parameters())


def test_a_gradient_that_is_too_long_is_cut(few_digits: ImageData, tmp_path: Path) -> None:
    config = replace(CONFIG, optimizer="sgd", learning_rate=50.0, momentum=0.0, epochs=1)
    clipped, _ = train(few_digits, tmp_path / "a", replace(config, gradient_clip=1e-4))
    moved = replace(config, learning_rate=1e-9)
    still, _ = train(few_digits, tmp_path / "b", moved)
    # Three steps of at most 50 x 1e-4 each, and decay.
    pairs = zip(clipped.parameters(), still.parameters(), strict=True)
    assert all((a - b).norm() < 3 * 50 * (1e-4 + 5e-3 * b.norm()) for a, b in pairs)


@pytest.mark.parametrize(
    "threat", [ThreatModel(norm="l2", eps=0.5), ThreatModel(protocol="normalized")]
)
def test_other_threats_than_linf_pixels_are_refused(
    few_digits: ImageData, tmp_path: Path, threat: ThreatModel
) -> None:
    with pytest.raises(ConfigError, match="robust training is against l_inf perturbations"):
        train(few_digits, tmp_path / "c", threat=threat)
    # Training without attacks looks at no threat.
    train(few_digits, tmp_path / "d", replace(CONFIG, robust="none", epochs=1), threat=threat)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"robust": "fast_at"}, "no robust training `fast_at`\n.*did you mean `fast-at`"),
        ({"patience": 3}, "`patience` .3. waits for a better epoch, but `keep` is"),
        ({"patience": -1}, "`patience` is at least 0"),
        ({"keep": "best", "robust": "none"}, "which is not measured: `robust` is none"),
        ({"keep": "best", "held_out_images": 0}, "not measured: `held_out_images` is 0"),
        ({"robust": "fast-at", "held_out_images": 0}, "the `guard` of fast-at looks at"),
        ({"held_out_images": -1}, "`held_out_images` is at least 0"),
        ({"held_out_steps": 0}, "`held_out_steps` is at least 1"),
        ({"averaging": 1.0}, "`averaging` is at least 0 and less than 1"),
        ({"momentum": float("nan")}, "`momentum` is at least 0 and less than 1"),
        ({"warmup": 1.0}, "`warmup` is at least 0 and less than 1"),
        ({"gradient_clip": -1.0}, "`gradient_clip` is a number of at least 0"),
        ({"fast_step": 1.0, "robust": "trades"}, "settings of fast-at, but `robust` is trades"),
    ],
)
@pytest.mark.parametrize("kind", [TeacherConfig, TrainConfig])
def test_settings_that_contradict_each_other_are_refused(
    kind: type[TeacherConfig | TrainConfig], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        kind(**changes)


@pytest.mark.parametrize("robust", ["ard", "rslad"])
def test_a_teacher_has_no_teacher(robust: Any) -> None:
    with pytest.raises(ConfigError, match=f"`{robust}` learns from a teacher's predictions"):
        TeacherConfig(robust=robust)
