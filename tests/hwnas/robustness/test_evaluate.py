from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwnas.core.decoding import decode_json, encode_json
from hwnas.core.errors import DataError
from hwnas.robustness.evaluate import (
    NO_CLASS,
    Accuracy,
    device_of,
    evaluating,
    logits_from_module,
    logits_from_runner,
    predictions_of,
    wilson_interval,
)
from hwnas_export.torch_runner import TorchRunner

if TYPE_CHECKING:
    from tests.hwnas.robustness.conftest import Problem


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # By the closed form, and as statsmodels' proportion_confint(method="wilson") gives them.
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_wilson_interval(correct: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_an_interval_holds_its_value(n: int, share: float) -> None:
    accuracy = Accuracy.from_counts(round(share * n), n)
    assert 0 <= accuracy.low <= accuracy.value <= accuracy.high <= 1
    assert accuracy.low < accuracy.high
    assert decode_json(encode_json(accuracy), Accuracy, source="test") == accuracy


def test_more_samples_make_the_interval_narrower() -> None:
    few, many = Accuracy.from_counts(8, 10), Accuracy.from_counts(800, 1000)
    assert many.high - many.low < few.high - few.low


def test_no_samples_have_no_accuracy() -> None:
    with pytest.raises(DataError, match="at least one"):
        Accuracy.from_flags(np.zeros(0, dtype=bool))


def test_a_row_with_nan_has_no_class() -> None:
    logits = np.array([[0, 1], [np.nan, 1], [np.inf, 0]], dtype=np.float32)
    assert predictions_of(logits).tolist() == [1, NO_CLASS, NO_CLASS]


def test_every_submodule_gets_its_mode_back() -> None:
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3)).train()
    module[1].eval()  # a frozen norm inside a training network
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == [True, True, False]


def test_a_module_without_parameters_is_on_the_cpu() -> None:
    assert device_of(nn.Flatten()) == torch.device("cpu")


@pytest.mark.parametrize("fixed", [None, 1, 7])
def test_a_runner_gives_the_logits_of_its_module_whatever_its_batch(
    problem: Problem, fixed: int | None
) -> None:
    expected = logits_from_module(problem.model, problem.images[:20], batch=20)
    with TorchRunner(problem.model, (fixed, 3, 8, 8)) as runner:
        found = logits_from_runner(runner, problem.images[:20], batch=6)
    assert found.shape == (20, 4)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_network_has_learned(problem: Problem) -> None:
    logits = logits_from_module(problem.model, problem.images, batch=64)
    assert np.mean(predictions_of(logits) == problem.labels) > 0.95
