from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from hwnas.core.errors import UnfinishedError
from hwnas.core.time_limit import TimeLimit, limited_to, stop_if_time_is_up
from hwnas.training.loop import Epoch, Figures, run_epochs

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_limit_nothing_is_stopped() -> None:
    stop_if_time_is_up("it", next_s=1e9)


def test_work_is_stopped_once_the_time_is_over() -> None:
    clock = Clock()
    with limited_to(TimeLimit(2.0, clock=clock)):
        clock.now = 119.0
        stop_if_time_is_up("it")
        clock.now = 120.0
        with pytest.raises(UnfinishedError, match="it stopped at a checkpoint, as its 2 minutes"):
            stop_if_time_is_up("it")
    stop_if_time_is_up("it")


def test_work_is_stopped_before_a_step_that_would_not_fit() -> None:
    clock = Clock()
    with limited_to(TimeLimit(1.0, clock=clock)):
        stop_if_time_is_up("it", next_s=59.0)
        with pytest.raises(UnfinishedError):
            stop_if_time_is_up("it", next_s=61.0)


def test_limits_nest_and_one_can_be_lifted() -> None:
    clock = Clock()
    with limited_to(TimeLimit(1.0, clock=clock)):
        clock.now = 100.0
        with limited_to(None):
            stop_if_time_is_up("it")
        with pytest.raises(UnfinishedError):
            stop_if_time_is_up("it")


def trained(checkpoint: Path) -> tuple[nn.Linear, list[Figures]]:
    torch.manual_seed(0)
    layer = nn.Linear(2, 1)

    def body(epoch: Epoch) -> Figures:
        noise = torch.rand(layer.weight.shape, generator=epoch.generator)
        with torch.no_grad():
            layer.weight += noise
        return {"mean": float(noise.mean())}

    history = run_epochs(
        "train", body, epochs=5, seed=0, parts={"layer": layer}, checkpoint=checkpoint, settings={}
    )
    return layer, history


def test_training_in_pieces_ends_where_training_in_one_does(tmp_path: Path) -> None:
    whole, history = trained(tmp_path / "whole")
    # Over from the start: every piece does one epoch, and none does less.
    for _ in range(4):
        with (
            limited_to(TimeLimit(0.0)),
            pytest.raises(UnfinishedError, match="run the same command again"),
        ):
            trained(tmp_path / "pieces")
    with limited_to(TimeLimit(0.0)):
        layer, again = trained(tmp_path / "pieces")
    assert again == history
    assert torch.equal(layer.weight, whole.weight)
