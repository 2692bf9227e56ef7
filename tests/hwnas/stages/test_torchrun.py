"""`hwnas search` under torchrun: one artifact, one result on stdout, one voice."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Start = Callable[..., subprocess.Popen[str]]

pytestmark = pytest.mark.slow

# What `python -m torch.distributed.run` does, with this interpreter's command line behind it.
TORCHRUN = """
import sys
from torch.distributed.run import main
sys.argv[1:] = ["--standalone", "--nproc-per-node", "2", "-m", "hwnas.cli", *sys.argv[1:]]
main()
"""


def test_two_processes_make_one_artifact(finished: Any, start: Start, tmp_path: Path) -> None:
    given = (
        "search", "--table", finished.table, "--teacher", finished.out / "teacher",
        "--config", finished.config, "--out", tmp_path / "search", "--json",
    )  # fmt: skip
    process = start(*given, code=TORCHRUN)
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["epochs"] == 2
    assert stderr.count("python: hwnas.api.search(") == 1
    assert "process 1" not in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["search"]
    # Once more, alone: nothing of it depends on how many there were.
    process = start(*given)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "is finished already" in stderr


def test_an_error_is_told_by_the_process_that_has_it(
    finished: Any, start: Start, tmp_path: Path
) -> None:
    process = start(
        "search", "--table", tmp_path / "none.jsonl", "--teacher", finished.out / "teacher",
        "--out", tmp_path / "search", code=TORCHRUN,
    )  # fmt: skip
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode != 0
    assert not stdout
    assert "none.jsonl does not exist" in stderr
    assert not (tmp_path / "search").exists()
