"""One process, several, or one that is killed again and again: the same search."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parent / "small_search.py"
TOLERANCE = 1e-6


def run(*command: object) -> tuple[int, str]:
    """Run a program; return its exit code and what it said."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stderr


def search(folder: Path, processes: int, *options: object) -> tuple[int, str]:
    """Search in as many processes as torchrun is told to start."""
    started = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes)
    return run(*started, PROGRAM, "search", folder, *options)


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
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    code, said = run(PROGRAM, "search", folder)
    assert code == 0, said
    return outcome_of(folder)


def test_two_processes_search_as_one_does(alone: dict[str, Any], tmp_path: Path) -> None:
    code, said = search(tmp_path, 2)
    assert code == 0, said
    together = outcome_of(tmp_path)
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert_same(alone, together, TOLERANCE)
    # It learned something: what is equal is not where both began.
    assert max(abs(row[0] - row[1]) for row in alone["architecture"]) > 0.05


def test_two_processes_share_an_objective_and_robust_training(tmp_path: Path) -> None:
    settings = {
        "epochs": 3, "objective": "combined", "objective_images": 7, "objective_weight": 0.1,
        "objective_ramp": 0.0, "robust": "trades",
    }  # fmt: skip
    folders = [tmp_path / name for name in ("one", "two")]
    for processes, folder in enumerate(folders, start=1):
        folder.mkdir()
        code, said = search(folder, processes, "--settings", json.dumps(settings))
        assert code == 0, said
    one, two = map(outcome_of, folders)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert all("objective" in figures for figures in one["history"][1:])
    assert_same(one, two, TOLERANCE)


def test_a_killed_process_ends_the_run_which_goes_on_with_another_number(
    alone: dict[str, Any], tmp_path: Path
) -> None:
    code, said = search(tmp_path, 2, "--fatal", "1:9")  # in its second epoch
    assert code != 0
    assert f"exitcode  : {-signal.SIGKILL}" in said
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    code, said = search(tmp_path, 3)
    assert code == 0, said
    assert_same(alone, outcome_of(tmp_path), TOLERANCE)


def test_killed_twenty_times_it_ends_the_same(alone: dict[str, Any], tmp_path: Path) -> None:
    code, said = run(PROGRAM, "kill", tmp_path, "--times", 20, "--seed", 0)
    assert code == 0, said
    kills = json.loads((tmp_path / "kills.json").read_text())
    assert len(kills) == 20
    assert len({kill["epochs"] for kill in kills}) > 2  # not all at the same place
    assert outcome_of(tmp_path) == alone  # bit by bit
