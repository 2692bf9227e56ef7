"""Processes of one: what several do together is tested in tests/hwnas/search/test_processes.py."""

from __future__ import annotations

import pytest
import torch
import torch.distributed

from hwnas.core.errors import ConfigError, ProcessError
from hwnas.training.processes import Processes, peers


@pytest.fixture(scope="module")
def alone() -> Processes:
    return Processes(accelerator="cpu")


def test_one_process_is_all(alone: Processes) -> None:
    assert (alone.rank, alone.count, alone.is_first) == (0, 1, True)
    batch = torch.arange(7)
    assert torch.equal(alone.share(batch), batch)
    assert float(alone.mean(torch.tensor(2.5, requires_grad=True))) == 2.5
    assert alone.same("value") == "value"
    alone.wait()
    alone.require_in_step("logits", [torch.tensor(float("nan"))])
    module = torch.nn.Conv2d(1, 1, 1)
    assert alone.module(module) is module


def test_a_share_is_what_is_left_where_there_are_too_few(
    alone: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "count", 4)
    parts = []
    for rank in range(4):
        monkeypatch.setattr(alone, "rank", rank)
        parts.append(alone.share(torch.arange(2)).tolist())
    assert parts == [[0], [1], [], []]


def test_an_accelerator_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds no GPU here") as caught:
        Processes(accelerator="cuda")
    assert "auto or cpu" in caught.value.hint


def test_only_a_lost_connection_is_a_lost_process() -> None:
    with (
        pytest.raises(ProcessError, match="another process of this run has ended") as caught,
        peers(),
    ):
        raise RuntimeError(
            "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:9\nmore"
        )
    assert "more" not in caught.value.message
    assert "goes on after the last checkpoint" in caught.value.hint
    with pytest.raises(ProcessError), peers():
        raise torch.distributed.DistNetworkError("the client socket has timed out")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), peers():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(ConfigError, match="mine"), peers():
        raise ConfigError("mine: connection closed")
