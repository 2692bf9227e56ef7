"""Our attacks break the samples that the reference's own code breaks, one by one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pyautoattack.autoattack import AutoAttack

from hwnas.robustness.attacks import registry
from hwnas.robustness.attacks.table import run_attacks
from hwnas.robustness.threat import Norm, ThreatModel
from tests.hwnas.robustness.attacks.conftest import EPS, Digits

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH = 10  # so that there are several, and the last is not full


@pytest.fixture(autouse=True)
def _the_tracer_stays() -> Iterator[None]:
    """The reference's check of the model ends with `sys.settrace(None)`: no coverage after it."""
    tracer = sys.gettrace()
    yield
    sys.settrace(tracer)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"])
def test_an_attack_breaks_what_the_reference_breaks(
    digits: Digits, attack: str, norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = 1 if attack == "fab-t" else 2  # the rest is left to the slow test
    monkeypatch.setattr(registry, "_CLASSES", classes)
    reference = reference_of(digits, norm)
    reference.attacks_to_run = [attack]
    reference.apgd_targeted.n_target_classes = reference.fab.n_target_classes = classes
    # Of 100 queries, ours are spread over the part of the schedule that 5,000 see.
    square, whole_schedule = reference.square, reference.square.p_selection
    square.n_queries, square.p_selection = 100, lambda query: whole_schedule(50 * query)
    assert_alike(digits, reference, attack, norm, count=16, queries=100)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_standard_set_breaks_what_the_reference_breaks(digits: Digits, norm: Norm) -> None:
    assert_alike(digits, reference_of(digits, norm), "autoattack", norm, count=12, queries=5000)


def reference_of(digits: Digits, norm: Norm) -> Any:
    return AutoAttack(digits.model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=EPS[norm], seed=3)


def assert_alike(
    digits: Digits, reference: Any, attack: str, norm: Norm, *, count: int, queries: int
) -> None:
    images, labels = digits.images[:count], digits.labels[:count]
    outcome = run_attacks(
        digits.model,
        images,
        labels,
        ThreatModel(norm=norm, eps=EPS[norm]),
        attacks=[attack],
        seed=3,
        batch=BATCH,
        queries=queries,
    )
    with torch.random.fork_rng(devices=[]):
        points, _ = reference.run_standard_evaluation(
            torch.from_numpy(images), torch.from_numpy(labels), batch_size=BATCH
        )
    digits.model.zero_grad(set_to_none=True)
    with torch.no_grad():
        broken = digits.model(points).argmax(1).numpy() != labels
    assert 0 < np.count_nonzero(broken) < count
    np.testing.assert_array_equal(outcome.flags[attack], broken)
