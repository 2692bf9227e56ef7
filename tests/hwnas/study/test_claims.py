from __future__ import annotations

import errno
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from hwnas.core.errors import InputFileError
from hwnas.study.claims import Claims

if TYPE_CHECKING:
    from pathlib import Path

HOLDS = """
import sys, time
from pathlib import Path
from hwnas.study.claims import Claims
with Claims(Path(sys.argv[1])).claim("a") as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_a_piece_is_one_process_s_while_it_lasts(tmp_path: Path) -> None:
    first, second = Claims(tmp_path / "locks"), Claims(tmp_path / "locks", rank=1, count=2)
    with first.claim("a") as mine:
        assert mine
        with second.claim("a") as also_mine, second.claim("b") as other:
            assert not also_mine
            assert other
    with second.claim("a") as now_mine:
        assert now_mine


def test_what_a_killed_process_held_can_be_claimed(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with Claims(tmp_path).claim("a") as mine:
            assert not mine
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    with Claims(tmp_path).claim("a") as mine:
        assert mine


def test_without_locks_each_piece_belongs_to_exactly_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("hwnas.study.claims.fcntl.flock", refuse)
    processes = [Claims(tmp_path, rank=rank, count=3) for rank in range(3)]
    owners = []
    for key in (f"train-{index}" for index in range(30)):
        mine = []
        for process in processes:
            with process.claim(key) as is_mine:
                mine.append(is_mine)
        assert mine.count(True) == 1
        owners.append(mine.index(True))
    assert set(owners) == {0, 1, 2}
    with Claims(tmp_path).claim("alone") as is_mine:
        assert is_mine


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("a file")
    claims = Claims(tmp_path / "locks")
    with pytest.raises(InputFileError, match="cannot be written"), claims.claim("a"):
        pass
