from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from hwnas.core.errors import ConfigError, DataError
from hwnas.robustness import square as square_module
from hwnas.robustness.evaluate import logits_from_module, predictions_of
from hwnas.robustness.square import SquareResult, square
from hwnas.robustness.threat import Eps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tests.hwnas.robustness.conftest import Problem

EPS = Eps(0.15)


def attack(problem: Problem, *, queries: int = 100, seed: int = 0) -> SquareResult:
    return square(
        lambda part: logits_from_module(problem.model, part, batch=64),
        problem.images,
        problem.labels,
        eps=EPS,
        queries=queries,
        seed=seed,
    )


def test_square_lowers_accuracy_within_its_ball(problem: Problem) -> None:
    result = attack(problem)
    clean = logits_from_module(problem.model, problem.images, batch=64)
    assert np.mean(~result.broken) < np.mean(predictions_of(clean) == problem.labels) - 0.2
    assert np.abs(result.images - problem.images).max() <= EPS + 1e-6
    assert result.images.dtype == np.float32
    assert 0 <= result.images.min() <= result.images.max() <= 1
    logits = logits_from_module(problem.model, result.images, batch=64)
    np.testing.assert_array_equal(predictions_of(logits) != problem.labels, result.broken)


def test_more_queries_break_no_fewer(problem: Problem) -> None:
    assert attack(problem, queries=200).broken.sum() >= attack(problem, queries=5).broken.sum()


def test_a_seed_gives_one_result_and_the_global_generator_is_untouched(problem: Problem) -> None:
    state = torch.random.get_rng_state()
    first, again = attack(problem, queries=20, seed=1), attack(problem, queries=20, seed=1)
    other = attack(problem, queries=20, seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(first.images, again.images)
    assert first.queries == again.queries
    assert not np.array_equal(first.images, other.images)


def test_square_works_in_chunks(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(square_module, "_SAMPLES_AT_ONCE", 64)
    assert attack(problem).broken.mean() > 0.2


def test_queries_are_counted_and_all_progress_is_reported(
    problem: Problem, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = 0
    totals: list[float] = []
    steps: list[float] = []

    class Task:
        def advance(self, done: float = 1, note: str = "") -> None:
            steps.append(done)

    class Recorder:
        @contextmanager
        def task(self, name: str, total: float, *, done: float = 0) -> Iterator[Task]:
            totals.append(total)
            yield Task()

        def say(self, message: str) -> None:
            raise AssertionError(message)

    def predict(part: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal asked
        assert len(part) > 0
        asked += len(part)
        return logits_from_module(problem.model, part, batch=64)

    result = square(
        predict, problem.images, problem.labels, eps=EPS, queries=30, seed=0, progress=Recorder()
    )
    assert result.queries == asked
    assert sum(steps) == sum(totals) == 30
    assert capsys.readouterr() == ("", "")


def test_samples_that_are_wrong_from_the_start_are_left_alone(problem: Problem) -> None:
    wrong = (problem.labels + 1) % 4
    result = square(
        lambda part: logits_from_module(problem.model, part, batch=64),
        problem.images,
        wrong,
        eps=EPS,
        queries=5,
        seed=0,
    )
    assert result.broken.mean() > 0.95
    np.testing.assert_array_equal(result.images[result.broken], problem.images[result.broken])


def test_nan_logits_are_a_success_of_the_attack() -> None:
    def predict(part: NDArray[np.float32]) -> NDArray[np.float32]:
        level = part.mean((1, 2, 3))
        changed = np.abs(level - 0.5) > 1e-4
        return np.where(changed[:, None], np.nan, [[1.0, 0.0]]).astype(np.float32)

    images = np.full((6, 3, 8, 8), 0.5, dtype=np.float32)
    result = square(predict, images, np.zeros(6, dtype=np.int64), eps=EPS, queries=20, seed=0)
    assert result.broken.all()


def test_a_tie_that_argmax_resolves_to_the_label_does_not_stop_the_attack() -> None:
    calls = 0

    def predict(part: NDArray[np.float32]) -> NDArray[np.float32]:
        # Class 0 against the brightness, which stops at a tie and goes on after it.
        nonlocal calls
        calls += 1
        level = (part.mean((1, 2, 3)) - 0.5) * 40
        level = np.where((level > 0.8) & (level < 1.4), 1, level)
        return np.stack([np.ones_like(level), level], axis=1).astype(np.float32)

    images = np.full((4, 3, 8, 8), 0.5, dtype=np.float32)
    result = square(predict, images, np.zeros(4, dtype=np.int64), eps=EPS, queries=300, seed=0)
    assert result.broken.all()
    assert calls > 3


def test_a_model_that_only_ever_ties_ends_the_attack_quietly() -> None:
    def predict(part: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.zeros((len(part), 3), dtype=np.float32)

    images = np.full((2, 3, 8, 8), 0.5, dtype=np.float32)
    result = square(predict, images, np.array([0, 1]), eps=EPS, queries=10, seed=0)
    assert result.broken.tolist() == [False, True]


def test_bad_input_is_refused(problem: Problem) -> None:
    with pytest.raises(ConfigError, match="at least 1 query"):
        attack(problem, queries=0)
    with pytest.raises(DataError, match=r"pixels in \[0, 1\]"):
        square(
            lambda part: part[:, :, 0, 0],
            problem.images * 255,
            problem.labels,
            eps=EPS,
            queries=1,
            seed=0,
        )
