from __future__ import annotations

import ctypes.util
import importlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwnas.core.errors import TargetError
from hwnas_export.runner import Runner
from hwnas_profilers import targets
from hwnas_profilers.targets import (
    RUNTIMES,
    Target,
    parse_target,
    require_target,
    target_names,
    target_statuses,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REMOTE = [name for name, runtime in RUNTIMES.items() if runtime.remote]
CUDA = [name for name, runtime in RUNTIMES.items() if runtime.device == "cuda"]


# What a target string means

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
hosts = names | st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str)
boards = st.builds(
    lambda name, user, host, port: Target(
        name=name, destination=f"{user}@{host}" if user else host, port=port
    ),
    st.sampled_from(REMOTE),
    st.none() | names,
    hosts,
    st.none() | st.integers(1, 65_535),
)


@given(boards | st.sampled_from(target_names()).map(lambda name: Target(name=name)))
def test_every_target_is_written_as_what_parses_to_it(target: Target) -> None:
    assert parse_target(str(target)) == target


@given(
    user=st.none() | names,
    host=names,
    port=st.none() | st.integers(1, 65_535),
    name=st.sampled_from(REMOTE),
)
def test_every_string_of_the_grammar_comes_back_as_it_was(
    user: str | None, host: str, port: int | None, name: str
) -> None:
    text = "".join(
        ["ssh://", f"{user}@" if user else "", host, f":{port}" if port else "", f"/{name}"]
    )
    target = parse_target(text)
    assert str(target) == text
    assert target.host == text.removesuffix(f"/{name}")
    assert target.destination == (f"{user}@{host}" if user else host)
    assert (target.name, target.port) == (name, port)


def test_a_name_alone_is_this_machine() -> None:
    target = parse_target("torch-cuda-bf16")
    assert (target.host, target.destination, target.port) == ("", "", None)
    assert (target.runtime.device, target.runtime.precision) == ("cuda", "bf16")


def test_an_ipv6_address_is_in_brackets_for_us_and_bare_for_ssh() -> None:
    target = parse_target("ssh://pi@[fe80::1]:22/onnxruntime-cpu")
    assert target.destination == "pi@fe80::1"
    assert target.host == "ssh://pi@[fe80::1]:22"


@given(st.text(max_size=30), st.sampled_from(["", "ssh://", "ssh://pi@board:"]))
def test_no_string_does_worse_than_to_be_refused(text: str, begin: str) -> None:
    for attempt in (begin + text, f"{begin}{text}/onnxruntime-cpu"):
        try:
            target = parse_target(attempt)
        except TargetError:
            continue
        assert parse_target(str(target)) == target
        assert not target.destination.startswith("-")
        assert not set(target.destination) & set(" \t\n\0'\"`$\\;&<>|(){}*?!/")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no target ``"),
        ("abacus", "known: onnxruntime-cpu, "),
        ("onnxruntime_cpu", "did you mean `onnxruntime-cpu`"),
        ("onnxruntime-cpu ", "did you mean `onnxruntime-cpu`"),
        ("torch-gpu", "did you mean `torch-cpu`"),
        ("tensorrt", "did you mean `tensorrt-"),
        ("ssh://board/onnxruntime-cup", "did you mean `onnxruntime-cpu`"),
        ("board/onnxruntime-cpu", "cannot be read"),
        ("http://board/onnxruntime-cpu", "cannot be read"),
        ("ssh:/board/onnxruntime-cpu", "cannot be read"),
        ("ssh://onnxruntime-cpu", "cannot be read"),
        ("ssh:///onnxruntime-cpu", "cannot be read"),
        ("ssh://@board/onnxruntime-cpu", "cannot be read"),
        ("ssh://a@b@board/onnxruntime-cpu", "cannot be read"),
        ("ssh://pi:secret@board/onnxruntime-cpu", "cannot be read"),
        ("ssh://board/", "cannot be read"),
        ("ssh://board/onnxruntime-cpu/more", "cannot be read"),
        ("ssh://board/onnxruntime-cpu\n", "cannot be read"),
        ("ssh://bo ard/onnxruntime-cpu", "cannot be read"),
        ("ssh://bo\0ard/onnxruntime-cpu", "cannot be read"),
        ("ssh://board;reboot/onnxruntime-cpu", "cannot be read"),
        ("ssh://$(reboot)/onnxruntime-cpu", "cannot be read"),
        ("ssh://`reboot`@board/onnxruntime-cpu", "cannot be read"),
        ("ssh://fe80::1/onnxruntime-cpu", "cannot be read"),
        ("ssh://-oProxyCommand=reboot/onnxruntime-cpu", "does not begin with a dash"),
        ("ssh://-l@board/onnxruntime-cpu", "does not begin with a dash"),
        ("ssh://board:/onnxruntime-cpu", "cannot be read"),
        ("ssh://board:ssh/onnxruntime-cpu", "cannot be read"),
        ("ssh://board:-22/onnxruntime-cpu", "cannot be read"),
        ("ssh://board:\u0662\u0662/onnxruntime-cpu", "cannot be read"),
        (f"ssh://board:{'9' * 5_000}/onnxruntime-cpu", "cannot be read"),
        ("ssh://board:0/onnxruntime-cpu", "0 is no port"),
        ("ssh://board:65536/onnxruntime-cpu", "65536 is no port"),
    ],
)
def test_a_target_that_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse_target(text)
    assert message in str(caught.value)
    with pytest.raises(TargetError):
        require_target(text)


@pytest.mark.parametrize("name", [name for name in RUNTIMES if name not in REMOTE])
def test_a_target_that_cannot_go_over_ssh_is_refused_and_says_what_can(name: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse_target(f"ssh://board/{name}")
    assert caught.value.message == f"hwnas cannot measure {name} over ssh"
    assert caught.value.hint == f"over ssh it can: {', '.join(REMOTE)}"
    assert "onnxruntime-cpu" in REMOTE


# What a name stands for


@pytest.mark.parametrize("name", target_names())
def test_every_name_leads_to_a_runner_that_calls_itself_so(name: str) -> None:
    runtime = RUNTIMES[name]
    module, _, class_name = runtime.runner.partition(":")
    make: Callable[..., Runner] = getattr(importlib.import_module(module), class_name)
    if runtime.takes == "torch":
        runner = make(nn.Identity(), (1, 3, 4, 4), **runtime.options)
    else:
        runner = make(b"", threads=1, **runtime.options)
    assert isinstance(runner, Runner)
    assert runner.name == name
    assert runtime.device == ("cuda" if name.startswith("tensorrt") else name.split("-")[1])
    assert name.endswith(runtime.precision) or runtime.precision == "fp32"


# Whether it can be used here


def pretend(
    monkeypatch: pytest.MonkeyPatch, *, version: str, driver: bool, programs: bool
) -> Iterator[None]:
    monkeypatch.setattr(targets, "package_version", lambda name: version)
    monkeypatch.setattr(
        ctypes.util, "find_library", lambda name: f"lib{name}.so.1" if driver else None
    )
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if programs else None)
    targets._has_nvidia_driver.cache_clear()
    yield
    targets._has_nvidia_driver.cache_clear()


@pytest.fixture
def _bare_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from pretend(monkeypatch, version="", driver=False, programs=False)


@pytest.fixture
def _rich_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from pretend(monkeypatch, version="1.0", driver=True, programs=True)


@pytest.fixture
def _machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from pretend(monkeypatch, version="2.13.0+cpu", driver=False, programs=True)


def test_what_is_not_usable_says_why_and_what_to_do() -> None:
    statuses = target_statuses()
    assert [status.name for status in statuses] == [*target_names(), "ssh://"]
    for status in statuses:
        assert status.usable == (not status.reason) == (not status.fix)
    usable = {status.name: status.version for status in statuses if status.usable}
    assert {"onnxruntime-cpu", "onnxruntime-cpu-int8", "torch-cpu", "torch-cpu-bf16"} <= set(usable)
    assert usable["onnxruntime-cpu"]


@pytest.mark.usefixtures("_bare_machine")
def test_on_a_bare_machine_everything_names_what_is_missing() -> None:
    statuses = {status.name: status for status in target_statuses()}
    assert not any(status.usable or status.version for status in statuses.values())
    assert "onnxruntime is not installed" in statuses["onnxruntime-cpu"].reason
    assert "pip install onnxruntime" in statuses["onnxruntime-cpu"].fix
    assert "openvino is not installed" in statuses["openvino-cpu-bf16"].reason
    assert 'pip install "hwnas[openvino]"' in statuses["openvino-cpu-bf16"].fix
    for name in CUDA:
        assert "no NVIDIA driver" in statuses[name].reason
        assert "use a machine with an NVIDIA GPU" in statuses[name].fix
    for name in ("tensorrt-fp32", "tensorrt-fp16", "tensorrt-int8"):
        assert "tensorrt is not installed" in statuses[name].reason
        assert "pycuda is not installed" in statuses[name].reason
        assert 'pip install "hwnas[tensorrt]"' in statuses[name].fix
    assert "`ssh` is not installed" in statuses["ssh://"].reason
    for text in (*target_names(), "ssh://board/onnxruntime-cpu"):
        with pytest.raises(TargetError, match="cannot be used here"):
            require_target(text)


@pytest.mark.usefixtures("_rich_machine")
def test_on_a_rich_machine_everything_can_be_used() -> None:
    for status in target_statuses():
        assert status.usable
        assert (status.reason, status.fix) == ("", "")
    for text in (*target_names(), *(f"ssh://pi@board/{name}" for name in REMOTE)):
        assert str(require_target(text)) == text


@pytest.mark.usefixtures("_machine_without_gpu")
def test_without_a_gpu_what_needs_none_can_be_used() -> None:
    statuses = {status.name: status for status in target_statuses()}
    assert {name for name in RUNTIMES if not statuses[name].usable} == set(CUDA)
    assert "torch 2.13.0+cpu is a build without CUDA" in statuses["torch-cuda"].reason
    assert "a CUDA build of torch" in statuses["torch-cuda"].fix
    assert statuses["torch-cpu"].usable
    with pytest.raises(TargetError, match="a build without CUDA; no NVIDIA driver"):
        require_target("torch-cuda-fp16")


@pytest.mark.usefixtures("_machine_without_gpu")
def test_a_board_needs_nothing_here_but_ssh() -> None:
    assert require_target("ssh://jetson/tensorrt-fp16").runtime.device == "cuda"


def test_of_alternative_packages_any_one_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        targets, "package_version", lambda name: "1.31" if name == "onnxruntime-gpu" else ""
    )
    statuses = {status.name: status for status in target_statuses()}
    assert statuses["onnxruntime-cpu"].usable
    assert statuses["onnxruntime-cpu"].version == "1.31"


def test_looking_imports_no_backend() -> None:
    heavy = ("torch", "onnxruntime", "onnx", "tensorrt", "openvino", "sklearn", "matplotlib")
    code = (
        "import sys\n"
        "from hwnas_profilers.targets import target_statuses, parse_target\n"
        "from hwnas_profilers.profiler import profiler_for\n"
        "target_statuses(); parse_target('ssh://pi@board/tensorrt-fp16')\n"
        "profiler_for('onnxruntime-cpu'); profiler_for('torch-cpu')\n"
        f"print([module for module in {heavy} if module in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
