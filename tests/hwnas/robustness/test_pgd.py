from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hwnas.core.errors import ConfigError, DataError
from hwnas.robustness.pgd import attack_in_batches, fgsm, perturb, pgd
from hwnas.robustness.threat import Eps, ThreatModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tests.hwnas.robustness.conftest import Problem

    Attack = Callable[[nn.Module, Tensor, Tensor, Eps, int], Tensor]

EPS = Eps(0.06)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def _pgd(model: nn.Module, images: Tensor, labels: Tensor, eps: Eps, steps: int) -> Tensor:
    return pgd(model, images, labels, eps=eps, steps=steps, generator=seeded())


def _pgd_margin(model: nn.Module, images: Tensor, labels: Tensor, eps: Eps, steps: int) -> Tensor:
    return pgd(
        model, images, labels, eps=eps, steps=steps, generator=seeded(), loss="margin", restarts=2
    )


def _pgd_to_the_end(
    model: nn.Module, images: Tensor, labels: Tensor, eps: Eps, steps: int
) -> Tensor:
    return pgd(
        model, images, labels, eps=eps, steps=steps, generator=seeded(), stop_when_broken=False
    )


def _perturb(model: nn.Module, images: Tensor, labels: Tensor, eps: Eps, steps: int) -> Tensor:
    return perturb(model, images, labels, eps=eps, steps=steps, generator=seeded())


def _fgsm(model: nn.Module, images: Tensor, labels: Tensor, eps: Eps, steps: int) -> Tensor:
    return fgsm(model, images, labels, eps=eps)


ATTACKS = pytest.mark.parametrize(
    "attack", [_pgd, _pgd_margin, _pgd_to_the_end, _perturb, _fgsm], ids=lambda f: f.__name__
)


@ATTACKS
def test_an_attack_lowers_accuracy_within_its_ball(problem: Problem, attack: Attack) -> None:
    images, labels = problem.tensors(200)
    attacked = attack(problem.model, images, labels, EPS, 10)
    assert accuracy(problem.model, attacked, labels) < accuracy(problem.model, images, labels) - 0.2
    assert float((attacked - images).abs().max()) <= EPS + 1e-6
    assert 0 <= float(attacked.min()) <= float(attacked.max()) <= 1
    assert not attacked.requires_grad


@ATTACKS
def test_an_attack_of_no_size_changes_nothing(problem: Problem, attack: Attack) -> None:
    images, labels = problem.tensors(32)
    assert torch.equal(attack(problem.model, images, labels, Eps(0.0), 3), images)


@ATTACKS
def test_an_attack_leaves_images_gradients_and_modes_alone(
    problem: Problem, attack: Attack
) -> None:
    images, labels = problem.tensors(32)
    before = images.clone()
    modes = [part.training for part in problem.model.modules()]
    attack(problem.model, images, labels, EPS, 2)
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert all(p.grad is None and p.requires_grad for p in problem.model.parameters())
    assert [part.training for part in problem.model.modules()] == modes


@ATTACKS
def test_one_seed_gives_one_result(problem: Problem, attack: Attack) -> None:
    images, labels = problem.tensors(64)
    state = torch.random.get_rng_state()
    first = attack(problem.model, images, labels, EPS, 3)
    assert torch.equal(attack(problem.model, images, labels, EPS, 3), first)
    assert torch.equal(torch.random.get_rng_state(), state)


@ATTACKS
def test_an_attack_works_where_gradients_are_off(problem: Problem, attack: Attack) -> None:
    images, labels = problem.tensors(16)
    expected = attack(problem.model, images, labels, EPS, 2)
    with torch.no_grad():
        assert torch.equal(attack(problem.model, images, labels, EPS, 2), expected)


@ATTACKS
@pytest.mark.parametrize("pixel", [-0.5, 2.0, torch.nan])
def test_images_out_of_range_are_refused(problem: Problem, attack: Attack, pixel: float) -> None:
    images, labels = problem.tensors(4)
    images = images.clone()
    images[0, 0, 0, 0] = pixel
    with pytest.raises(DataError, match=r"pixels in \[0, 1\]"):
        attack(problem.model, images, labels, EPS, 2)


def test_perturb_leaves_a_training_model_in_training() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2)).train()
    images, labels = torch.rand(8, 3, 2, 2, generator=seeded()), torch.zeros(8, dtype=torch.int64)
    perturb(model, images, labels, eps=EPS, steps=1, generator=seeded())
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("attack", [perturb, pgd])
def test_no_steps_are_refused(problem: Problem, attack: Callable[..., Tensor]) -> None:
    images, labels = problem.tensors(4)
    with pytest.raises(ConfigError, match="at least 1 step"):
        attack(problem.model, images, labels, eps=EPS, steps=0, generator=seeded())


def test_a_stronger_attack_does_not_raise_accuracy(problem: Problem) -> None:
    images, labels = problem.tensors(200)

    def under(eps: float, steps: int, restarts: int = 1) -> float:
        attacked = pgd(
            problem.model, images, labels, eps=Eps(eps), steps=steps, restarts=restarts,
            generator=seeded(),
        )  # fmt: skip
        return accuracy(problem.model, attacked, labels)

    assert under(0.03, 20) <= under(0.03, 5) <= under(0.03, 1)
    assert under(0.03, 5, restarts=3) <= under(0.03, 5)
    assert under(0.5, 20) == 0 < under(0.03, 20) < under(0.01, 20)


def test_a_point_that_was_not_stopped_has_the_higher_loss(problem: Problem) -> None:
    images, labels = problem.tensors(64)
    losses = [
        functional.cross_entropy(
            problem.model(attack(problem.model, images, labels, EPS, 10)), labels
        )
        for attack in (_pgd, _pgd_to_the_end)
    ]
    assert losses[1].item() > losses[0].item()


def test_broken_samples_are_worked_on_no_further(problem: Problem) -> None:
    images, labels = problem.tensors(100)
    seen: list[int] = []
    handle = problem.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        pgd(problem.model, images, labels, eps=Eps(0.3), steps=20, restarts=3, generator=seeded())
    finally:
        handle.remove()
    assert seen[0] == 100  # the images as they are
    assert seen == sorted(seen, reverse=True)
    assert len(seen) < 20  # all were broken before the end, so later restarts had nothing to do


def test_the_attacked_accuracy_is_never_above_the_clean_one() -> None:
    # An untrained network is wrong by chance on most; an attack must not repair any of it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    images = torch.rand(100, 3, 2, 2, generator=seeded())
    labels = torch.randint(0, 4, (100,), generator=seeded())
    wrong = model(images).argmax(1) != labels
    attacked = pgd(
        model, images, labels, eps=EPS, steps=3, generator=seeded(), stop_when_broken=False
    )
    assert bool((model(attacked).argmax(1) != labels)[wrong].all())


def test_nan_logits_count_as_broken() -> None:
    class Brittle(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            level = images.mean((1, 2, 3))
            return torch.stack([level.where(level <= 0.5, torch.nan), -level], 1)

    images = torch.full((4, 1, 2, 2), 0.49)
    labels = torch.zeros(4, dtype=torch.int64)
    points = pgd(
        Brittle(), images, labels, eps=Eps(0.1), steps=4, noise=0.0, generator=seeded(),
        loss=lambda logits: logits[:, 0],
    )  # fmt: skip
    assert bool(Brittle()(points)[:, 0].isnan().all())


def test_a_loss_may_be_a_function_of_the_logits(problem: Problem) -> None:
    images, labels = problem.tensors(64)
    with torch.no_grad():
        target = problem.model(images).softmax(1)

    def divergence(logits: Tensor) -> Tensor:
        return functional.kl_div(logits.log_softmax(1), target, reduction="none").sum(1)

    for attack in (perturb, pgd):
        attacked = attack(
            problem.model, images, labels, eps=EPS, steps=5, generator=seeded(), loss=divergence
        )
        assert divergence(problem.model(attacked)).mean().item() > 0.1
        assert accuracy(problem.model, attacked, labels) < 0.9


def test_n_fgsm_may_leave_the_ball_but_not_the_pixels(problem: Problem) -> None:
    images, labels = problem.tensors(64)
    attacked = perturb(
        problem.model, images, labels, eps=EPS, steps=1, step_size=EPS, noise=2.0, project=False,
        generator=seeded(),
    )  # fmt: skip
    reach = float((attacked - images).abs().max())
    assert EPS < reach <= 3 * EPS + 1e-6
    assert 0 <= float(attacked.min()) <= float(attacked.max()) <= 1


def test_a_data_set_is_attacked_in_eval_mode_and_the_mode_given_back(problem: Problem) -> None:
    problem.model.train()
    try:
        statistics = [b.clone() for b in problem.model.buffers()]
        threat = ThreatModel(eps=0.06, steps=5)
        attacked = [
            attack_in_batches(
                problem.model, problem.images, problem.labels, threat, batch=64, seed=0
            )
            for _ in range(2)
        ]
        assert problem.model.training
        assert all(map(torch.equal, statistics, problem.model.buffers()))
    finally:
        problem.model.eval()
    np.testing.assert_array_equal(attacked[0], attacked[1])
    labels = torch.from_numpy(problem.labels)
    assert accuracy(problem.model, torch.from_numpy(attacked[0]), labels) < 0.8


def test_only_pixels_are_trained_and_verified_by(problem: Problem) -> None:
    threat = ThreatModel(protocol="normalized")
    with pytest.raises(ConfigError, match="hwnas attack"):
        attack_in_batches(problem.model, problem.images, problem.labels, threat, batch=64, seed=0)


def test_a_data_set_is_attacked_in_the_threat_models_norm(problem: Problem) -> None:
    threat = ThreatModel(norm="l2", eps=1.2, steps=5)
    images, labels = problem.images[:32], problem.labels[:32]
    points = attack_in_batches(problem.model, images, labels, threat, batch=16, seed=0)
    sizes = np.linalg.norm((points - images).reshape(32, -1), axis=1)
    assert 0.5 < sizes.max() <= 1.2 * (1 + 1e-5)
