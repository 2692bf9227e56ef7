"""One process, several, or one that is killed again and again: the same search."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parent / "small_search.py"
TOLERANCE = 1e-6


class Program:
    """The small search as a running program, which is asked for one search after the other.

    Args:
        folder: Where it puts its own, computed by one process.
    """

    def __init__(self, folder: Path) -> None:
        # What coverage it had, other tests have as well, and the processes that are killed lose it.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("COVERAGE_PROCESS_CONFIG", None)
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, PROGRAM, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, work: str, folder: Path, **options: Any) -> tuple[int, str]:
        """Ask for something; return its exit code and what it said."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        question = {"work": work, "folder": str(folder), **options}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["code"], answer["said"]

    def search(
        self, folder: Path, processes: int, *, fatal: tuple[int, int] | None = None, **settings: Any
    ) -> tuple[int, str]:
        """Search in several processes, as torchrun starts them."""
        options = {"processes": processes, "fatal": fatal, "settings": settings}
        return self.ask("launch", folder, **options)

    def end(self) -> int:
        self._process.communicate()
        return self._process.returncode


def outcome_of(folder: Path) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return outcome


def assert_same(first: dict[str, Any], second: dict[str, Any], tolerance: float) -> None:
    assert first["genotype"] == second["genotype"]
    for name in ("architecture", "tutors"):
        for one, other in zip(first[name], second[name], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance, err_msg=name)
    for name in ("weights", "statistics"):
        np.testing.assert_allclose(first[name], second[name], rtol=tolerance, atol=tolerance)
    for one, other in zip(first["history"], second["history"], strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    program = Program(tmp_path_factory.mktemp("alone"))
    yield program
    assert program.end() == 0


@pytest.fixture(scope="module")
def alone(program: Program, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds, the first time and again."""
    folder = tmp_path_factory.mktemp("again")
    code, said = program.ask("search", folder)
    assert code == 0, said
    outcome = outcome_of(folder)
    assert outcome == outcome_of(program.folder)
    return outcome


def test_two_processes_search_as_one_does(
    alone: dict[str, Any], program: Program, tmp_path: Path
) -> None:
    code, said = program.search(tmp_path, 2)
    assert code == 0, said
    together = outcome_of(tmp_path)
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert_same(alone, together, TOLERANCE)
    # It learned something: what is equal is not where both began.
    assert max(abs(row[0] - row[1]) for row in alone["architecture"]) > 0.05


def test_two_processes_share_an_objective_and_robust_training(
    program: Program, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "epochs": 3, "objective": "combined", "objective_images": 7, "objective_weight": 0.1,
        "objective_ramp": 0.0, "robust": "trades",
    }  # fmt: skip
    folders = [tmp_path / name for name in ("one", "two")]
    for processes, folder in enumerate(folders, start=1):
        folder.mkdir()
        code, said = program.search(folder, processes, **settings)
        assert code == 0, said
    one, two = map(outcome_of, folders)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert all("objective" in figures for figures in one["history"][1:])
    assert_same(one, two, TOLERANCE)


def test_a_killed_process_ends_the_run_which_goes_on_with_another_number(
    alone: dict[str, Any], program: Program, tmp_path: Path
) -> None:
    code, said = program.search(tmp_path, 2, fatal=(1, 9))  # in its second epoch
    assert code != 0
    # Who is named as the cause is a race: the killed one, or the other, which misses it.
    assert f"exitcode  : {-signal.SIGKILL}" in said or "goes on after the last checkpoint" in said
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    code, said = program.search(tmp_path, 3)
    assert code == 0, said
    assert_same(alone, outcome_of(tmp_path), TOLERANCE)


def test_killed_twenty_times_it_ends_the_same(
    alone: dict[str, Any], program: Program, tmp_path: Path
) -> None:
    code, said = program.ask("kill", tmp_path, times=20, seed=0)
    assert code == 0, said
    kills = json.loads((tmp_path / "kills.json").read_text())
    assert len(kills) == 20
    assert len({kill["epochs"] for kill in kills}) > 2  # not all at the same place
    assert outcome_of(tmp_path) == alone  # bit by bit
