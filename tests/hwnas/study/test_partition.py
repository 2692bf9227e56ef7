from __future__ import annotations

import os

import pytest

from hwnas.core.processes import is_first, process_count
from hwnas.study.partition import on_its_own

TOLD = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "x",
    "CUDA_VISIBLE_DEVICES": "4,7",
}


def test_a_process_of_many_looks_like_the_only_one_on_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    with on_its_own() as place:
        assert place == (3, 4)
        assert process_count() == 1
        assert is_first()
        assert "TORCHELASTIC_RUN_ID" not in os.environ
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    assert {name: os.environ[name] for name in TOLD} == TOLD


def test_more_processes_than_gpus_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TOLD, "LOCAL_RANK": "5"}.items():
        monkeypatch.setenv(name, value)
    with on_its_own():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"


def test_where_gpus_are_hidden_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TOLD, "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    with on_its_own():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_one_process_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    before = dict(os.environ)
    with on_its_own() as place:
        assert place == (0, 1)
        assert dict(os.environ) == before


def test_the_environment_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ZeroDivisionError), on_its_own():
        raise ZeroDivisionError
    assert os.environ["RANK"] == "3"
