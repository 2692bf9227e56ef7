"""A board at the end of a real ssh connection: this machine, by an sshd of the test's own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from torch import nn

from hwnas.core.environment import this_device
from hwnas.core.errors import TargetError
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_profilers import remote_board
from hwnas_profilers.operators import profile_operators
from hwnas_profilers.profiler import profiler_for
from hwnas_profilers.remote import RemoteProfiler
from hwnas_profilers.remote_runner import RemoteRunner
from hwnas_profilers.targets import parse_target
from hwnas_profilers.timing import RoundLog, TimingSettings, Visit, time_in_rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from hwnas_profilers.conditions import MachineState
    from hwnas_profilers.records import TableHeader
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.timing import Bench
    from hwnas_profilers.workload import Operator

SETTINGS = TimingSettings(
    relative_width=0.5,
    min_samples=12,
    max_samples=16,
    samples_per_round=4,
    warmup_calls=1,
    min_sample_us=20,
    max_disturbed=0,  # every round that comes back is kept
)

_PRIVATE = Path("/run/sshd")  # sshd as root insists on this empty folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """An sshd on this machine.

    Attributes:
        folder: Its keys, and the settings of the ssh that may log in.
        port: Where it listens, at 127.0.0.1.
        process: The listening process.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def target(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}/onnxruntime-cpu"

    def cut(self) -> None:
        """End the sessions, as a network that goes away does."""
        for pid in children_of(self.process.pid):
            for each in (*children_of(pid), pid):
                # The agent, a child of its session, is at its own: it sees the end of its stdin.
                if Path(f"/proc/{each}/comm").read_text().startswith("sshd"):
                    os.kill(each, signal.SIGKILL)


def children_of(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if sshd is None or shutil.which("ssh") is None or not Path("/proc/self").exists():
        pytest.skip("needs Linux, ssh and sshd (openssh-client, openssh-server)")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host_key", "user_key", "stranger_key"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(keygen, check=True)
    (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\nPidFile none\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nAllowTcpForwarding no\n"
    )
    write_client(folder, port, host_key="host_key", user_key="user_key")
    command = [sshd, "-D", "-e", "-f", str(folder / "sshd_config")]
    if os.geteuid() == 0 and not _PRIVATE.exists():
        # Given to it alone, in a mount namespace, so that the machine stays as it is.
        own = f'mount -t tmpfs tmpfs {_PRIVATE.parent} && mkdir {_PRIVATE} && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", own, "sh", *command]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        login = ["ssh", "-F", str(folder / "config"), "-p", str(port), "127.0.0.1", "true"]
        for _ in range(100):
            tried = subprocess.run(login, capture_output=True, text=True, check=False, timeout=30)
            if tried.returncode == 0 or process.poll() is not None:
                break
            time.sleep(0.1)
        if tried.returncode != 0:
            said = (folder / "log").read_text()
            pytest.skip(f"this machine runs no sshd of ours: {tried.stderr} {said}")
        yield Server(folder=folder, port=port, process=process)
    finally:
        for pid in children_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
        log.close()


def write_client(folder: Path, port: int, *, host_key: str, user_key: str) -> None:
    """Write what ssh reads in place of the user's own settings."""
    words = (folder / f"{host_key}.pub").read_text().split()[:2] if host_key else []
    known = f"[127.0.0.1]:{port} {' '.join(words)}\n" if words else ""
    (folder / "known_hosts").write_text(known)
    (folder / "config").write_text(
        f"Host *\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
        f"  IdentityFile {folder}/{user_key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
    )


@pytest.fixture
def client(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, with a client that may log in, and the Python that runs this test."""
    monkeypatch.setenv("HWNAS_SSH", f"ssh -F {server.folder}/config")
    monkeypatch.setenv("HWNAS_REMOTE_PYTHON", sys.executable)
    yield server
    write_client(server.folder, server.port, host_key="host_key", user_key="user_key")


def wrapper(path: Path, lines: str) -> str:
    """Write a program to be run in the place of Python."""
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)


class Recording:
    """A bench that keeps what another one gives, and does something before each round."""

    def __init__(self, bench: Bench, act: Callable[[int], None]) -> None:
        self.visits: list[NDArray[np.float64]] = []
        self._bench, self._act, self._rounds = bench, act, 0

    def prepare(self, index: int, settings: TimingSettings) -> None:
        self._bench.prepare(index, settings)

    def visit(self, indices: Sequence[int], samples: Sequence[int]) -> Iterator[Visit]:
        self._rounds += 1
        self._act(self._rounds)
        for taken in self._bench.visit(indices, samples):
            self.visits.append(taken.samples_us)
            yield taken

    def state(self) -> MachineState | None:
        return self._bench.state()


class Listener:
    """Progress that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[Listener]:
        yield self

    def advance(self, steps: float = 1, note: str = "") -> None:
        pass

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.mark.serial
def test_a_table_over_ssh_is_the_one_of_this_machine_and_nothing_is_left(
    client: Server,
    make_operator: Callable[[int], Operator],
    header: TableHeader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = tmp_path / "board"
    home.mkdir()
    places = f"cd {home} && HOME={home} TMPDIR={home} XDG_CACHE_HOME={home}"
    python = wrapper(tmp_path / "python", f'{places} exec {sys.executable} "$@"')
    monkeypatch.setenv("HWNAS_REMOTE_PYTHON", python)
    operators = [make_operator(width) for width in (4, 64, 512)]
    tables: dict[str, LatencyTable] = {}
    for target in (client.target, "onnxruntime-cpu"):
        path = tmp_path / f"{len(tables)}.jsonl"
        with profiler_for(target) as profiler:
            tables[target] = profile_operators(
                operators,
                profiler=profiler,
                path=path,
                header=replace(header, target="onnxruntime-cpu"),
                settings=SETTINGS,
            )
            device, here = profiler.device, this_device()
            assert (device.name, device.machine) == (here.name, here.machine)
            assert (device.cores, device.memory_mib) == (here.cores, here.memory_mib)
            assert profiler.packages["onnxruntime"]
    for operator in operators:
        remote, local = (table.latency_us(operator.key) for table in tables.values())
        assert 1 / 3 < remote / local < 3
    assert list(home.rglob("*")) == []  # a runtime's caches and reports included


def test_a_connection_cut_within_a_round_is_gone_on_from(
    client: Server, make_operator: Callable[[int], Operator]
) -> None:
    slow = replace(SETTINGS, min_sample_us=20_000)  # a round of two takes 0.2 s
    progress = Listener()

    def act(number: int) -> None:
        if number == 2:
            threading.Timer(0.1, client.cut).start()

    operators = [make_operator(width) for width in (4, 8)]
    with RemoteProfiler(parse_target(client.target), pauses_s=(0.1, 0.5)) as profiler:
        with profiler.compiled(operators, progress=progress) as compiled:
            bench = Recording(compiled.bench, act)
            timed = time_in_rounds(bench, 2, slow, progress=progress)
        assert profiler.facts()["connections"] == "2"
    assert len(progress.said) == 1
    assert "closed" in progress.said[0]
    kept = [id(samples) for each in timed for samples in each.rounds]
    assert sorted(kept) == sorted(map(id, bench.visits))  # all of them, and each once
    for each in timed:
        assert slow.min_samples <= each.count <= slow.max_samples


def test_a_network_is_fed_over_ssh_and_only_what_is_kept_is_left(
    client: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "board"
    home.mkdir()
    places = f"cd {home} && HOME={home} TMPDIR={home} XDG_CACHE_HOME={home}"
    python = wrapper(tmp_path / "python", f'{places} exec {sys.executable} "$@"')
    monkeypatch.setenv("HWNAS_REMOTE_PYTHON", python)
    module = nn.Conv2d(3, 4, 3).eval()
    model = onnx_from_module(module, (1, 3, 8, 8), dynamic_batch=True).SerializeToString()
    images = np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    progress = Listener()
    target = parse_target(client.target)
    with RemoteRunner(target, model, pauses_s=(0.1, 0.5), progress=progress) as board:
        before = board.infer(images)
        client.cut()
        after = board.infer(images)
        (latency,) = board.time([1], SETTINGS, log=RoundLog())
        kept = board.keep("engine", {"SHA256SUMS": b"0  model\n", "model": model})
        assert board.facts()["connections"] == "2"
    with OnnxRuntimeRunner(model) as here:
        expected = here.infer(images)
    assert np.array_equal(before, expected)
    assert np.array_equal(after, expected)
    assert latency.median_us > 0
    assert len(progress.said) == 1
    assert kept == str(home / "engine")
    assert sorted(file.name for file in home.rglob("*")) == ["SHA256SUMS", "engine", "model"]


def test_an_agent_that_is_killed_again_and_again_is_given_up(
    client: Server,
    make_operator: Callable[[int], Operator],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Killed from outside, as by a system that is short of memory, before a first round is done.
    killer = "(sleep 1; kill -9 $$) </dev/null >/dev/null 2>&1 &"
    python = wrapper(tmp_path / "python", f'{killer}\nexec {sys.executable} "$@"')
    monkeypatch.setenv("HWNAS_REMOTE_PYTHON", python)
    slow = replace(SETTINGS, min_sample_us=500_000)
    progress = Listener()
    with (
        RemoteProfiler(parse_target(client.target), pauses_s=(0.1,)) as profiler,
        pytest.raises(TargetError, match="the agent was killed, 2 times in a row") as caught,
    ):
        profiler.time([make_operator(4)], slow, progress=progress)
    assert "memory" in caught.value.hint
    assert progress.said


def test_an_interrupt_ends_the_agent(
    client: Server, make_operator: Callable[[int], Operator]
) -> None:
    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), profiler_for(client.target) as profiler:  # noqa: PT012
        assert children_of(client.process.pid)
        with profiler.compiled([make_operator(4)]) as compiled:
            time_in_rounds(Recording(compiled.bench, interrupt), 1, SETTINGS)
    waited = time.monotonic() + 10
    while children_of(client.process.pid) and time.monotonic() < waited:
        time.sleep(0.05)
    assert not children_of(client.process.pid)


@pytest.mark.parametrize(
    ("host_key", "user_key", "told", "hint"),
    [
        ("stranger_key", "user_key", "THE HOST KEY HAS CHANGED", "ssh-keygen -R '[127.0.0.1]:"),
        ("", "user_key", "its host key is not known here", "compare the fingerprint"),
        ("host_key", "stranger_key", "Permission denied", "ssh-copy-id"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    client: Server, host_key: str, user_key: str, told: str, hint: str
) -> None:
    write_client(client.folder, client.port, host_key=host_key, user_key=user_key)
    known = (client.folder / "known_hosts").read_bytes()
    with pytest.raises(TargetError, match=told) as caught, profiler_for(client.target):
        pass
    assert hint in caught.value.hint
    assert (client.folder / "known_hosts").read_bytes() == known  # no key was taken over


def test_a_key_that_changes_while_measuring_is_not_tried_again(
    client: Server, make_operator: Callable[[int], Operator]
) -> None:
    with (
        RemoteProfiler(parse_target(client.target), pauses_s=(0.0, 0.0, 0.0)) as profiler,
        profiler.compiled([make_operator(4)]) as compiled,
    ):
        compiled.bench.prepare(0, SETTINGS)
        keys = {"host_key": "stranger_key", "user_key": "user_key"}
        write_client(client.folder, client.port, **keys)
        client.cut()
        with pytest.raises(TargetError, match="THE HOST KEY HAS CHANGED"):
            list(compiled.bench.visit([0], [4]))


def test_a_port_where_nobody_listens_is_told(client: Server) -> None:
    with socket.socket() as bound:  # bound, but not listening
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        target = f"ssh://127.0.0.1:{port}/onnxruntime-cpu"
        with pytest.raises(TargetError, match="Connection refused") as caught, profiler_for(target):
            pass
    assert f"ssh -p {port} 127.0.0.1" in caught.value.hint


def test_a_host_that_does_not_exist_is_told(client: Server) -> None:
    target = "ssh://no-such-host.invalid/onnxruntime-cpu"
    with pytest.raises(TargetError, match="Could not resolve") as caught, profiler_for(target):
        pass
    assert "does the name exist" in caught.value.hint


def test_a_host_that_never_answers_is_told(client: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_board, "GREETING_S", 1)
    with socket.socket() as silent:  # it takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        target = f"ssh://127.0.0.1:{silent.getsockname()[1]}/onnxruntime-cpu"
        with pytest.raises(TargetError, match="no answer for 1 s"), profiler_for(target):
            pass


@pytest.mark.parametrize(
    ("python", "told", "hint"),
    [
        ("no-such-python", "there is no no-such-python on the board", "HWNAS_REMOTE_PYTHON=/"),
        ("bare", r"cannot import numpy", "-m pip install numpy onnxruntime"),
    ],
)
def test_a_board_without_what_is_needed_is_told(
    client: Server,
    python: str,
    told: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if python == "bare":  # without its packages
        python = wrapper(tmp_path / "python", f'exec {sys.executable} -S -E "$@"')
    monkeypatch.setenv("HWNAS_REMOTE_PYTHON", python)
    with pytest.raises(TargetError, match=told) as caught, profiler_for(client.target):
        pass
    assert hint in caught.value.hint
