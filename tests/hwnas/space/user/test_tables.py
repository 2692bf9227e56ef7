"""Tables of a user's space: measured, calibrated and checked, here and over a pipe to a board."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from hwnas.core.errors import ConfigError, LatencyTableError
from hwnas.latency.model import LatencyModel
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.space.user.space import UserSpace
from hwnas.stages.calibrate import calibrate
from hwnas.stages.profile import ProfileResult, profile
from hwnas.stages.spaces import space_of_table
from hwnas.stages.table import LatencyTableFaults, table_show, table_validate
from hwnas_profilers import agent
from hwnas_profilers.remote import RemoteProfiler
from hwnas_profilers.remote_ssh import board_command
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.targets import parse_target
from hwnas_profilers.timing import TimingSettings

NETWORK = """
import torch
from torch import nn
from hwnas.space.user.parts import Follows, Searched

class Mixed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.layer = nn.Conv2d(width, width, 1)

    def forward(self, features):
        return features + torch.sigmoid(self.layer(self.norm(features)))

def conv(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())

def head(width, classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))

def network(image_shape=(1, 8, 8), classes=3):
    return nn.Sequential(
        Searched({"conv": conv}, widths=(8, 6, 4)),
        Searched({"mixed": lambda i, o: Mixed(i), "skip": None}),
        Follows(lambda width: head(width, classes)),
    )
"""


NAME = "user:net.py:network"
QUICK: dict[str, Any] = {"relative_width": 0.5, "max_samples": 20}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code and its table."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "net.py").write_text(NETWORK, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = profile(NAME, "onnxruntime-cpu", Path("table.jsonl"), **QUICK)
    assert cast("ProfileResult", made).operators == 10
    return folder


@pytest.fixture
def table(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of both, in the current folder."""
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("table.jsonl")


@pytest.mark.slow
def test_a_table_tells_its_space_and_is_calibrated(table: Path) -> None:
    read = LatencyTable.read(table)
    space = space_of_table(read)
    assert isinstance(space, UserSpace)
    assert space.spec == space_spec(NAME)
    model = LatencyModel(space, read)
    low, high = model.range_ms()
    assert 0 < low < high
    result = calibrate(table, NAME, networks=3, holdout=3, relative_width=0.5)
    assert result.holdout.n == 3
    again = profile(NAME, "onnxruntime-cpu", table, **QUICK)
    assert cast("ProfileResult", again).operators == 10


def test_a_table_is_shown_and_validated_without_running_code(table: Path) -> None:
    Path("net.py").write_text("raise SystemExit('it was run')", encoding="utf-8")
    assert table_show(table).space == NAME
    (found,) = table_validate((table,))
    assert found.valid
    assert found.operators == 10
    lines = table.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if "space_spec" in line or '"begin"' not in line]
    table.write_text("\n".join(kept) + "\n", encoding="utf-8")
    with pytest.raises(LatencyTableFaults, match=r"1 of the 10 operators of user:.* are missing"):
        table_validate((table,))


def test_a_table_of_code_that_has_changed_is_not_gone_on_from(table: Path) -> None:
    changed = NETWORK.replace("sigmoid", "tanh").replace("nn.ReLU()", "nn.ReLU6()")
    Path("net.py").write_text(changed, encoding="utf-8")
    with pytest.raises(LatencyTableError, match="another version of it"):
        profile(NAME, "onnxruntime-cpu", table, **QUICK)
    with pytest.raises(ConfigError, match=r"conv-8\+mixed, conv-8\+skip.* of part1 changed"):
        calibrate(table, networks=3, holdout=3, relative_width=0.5)


def test_a_board_is_measured_likewise(table: Path) -> None:
    """The user's code stays on the host: a board gets ONNX models."""
    space = space_from_spec(space_spec(NAME))
    source = Path(agent.__file__).read_bytes()
    target = parse_target("ssh://pi@board/onnxruntime-cpu")
    command = ["sh", "-c", board_command(sys.executable, source)]
    settings = TimingSettings(relative_width=0.5, max_samples=20, min_samples=10)
    workloads = [*space.operators(), space.workload(space.largest), space.workload(space.smallest)]
    with RemoteProfiler(target, command=command, pauses_s=(0.0, 0.0)) as board:
        timed = board.time(workloads, settings)
    assert all(each is not None and each.samples_us.min() > 0 for each in timed)
