from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from hwnas.robustness.pgd import attack_in_batches
from hwnas.robustness.threat import ThreatModel
from hwnas.verify.gates import Tolerances
from hwnas.verify.masking import MaskingSigns, masking_gates, masking_signs

if TYPE_CHECKING:
    from torch import Tensor

    from tests.hwnas.verify.conftest import Trained


class Staircase(nn.Module):
    """A network behind rounding: it classifies as well, and has no gradient at all."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(torch.round(images * 16) / 16 + 0 * images)
        return logits


class Saturated(nn.Module):
    """A network so confident that the gradient of its cross-entropy underflows to 0."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits * 1e4


def signs_of(twin: nn.Module, trained: Trained) -> MaskingSigns:
    images, labels = trained.images[:100], trained.labels[:100]
    attacked = attack_in_batches(twin, images, labels, trained.threat, batch=100, seed=0)
    return masking_signs(twin, images, attacked, labels, trained.threat, batch=100, seed=0)


def failed(signs: MaskingSigns) -> set[str]:
    return {gate.name for gate in masking_gates(signs, Tolerances()) if not gate.passed}


def test_an_honest_network_shows_no_sign(trained: Trained) -> None:
    signs = signs_of(trained.twin, trained)
    assert failed(signs) == set()
    assert signs.unbounded < 0.1 < signs.larger_eps < signs.attacked
    assert signs.attacked_loss is not None
    assert signs.noise_loss is not None
    assert signs.attacked_loss > signs.noise_loss


def test_a_network_without_gradients_is_found_out(trained: Trained) -> None:
    signs = signs_of(Staircase(trained.twin), trained)
    assert {"unbounded_eps"} <= failed(signs)


def test_a_network_with_saturated_logits_is_found_out(trained: Trained) -> None:
    honest = signs_of(trained.twin, trained)
    signs = signs_of(Saturated(trained.twin), trained)
    assert signs.attacked > honest.attacked + 0.05  # it seems more robust, and is not
    assert "unbounded_eps" in failed(signs)


def test_accuracy_that_comes_back_is_a_sign() -> None:
    fine = MaskingSigns(
        n=100,
        attacked=0.5,
        more_steps=0.49,
        larger_eps=0.2,
        unbounded=0.0,
        majority=0.12,
        attacked_loss=1.5,
        noise_loss=0.2,
    )
    assert failed(fine) == set()
    assert failed(replace(fine, more_steps=0.55)) == {"more_steps"}
    assert failed(replace(fine, larger_eps=0.55)) == {"larger_eps"}
    assert failed(replace(fine, unbounded=0.3)) == {"unbounded_eps"}
    assert failed(replace(fine, noise_loss=1.5)) == {"attack_beats_noise"}
    assert failed(replace(fine, attacked_loss=None)) == {"attack_beats_noise"}


def test_a_loss_that_is_not_finite_is_none(trained: Trained) -> None:
    images, labels = trained.images[:20], trained.labels[:20]

    class Diverged(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 10), torch.nan) + 0 * images.sum()

    signs = masking_signs(
        Diverged(), images, images, labels, ThreatModel(eps=0.1, steps=1), batch=20, seed=0
    )
    assert signs.attacked_loss is None
    assert signs.attacked == 0
    assert np.isfinite(signs.majority)
