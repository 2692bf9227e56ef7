from __future__ import annotations

import datetime
import os
import platform
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from hwnas.core import environment
from hwnas.core.decoding import decode_json, encode_json
from hwnas.core.environment import (
    Provenance,
    package_version,
    provenance,
    this_device,
    usable_cores,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[3]


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget what was found out about this machine, before and after."""
    caches = (environment._this_machine, environment._this_gpu, environment._git_state)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_provenance_survives_the_round_trip() -> None:
    made = provenance()
    assert decode_json(encode_json(made), Provenance, source="test") == made


def test_provenance_says_what_is_installed_and_when() -> None:
    made = provenance()
    assert made.packages["torch"] == package_version("torch") != ""
    assert "" not in made.packages.values()
    assert made.python == platform.python_version()
    written = datetime.datetime.fromisoformat(made.utc)
    age = datetime.datetime.now(datetime.UTC) - written
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=1)


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert package_version("no-such-package-as-this") == ""


def test_this_device_is_named() -> None:
    device = this_device()
    assert device.name
    assert device.machine == platform.machine()
    assert 1 <= device.cores == usable_cores() <= (os.cpu_count() or 1)
    assert device.memory_mib > 100


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
def test_the_commit_is_that_of_the_checkout(fresh: None) -> None:
    git = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert provenance().git_commit == git.stdout.strip()


def fail(*_: object, **__: object) -> NoReturn:
    raise FileNotFoundError(2, "no git here")


def test_a_machine_that_tells_nothing_is_survived(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr(Path, "read_text", fail)
    monkeypatch.setattr(os, "sysconf", fail)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    made = provenance()
    assert (made.git_commit, made.git_dirty) == ("", False)
    assert made.device.name
    assert made.device.memory_mib == 0
    assert made.device.governor == ""
    assert made.device.cores >= 1


def test_a_gpu_takes_the_processors_place(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        answer = "NVIDIA H200, 570.86.15\nNVIDIA H200, 570.86.15\n"
        return subprocess.CompletedProcess(command, 0, stdout=answer, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    gpu, machine = this_device("cuda"), this_device()
    assert (gpu.name, gpu.driver) == ("NVIDIA H200", "570.86.15")
    assert gpu.facts == {"processor": machine.name}
    assert (gpu.cores, gpu.system) == (machine.cores, machine.system)
    assert (machine.driver, machine.facts) == ("", {})
    this_device("cuda")
    assert len(asked) == 1  # it is asked once
    assert asked[0][0] == "nvidia-smi"


def answer_nothing(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(command, 0, stdout="", stderr="")


def answer_words(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(command, 0, stdout="No devices were found\n", stderr="")


def refuse(command: list[str], **_: object) -> NoReturn:
    raise subprocess.CalledProcessError(9, command)


def hang(command: list[str], **_: object) -> NoReturn:
    raise subprocess.TimeoutExpired(command, 20)


@pytest.mark.parametrize("run", [fail, answer_nothing, answer_words, refuse, hang])
def test_a_gpu_that_does_not_answer_is_unknown(
    fresh: None, monkeypatch: pytest.MonkeyPatch, run: Callable[..., object]
) -> None:
    monkeypatch.setattr(subprocess, "run", run)
    gpu = this_device("cuda")
    assert (gpu.name, gpu.driver) == ("unknown NVIDIA GPU", "")


def test_another_device_has_its_own_name_and_libraries() -> None:
    board = replace(this_device(), name="Raspberry Pi 5", facts={"power mode": "15 W"})
    made = provenance(board, {"onnxruntime": "1.23.2"})
    assert made.device == board
    assert made.packages == {"onnxruntime": "1.23.2"}
    assert decode_json(encode_json(made), Provenance, source="test") == made
    # What is not known of a board is not taken from here.
    assert provenance(board, {}).packages == {}


def test_a_board_names_itself(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Path, **_: object) -> str:
        if self == Path("/proc/device-tree/model"):
            return "NVIDIA Jetson Orin Nano\0"
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", read)
    assert this_device().name == "NVIDIA Jetson Orin Nano"


def test_outside_a_checkout_there_is_no_commit(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert provenance().git_commit == ""
