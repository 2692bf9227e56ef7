"""An honest model passes every check of an evaluation; each way to mask gradients fails some."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.robustness.attacks.table import run_attacks
from hwnas.robustness.checks import evaluation_checks
from hwnas.robustness.criteria import (
    black_box_check,
    iterative_check,
    judged,
    noise_check,
    slack_of,
)
from hwnas.robustness.signs import noisy_images, with_larger_eps, without_bound
from hwnas.robustness.threat import ThreatModel

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from hwnas.robustness.criteria import Check
    from hwnas.robustness.square import Predict
    from tests.hwnas.robustness.conftest import Problem

THREAT = ThreatModel(eps=0.08, steps=8)
N = 120


class Signs(nn.Module):
    """A network that sees its input in coarse steps: no gradient passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(torch.round(images * 16) / 16 + 0 * images)
        return logits


class Scaled(nn.Module):
    """A network whose logits are so large that the cross-entropy underflows."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images) * 1e5
        return logits


class Backward(nn.Module):
    """A network whose gradients point the other way."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(2 * images.detach() - images)
        return logits


class Noisy(nn.Module):
    """A network that breaks its own gradients by noise."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        ripple = torch.sin(images * 4e4) * 2e-2  # steep, small, and changing everywhere
        logits: Tensor = self.network(images + ripple)
        return logits


def checks_of(
    model: nn.Module | Predict,
    problem: Problem,
    *attacks: str,
    threat: ThreatModel = THREAT,
    state: Path | None = None,
) -> dict[str, Check]:
    images, labels = problem.images[:N], problem.labels[:N]
    outcome = run_attacks(
        model, images, labels, threat, attacks=attacks, seed=0, batch=64, queries=200
    )
    found = evaluation_checks(
        model, images, labels, threat, outcome, batch=64, seed=0, samples=60, queries=200,
        state=state,
    )  # fmt: skip
    return {check.name: check for check in found}


def failed(found: dict[str, Check]) -> set[str]:
    return {name for name, check in found.items() if not check.passed}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_honest_model_passes_every_check(problem: Problem, norm: str) -> None:
    threat = THREAT if norm == "linf" else ThreatModel(norm="l2", eps=0.8, steps=8)
    found = checks_of(problem.model, problem, "fgsm", "pgd", "apgd-ce", "square", threat=threat)
    assert failed(found) == set()
    assert list(found) == [
        "more_steps", "larger_eps", "unbounded_eps", "attack_beats_noise",
        "iterative_beats_single_step", "black_box_gap",
    ]  # fmt: skip


def test_a_model_that_quantizes_its_input_is_found_out(problem: Problem) -> None:
    found = checks_of(Signs(problem.model), problem, "fgsm", "pgd", "square")
    assert {"unbounded_eps", "black_box_gap"} <= failed(found)


def test_an_attack_that_goes_the_wrong_way_is_weaker_than_noise(problem: Problem) -> None:
    large = replace(THREAT, eps=0.4)
    found = checks_of(Backward(problem.model), problem, "fgsm", threat=large)
    assert {"unbounded_eps", "attack_beats_noise"} <= failed(found)
    assert "fgsm" in found["attack_beats_noise"].meaning
    assert checks_of(problem.model, problem, "fgsm", threat=large)["attack_beats_noise"].passed


def test_a_model_of_huge_logits_is_found_out(problem: Problem) -> None:
    found = checks_of(Scaled(problem.model), problem, "fgsm", "pgd", "square")
    assert {"unbounded_eps", "black_box_gap"} <= failed(found)


def test_a_model_of_rippled_gradients_is_found_out(problem: Problem) -> None:
    assert failed(checks_of(Noisy(problem.model), problem, "fgsm", "pgd", "square"))


def test_a_black_box_is_checked_by_what_its_scores_allow(problem: Problem) -> None:
    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            logits: NDArray[np.float32] = problem.model(torch.from_numpy(images)).numpy()
        return logits

    found = checks_of(predict, problem, "square")
    assert list(found) == ["more_steps", "larger_eps", "unbounded_eps", "attack_beats_noise"]
    assert failed(found) == set()


def test_without_square_in_the_table_a_black_box_is_tried_on_a_few(problem: Problem) -> None:
    found = checks_of(problem.model, problem, "fgsm", "pgd")
    assert found["black_box_gap"].passed
    masked = checks_of(Signs(problem.model), problem, "fgsm", "pgd")
    assert not masked["black_box_gap"].passed


def test_an_eps_of_nothing_has_no_checks(problem: Problem) -> None:
    assert checks_of(problem.model, problem, "pgd", threat=replace(THREAT, eps=0.0)) == {}


def test_checks_resume_from_what_is_finished(problem: Problem, tmp_path: Path) -> None:
    first = checks_of(problem.model, problem, "fgsm", "pgd", state=tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert kept
    assert checks_of(problem.model, problem, "fgsm", "pgd", state=tmp_path) == first
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_figures_that_cannot_be_computed_pass_nothing() -> None:
    assert judged(None, "at most", 1.0) == (None, False)
    assert judged(float("nan"), "at least", 1.0) == (None, False)
    assert judged(1.0, "at most", 1.0) == (1.0, True)
    assert judged(0.3, "at least", 0.1 + 0.2) == (0.3, True)


def test_the_slack_is_two_samples_at_least() -> None:
    assert slack_of(1000) == 2.0
    assert slack_of(20) == 10.0


def test_the_weakest_attack_is_the_one_that_is_named() -> None:
    check = noise_check({"pgd": 0.3, "fgsm": 0.8}, 0.5, 2.0)
    assert not check.passed
    assert check.figure == pytest.approx(30.0)
    assert "fgsm" in check.meaning
    check = iterative_check({"pgd": 0.6, "apgd-ce": 0.3}, 0.5, 2.0)
    assert not check.passed
    assert "pgd" in check.meaning
    white, black = np.array([True, False, False]), np.array([True, True, False])
    assert black_box_check(white, black, 2.0).figure == pytest.approx(100 / 3)
    assert str(check).startswith("iterative_beats_single_step: 10, allowed at most 2 points")


def test_noise_lies_on_the_balls_surface(problem: Problem) -> None:
    gray = np.full((3, 3, 8, 8), 0.5, dtype=np.float32)
    generator = np.random.default_rng(0)
    moved = noisy_images(gray, ThreatModel(eps=0.1), generator) - gray
    np.testing.assert_allclose(np.abs(moved), 0.1, rtol=1e-5)
    moved = noisy_images(gray, ThreatModel(norm="l2", eps=0.7), generator) - gray
    np.testing.assert_allclose(np.linalg.norm(moved.reshape(3, -1), axis=1), 0.7, rtol=1e-5)


def test_threat_models_without_a_bound() -> None:
    assert without_bound(THREAT, 192).eps_pixels == 0.5
    assert without_bound(ThreatModel(norm="l2", eps=1.0), 192).eps_pixels == pytest.approx(
        0.5 * 192**0.5
    )
    normalized = ThreatModel(eps=0.9, protocol="normalized")
    assert without_bound(normalized, 192).protocol == "pixel"
    assert without_bound(normalized, 192).eps_pixels == 0.5
    assert with_larger_eps(ThreatModel(eps=0.6)).eps_pixels == 0.99
    assert with_larger_eps(ThreatModel(norm="l2", eps=0.6)).eps_pixels == 1.2
