from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from hwnas.core.errors import MissingDependencyError
from hwnas.training.tensorboard import TensorBoardLog

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_figures_are_there_for_tensorboard_to_read(tmp_path: Path) -> None:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    with TensorBoardLog(tmp_path) as log:
        log.log("search", {"loss": 2.0, "expected_ms": 0.5}, epoch=1)
        log.log("search", {"loss": 1.0, "expected_ms": 0.4}, epoch=2)
        log.log("train", {"loss": 7.0}, epoch=1)
    # A resumed run begins at the epoch that was cut short: what was written of it is superseded.
    with TensorBoardLog(tmp_path) as log:
        log.log("search", {"loss": 1.5}, epoch=2)
    found = accumulators.EventAccumulator(str(tmp_path / "search"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"search/loss", "search/expected_ms"}
    losses = [(event.step, event.value) for event in found.Scalars("search/loss")]
    assert losses == [(1, 2.0), (2, 1.5)]
    assert (tmp_path / "train").is_dir()


def test_without_tensorboard_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match="TensorBoard is not installed") as caught:
        TensorBoardLog(tmp_path)
    assert "hwnas[tensorboard]" in caught.value.hint
