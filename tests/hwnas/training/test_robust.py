"""The losses of robust training, one by one."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.core.errors import ConfigError
from hwnas.distill.losses import kl_to_teacher
from hwnas.robustness.threat import Eps
from hwnas.training.robust import (
    NEEDS_TEACHER,
    ROBUST_METHODS,
    TAKES_BOTH,
    RobustMethod,
    RobustSettings,
    check_method,
    check_robust_settings,
    robust_loss,
)

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = Eps(8 / 255)
METHODS: tuple[RobustMethod, ...] = get_args(RobustMethod)
assert METHODS[0] == "none"  # the one that attacks nothing


class Watched(nn.Module):
    """A small network that remembers what it was called with, and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)
        )
        self.calls: list[tuple[bool, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append((self.training, images.detach().clone()))
        logits: Tensor = self.layers(images)
        return logits


class Batch:
    """A network, images, labels and a teacher's predictions."""

    def __init__(self, count: int = 12) -> None:
        generator = torch.Generator().manual_seed(3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = Watched()
        # Away from 0 and 1, so that no clamp stands between a step and its length.
        self.images = 0.3 + 0.4 * torch.rand(count, 1, 8, 8, generator=generator)
        self.labels = torch.randint(4, (count,), generator=generator)
        self.teacher = 3 * torch.randn(count, 4, generator=generator)

    def loss(self, method: RobustMethod, eps: Eps = EPS, seed: int = 0, **settings: Any) -> Tensor:
        return robust_loss(
            method,
            self.network,
            self.network.train,
            self.images,
            self.labels,
            self.teacher if method in (*NEEDS_TEACHER, "none") else None,
            settings=RobustSettings(**settings),
            eps=eps,
            generator=torch.Generator().manual_seed(seed),
        )


@pytest.mark.parametrize("method", METHODS)
def test_there_is_one_loss_per_image_and_steps_down_it_lower_it(method: RobustMethod) -> None:
    batch = Batch()
    optimizer = torch.optim.SGD(batch.network.parameters(), lr=0.05)
    losses = []
    for _ in range(12):
        each = batch.loss(method, ard_temperature=2.0)
        assert each.shape == (12,)
        assert each.isfinite().all()
        optimizer.zero_grad()
        each.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(each.mean().detach()))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("method", METHODS[1:])
def test_an_attack_raises_what_is_trained_on(method: RobustMethod) -> None:
    batch = Batch()
    calm = batch.loss(method, Eps(0.0), ard_temperature=1.0).mean()
    assert batch.loss(method, ard_temperature=1.0).mean() > calm + 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_the_attack_sees_eval_mode_and_the_last_pass_trains(method: RobustMethod) -> None:
    batch = Batch()
    batch.loss(method)
    *attacks, (trained, images) = batch.network.calls
    assert trained
    assert not any(training for training, _ in attacks)
    assert bool(attacks) == (method != "none")
    assert len(images) == (24 if method in TAKES_BOTH else 12)
    if method in TAKES_BOTH or method == "none":
        assert torch.equal(images[:12], batch.images)


@pytest.mark.parametrize("method", METHODS)
def test_a_mode_that_is_left_alone_stays(method: RobustMethod) -> None:
    batch = Batch()
    batch.network.train()
    robust_loss(
        method,
        batch.network,
        lambda training: None,
        batch.images,
        batch.labels,
        batch.teacher,
        settings=RobustSettings(),
        eps=EPS,
        generator=torch.Generator().manual_seed(0),
    )
    assert all(training for training, _ in batch.network.calls)


@pytest.mark.parametrize("method", METHODS)
def test_no_gradient_of_the_attack_is_left_in_the_weights(method: RobustMethod) -> None:
    batch = Batch()
    batch.loss(method)
    assert all(each.grad is None for each in batch.network.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_the_generator_decides(method: RobustMethod) -> None:
    first, again, other = (Batch().loss(method, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (method == "none")


@pytest.mark.parametrize("method", ["pgd-at", "trades", "ard", "rslad"])
def test_what_is_trained_on_lies_in_the_ball(method: RobustMethod) -> None:
    batch = Batch()
    batch.loss(method)
    adversarial = batch.network.calls[-1][1][-12:]
    assert (adversarial - batch.images).abs().max() <= EPS + 1e-6


@pytest.mark.parametrize(
    ("variant", "noise", "step", "farthest"),
    [("n-fgsm", 0.0, 0.0, 3.0), ("fgsm-rs", 0.0, 0.0, 1.0), ("n-fgsm", 1.0, 0.5, 1.5)],
)
def test_the_single_step_goes_as_far_as_its_variant_says(
    variant: Any, noise: float, step: float, farthest: float
) -> None:
    batch = Batch(count=64)
    batch.loss("fast-at", fast_variant=variant, fast_noise=noise, fast_step=step)
    (_, start), (_, end) = batch.network.calls  # one gradient, one pass that is trained on
    moved = (end - batch.images).abs().max() / EPS
    assert 0.9 * farthest < moved <= farthest + 1e-4
    if variant == "n-fgsm":  # nothing is cut off: all pixels move by the whole step
        length = (step or 1.0) * EPS
        assert torch.allclose((end - start).abs(), torch.tensor(length), atol=1e-6)


def test_the_losses_are_those_of_the_papers() -> None:
    """At eps 0 both halves are the clean images, so each loss can be written down."""
    batch = Batch()
    none = {method: batch.loss(method, Eps(0.0), ard_temperature=2.0) for method in METHODS}
    half = batch.loss("ard", Eps(0.0), ard_temperature=2.0, ard_weight=0.5)
    smooth = batch.loss("pgd-at", Eps(0.0), label_smoothing=0.2)
    logits = batch.network.train()(batch.images)
    labels = functional.cross_entropy(logits, batch.labels, reduction="none")
    taught = kl_to_teacher(logits, batch.teacher)
    softened = 4.0 * kl_to_teacher(logits / 2.0, batch.teacher / 2.0)
    flat = -functional.log_softmax(logits, dim=1).mean(1)
    expected = {
        "none": labels + taught,
        "fast-at": labels,
        "pgd-at": labels,
        "trades": labels,
        "ard": softened,
        "rslad": taught,
    }
    for method, loss in none.items():
        assert torch.allclose(loss, expected[method], atol=1e-4), method
    assert torch.allclose(half, 0.5 * softened + 0.5 * labels, atol=1e-4)
    assert torch.allclose(smooth, 0.8 * labels + 0.2 * flat, atol=1e-4)


def test_the_teachers_predictions_are_weighed_beside_labels() -> None:
    batch = Batch()
    none, half, whole = (batch.loss("none", kl_weight=weight) for weight in (0.0, 0.5, 1.0))
    logits = batch.network.train()(batch.images)
    labels = functional.cross_entropy(logits, batch.labels, reduction="none")
    torch.testing.assert_close(none, labels)
    torch.testing.assert_close(whole - none, kl_to_teacher(logits, batch.teacher))
    torch.testing.assert_close(half - none, 0.5 * (whole - none))


def test_beta_weighs_the_divergence_of_trades() -> None:
    calm, weak, strong = (
        Batch().loss("trades", trades_beta=beta).mean().item() for beta in (0.0, 1.0, 6.0)
    )
    assert calm < weak
    assert strong - calm == pytest.approx(6 * (weak - calm), rel=1e-3)


@pytest.mark.parametrize("method", NEEDS_TEACHER)
def test_distillation_without_a_teacher_is_refused(method: RobustMethod) -> None:
    batch = Batch()
    with pytest.raises(ConfigError, match=f"`{method}` learns from a teacher"):
        robust_loss(
            method,
            batch.network,
            batch.network.train,
            batch.images,
            batch.labels,
            None,
            settings=RobustSettings(),
            eps=EPS,
            generator=torch.Generator(),
        )


@pytest.mark.parametrize(
    ("name", "says"), [("trade", "did you mean `trades`"), ("xyz", ", ".join(ROBUST_METHODS))]
)
def test_an_unknown_method_is_refused_with_the_nearest(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_method(name, has_teacher=True)


@pytest.mark.parametrize(
    ("method", "changes", "says"),
    [
        ("pgd-at", {"attack_steps": 0}, "`attack_steps` is at least 1"),
        ("fast-at", {"fast_variant": "fgsm"}, "`fast_variant` is n-fgsm or fgsm-rs"),
        ("fast-at", {"fast_noise": -1.0}, "`fast_noise` is a number of at least 0"),
        ("fast-at", {"fast_step": float("nan")}, "`fast_step` is a number of at least 0"),
        ("trades", {"trades_beta": -1.0}, "`trades_beta`"),
        ("none", {"kl_weight": -1.0}, "`kl_weight` is a number of at least 0"),
        ("ard", {"ard_weight": 1.5}, "`ard_weight` is a share"),
        ("ard", {"ard_temperature": 0.0}, "`ard_temperature` is positive"),
        ("pgd-at", {"label_smoothing": 1.0}, "`label_smoothing` is at least 0 and less"),
        ("pgd-at", {"fast_noise": 1.0}, "settings of fast-at, but `robust` is pgd-at"),
        ("rslad", {"label_smoothing": 0.1}, "`rslad` learns from none"),
        ("ard", {"label_smoothing": 0.1}, "`ard_weight` below 1"),
    ],
)
def test_settings_that_contradict_are_refused(
    method: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        check_robust_settings(RobustSettings(**changes), method)
