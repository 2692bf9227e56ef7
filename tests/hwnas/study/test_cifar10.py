"""The CIFAR-10 study: its files at every scale, and two questions at the smallest, on digits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hwnas.study.plan import read_study
from hwnas.study.run import study_run

if TYPE_CHECKING:
    from hwnas.study.plan import Study

CIFAR10 = Path(__file__).parents[3] / "benchmarks" / "cifar10"
QUESTIONS = ("protocol", "method", "search", "deployment", "size")
IN_CI = ("search", "deployment")
"""These two have every kind of work between them; the others take a minute each, by hand."""


def question(name: str, scale: str) -> Study:
    return read_study(CIFAR10 / f"{name}.toml", scale)


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_scale_can_be_read_and_shares_its_teacher(name: str) -> None:
    for scale in ("smoke", "cpu", "gpu"):
        own, first = question(name, scale), question(QUESTIONS[0], scale)
        teachers = {config.teacher for study in (own, first) for config in study.configs.values()}
        assert len(teachers) == 1, scale
        assert {config.seed for config in own.configs.values()} == {0}
    assert {config.train.epochs for config in question(name, "gpu").configs.values()} == {200}
    assert len(question(name, "cpu").settings.seeds) == (1 if name in ("deployment", "size") else 3)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", IN_CI)
def test_it_runs_at_the_smallest_scale(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = tmp_path_factory.getbasetemp() / "cifar10-store"
    result = study_run(CIFAR10 / f"{name}.toml", tmp_path / name, scale="smoke", store=store)
    assert (result.failed, result.pending) == ((), ())
    assert result.finished == result.planned == len(question(name, "smoke").arms)
    assert all(arm.measured_ms for arm in result.arms if not arm.arm.startswith("teacher"))
    assert Path(result.table).is_file()
