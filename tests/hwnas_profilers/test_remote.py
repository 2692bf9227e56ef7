"""A board at the end of a plain pipe: all but ssh itself, which `test_remote_ssh` has."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

from hwnas.core.errors import TargetError
from hwnas_profilers import agent, remote_bench, remote_board
from hwnas_profilers.conditions import MachineState, load_of_others
from hwnas_profilers.models import OnnxModels
from hwnas_profilers.operators import profile_operators
from hwnas_profilers.remote import RemoteProfiler
from hwnas_profilers.remote_bench import _ContinuedClock
from hwnas_profilers.remote_ssh import board_command, failure_of, ssh_command
from hwnas_profilers.remote_wire import Cut, Wire
from hwnas_profilers.targets import parse_target
from hwnas_profilers.timing import TimingSettings, Visit, time_in_rounds
from hwnas_profilers.workload import Operator, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from hwnas_profilers.records import TableHeader
    from hwnas_profilers.timing import Bench

TARGET = parse_target("ssh://pi@board:2222/onnxruntime-cpu")
SOURCE = Path(agent.__file__).read_bytes()
SETTINGS = TimingSettings(
    relative_width=0.5,
    min_samples=12,
    max_samples=16,
    samples_per_round=4,
    warmup_calls=1,
    min_sample_us=20,
    max_disturbed=0,  # every round that comes back is kept
)


MODELS = OnnxModels()  # exported once for all tests


def workloads(*widths: int) -> list[Workload]:
    def make(width: int) -> Workload:
        return Workload(
            name=f"conv to {width}",
            build=lambda: nn.Conv2d(3, width, 3, padding=1).eval(),
            input_shape=(1, 3, 8, 8),
        )

    return [make(width) for width in widths]


def pipe(*, before: str = "", replacing: dict[str, str] | None = None) -> list[str]:
    """A command that starts the agent as ssh would, after a line of shell, with parts replaced."""
    changes = "s = s.replace({!r}.encode(), {!r}.encode()); assert s != before; before = s\n"
    patched = "".join(changes.format(*each) for each in (replacing or {}).items())
    program = (
        f"import sys\ns = before = sys.stdin.buffer.read({len(SOURCE)})\n{patched}"
        "exec(compile(s, 'agent.py', 'exec'), {'__name__': '__main__'})"
    )
    plain = board_command(sys.executable, SOURCE)
    patched_line = shlex.join(["exec", sys.executable, "-B", "-c", program])
    return ["sh", "-c", f"{before}\n{patched_line if replacing else plain}"]


def profiler(*, pauses_s: Sequence[float] = (0.0, 0.0), **how: Any) -> RemoteProfiler:
    board = RemoteProfiler(TARGET, command=pipe(**how), pauses_s=pauses_s)
    board.models = MODELS
    return board


class Listener:
    """Progress that keeps what is said, and does something at a task's steps."""

    def __init__(self, on: str = "", act: Callable[[int], None] = lambda step: None) -> None:
        self.said: list[str] = []
        self._on, self._act, self._steps, self._name = on, act, 0, ""

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[Listener]:
        self._name = name
        yield self

    def advance(self, steps: float = 1, note: str = "") -> None:
        if self._name == self._on:
            self._steps += 1
            self._act(self._steps)

    def say(self, message: str) -> None:
        self.said.append(message)


class Recording:
    """A bench that keeps what another one gives, and does something before some rounds."""

    def __init__(self, bench: Bench, act: Callable[[int], None] = lambda number: None) -> None:
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


def kill_agent(profiler: RemoteProfiler) -> None:
    wire = profiler._board._wire
    assert wire is not None
    wire._process.kill()
    wire._process.wait()


def check_all_kept(timed: Sequence[Any], bench: Recording, settings: TimingSettings) -> None:
    kept = [id(samples) for each in timed for samples in each.rounds]
    assert sorted(kept) == sorted(map(id, bench.visits))  # all of them, and each once
    for each in timed:
        assert settings.min_samples <= each.count <= settings.max_samples
        assert each.samples_us.min() > 0


def test_a_board_is_measured_like_this_machine(
    make_operator: Callable[[int], Operator], header: TableHeader, tmp_path: Path
) -> None:
    operators = [make_operator(width) for width in (4, 8, 16)]
    header = replace(header, host="ssh://pi@board:2222")
    with profiler(before="echo Welcome; printf 'no end of line'") as board:
        table = profile_operators(
            operators,
            profiler=board,
            path=tmp_path / "table.jsonl",
            header=header,
            settings=SETTINGS,
        )
        assert board.device.cores >= 1
        assert board.device.facts["python"] == ".".join(map(str, sys.version_info[:3]))
        assert set(board.packages) == {"numpy", "onnxruntime"}
    assert set(table.measurements) == {operator.key for operator in operators}
    for measurement in table.measurements.values():
        assert SETTINGS.min_samples <= measurement.statistics.n <= SETTINGS.max_samples
        assert measurement.statistics.median_us > 0


def test_a_round_is_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    with profiler() as board, board.compiled(workloads(4, 8, 16)) as compiled:
        asked: list[str] = []
        wire = board._board._wire
        assert wire is not None
        send = wire.send

        def counted(message: dict[str, Any], payload: bytes = b"", *, limit_s: int) -> None:
            asked.append(message["do"])
            send(message, payload, limit_s=limit_s)

        monkeypatch.setattr(wire, "send", counted)
        timed = time_in_rounds(compiled.bench, 3, SETTINGS)
    rounds = max(len(each.rounds) for each in timed)
    assert asked == ["prepare", "state"] + ["visit"] * rounds


@pytest.mark.parametrize("when", ["compiling", "before the first round", "before a round"])
def test_a_cut_between_rounds_is_gone_on_from(when: str) -> None:
    killed: list[int] = []

    def kill_once(number: int) -> None:
        if not killed and number == {"compiling": 2, "before the first round": 1}.get(when, 3):
            killed.append(number)
            kill_agent(board)

    progress = Listener("compiling", kill_once if when == "compiling" else lambda step: None)
    act = kill_once if when != "compiling" else lambda number: None
    with profiler() as board:
        with board.compiled(workloads(4, 8, 16), progress=progress) as compiled:
            assert compiled.accepted == (0, 1, 2)
            bench = Recording(compiled.bench, act)
            timed = time_in_rounds(bench, 3, SETTINGS, progress=progress)
        assert board.facts()["connections"] == "2"
    check_all_kept(timed, bench, SETTINGS)
    assert len(killed) == 1
    assert len(progress.said) == 1
    assert progress.said[0].startswith(f"{TARGET}: ")
    assert "connecting again in 0 s" in progress.said[0]


def test_a_cut_within_a_round_repeats_that_round_with_the_same_spans() -> None:
    slow = replace(SETTINGS, min_sample_us=15_000)  # a round of two takes 0.15 s
    spans: list[dict[int, int]] = []

    def act(number: int) -> None:
        bench_ = compiled.bench
        assert isinstance(bench_, remote_bench.RemoteBench)
        spans.append({index: each.span for index, each in bench_._spans.items()})
        if number == 2:
            threading.Timer(0.05, kill_agent, [board]).start()

    with profiler() as board:
        with board.compiled(workloads(4, 32)) as compiled:
            bench = Recording(compiled.bench, act)
            timed = time_in_rounds(bench, 2, slow)
        assert board.facts()["connections"] == "2"
    check_all_kept(timed, bench, slow)
    assert spans[0] == spans[-1]  # else samples before and after would not be of one kind


def test_only_what_is_unfinished_is_sent_again() -> None:
    with profiler() as board, board.compiled(workloads(4, 8, 16)) as compiled:
        bench = compiled.bench
        assert isinstance(bench, remote_bench.RemoteBench)
        for index in range(3):
            bench.prepare(index, SETTINGS)
        list(bench.visit([0, 1, 2], [2, 2, 2]))
        kill_agent(board)
        taken = list(bench.visit([2, 0], [3, 4]))
        assert bench._holder._held == {0, 2}
    assert [len(each.samples_us) for each in taken] == [3, 4]


def test_an_agent_that_dies_again_and_again_is_given_up() -> None:
    dying = {"visits = [\n": "os.kill(os.getpid(), 9)\n        visits = [\n"}
    progress = Listener()
    with (
        profiler(replacing=dying) as board,
        pytest.raises(TargetError, match="by signal 9, 3 times in a row") as caught,
    ):
        board.time(workloads(4), SETTINGS, progress=progress)
    assert "run the same command again" in caught.value.hint
    assert len(progress.said) == 2


def test_an_agent_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_bench, "_QUICK_S", 1)
    hanging = {"visits = [\n": "time.sleep(100)\n        visits = [\n"}
    began = time.monotonic()
    with (
        profiler(replacing=hanging, pauses_s=()) as board,
        pytest.raises(TargetError, match="no answer for 2 s"),
    ):
        board.time(workloads(4), SETTINGS)
    assert time.monotonic() - began < 20


def test_a_hung_agent_is_ended_by_its_own_system() -> None:
    hanging = {
        "visits = [\n": "time.sleep(100)\n        visits = [\n",
        "_GRACE_S = 30": "_GRACE_S = 0",
    }
    process = subprocess.Popen(
        pipe(replacing=hanging), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    commands = [
        {"runtime": "onnxruntime", "threads": 1},
        {"do": "visit", "order": [], "limit_s": 1},
    ]
    lines = b"".join(json.dumps(each).encode() + b"\n" for each in commands)
    process.stdin.write(SOURCE + lines)
    process.stdin.flush()  # and left open, as by a host that is gone without a word
    assert process.wait(30) < 0
    process.communicate()


@pytest.mark.parametrize(
    ("what", "changed", "told"),
    [
        ("/proc/sys/kernel/random/boot_id", "another boot", "it was started anew"),
        ("/etc/nv_tegra_release", "another release", "l4t was one, is another release"),
    ],
)
def test_another_board_than_before_is_refused(
    what: str, changed: str, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "fact"
    file.write_text("one")
    with (
        profiler(replacing={what: str(file)}) as board,
        board.compiled(workloads(4)) as compiled,
    ):
        compiled.bench.prepare(0, SETTINGS)
        file.write_text(changed)
        kill_agent(board)
        with pytest.raises(TargetError, match=told) as caught:
            list(compiled.bench.visit([0], [4]))
    assert "do not belong together" in caught.value.hint


def test_what_the_runtime_rejects_is_recorded_with_its_words(
    make_operator: Callable[[int], Operator],
    header: TableHeader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good, bad = make_operator(4), make_operator(8)
    with profiler() as board:
        model_of = board.models.model_of

        def spoiled(workload: Workload, *how: Any, **other: Any) -> Any:
            model = model_of(workload, *how, **other)
            if workload is bad:
                model.graph.node[0].op_type = "Frobnicate"
            return model

        monkeypatch.setattr(board.models, "model_of", spoiled)
        table = profile_operators(
            [good, bad],
            profiler=board,
            path=tmp_path / "table.jsonl",
            header=header,
            settings=SETTINGS,
        )
    assert set(table.measurements) == {good.key}
    assert set(table.unsupported) == {bad.key}
    assert "Frobnicate" in table.unsupported[bad.key]
    assert "onnxruntime-cpu rejects the model" in table.unsupported[bad.key]


def test_chatter_on_stdout_does_not_reach_the_answers() -> None:
    chatter = "os.write(1, b'chatter\\n'); print('more'); visits = [\n"
    with profiler(replacing={"visits = [\n": chatter}) as board:
        (timed,) = board.time(workloads(4), SETTINGS)
    assert timed is not None
    assert timed.count >= SETTINGS.min_samples


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("answers.write(b'hello\\n')", "does not speak as an agent does: `hello`"),
        ("answers.write(b'[1]\\n')", r"does not speak as an agent does: `\[1\]`"),
        ("answer({'id': 'zero'})", "does not speak as an agent does: the agent's answer"),
        ("answer({'id': 99, 'rejected': ''})", "answers for model 99, not for 0"),
    ],
)
def test_nonsense_from_the_board_is_refused(said: str, told: str) -> None:
    place = "        try:\n            for found in"
    model = remote_bench.Model(name="m", onnx=b"", shape=(1,), seed=(0, 0))
    with profiler(replacing={place: f"        {said}; answers.flush()\n{place}"}) as board:
        holder = remote_bench.Holder(board._board, {0: model})
        with pytest.raises(TargetError, match=told):
            board._board.surely(lambda wire: holder.hold(wire, [0]))


def test_a_stream_without_a_greeting_is_refused() -> None:
    with (
        pytest.raises(TargetError, match="does not speak as an agent does: `y"),
        profiler(before="exec yes"),
    ):
        pass


def test_an_agent_that_fails_is_told_in_its_words() -> None:
    failing = {"visits = [\n": "raise OSError('no such disk')\n        visits = [\n"}
    with (
        profiler(replacing=failing) as board,
        pytest.raises(TargetError, match="the agent failed: OSError: no such disk"),
    ):
        board.time(workloads(4), SETTINGS)


@pytest.mark.parametrize(
    ("replacing", "told", "hint"),
    [
        (
            {"import onnxruntime as ort\n": "import no_onnxruntime as ort\n"},
            "cannot import no_onnxruntime",
            "ssh -p 2222 pi@board python3 -m pip install numpy onnxruntime",
        ),
        (
            {'"onnxruntime": ort.__version__': '"onnxruntime": "1.16.3"'},
            "the board has onnxruntime 1.16.3, and hwnas needs onnxruntime>=1.18",
            "pip install numpy onnxruntime",
        ),
        (
            {
                "import onnxruntime as ort\n": "import no_onnxruntime as ort\n",
                "python = platform.python_version()": "python = '3.10.12'",
            },
            r"Python 3\.10\.12\) cannot import",
            "onnxruntime==1.23.2",
        ),
        (
            {
                "import onnxruntime as ort\n": "import no_onnxruntime as ort\n",
                '"machine": platform.machine(), "words"': '"machine": "armv7l", "words"',
            },
            "cannot import",
            "no onnxruntime packages for armv7l: install a 64-bit system",
        ),
    ],
)
def test_a_board_that_lacks_the_runtime_is_told_the_line(
    replacing: dict[str, str], told: str, hint: str
) -> None:
    with pytest.raises(TargetError, match=told) as caught, profiler(replacing=replacing):
        pass
    assert hint in caught.value.hint


def test_energy_cannot_be_told_over_ssh() -> None:
    with pytest.raises(TargetError, match="energy"):
        RemoteProfiler(TARGET).energies(workloads(4))


def test_counters_continue_where_another_agent_takes_over() -> None:
    def state(at_ns: float, own_ns: float, busy_ns: float) -> MachineState:
        return MachineState(
            at_ns=at_ns,
            cores=2,
            own_ns=own_ns,
            busy_ns=busy_ns,
            tick_ns=0,
            pilot_ns=1,
            temperature_c=None,
            clock_mhz=None,
            throttled="",
        )

    clock = _ContinuedClock()
    last = clock.continued(state(1_000, 500, 800))
    # A pause of 9,000 in which others were busy, and a new process that counts from zero.
    clock.go_on_from(state(10_000, 20, 7_000))
    next_ = clock.continued(state(10_100, 110, 7_140))
    assert next_.at_ns - last.at_ns == 100
    assert load_of_others(last, next_) == pytest.approx((140 - 90) / (100 * 2))


def test_ssh_is_asked_strictly_and_never_takes_a_destination_for_an_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HWNAS_SSH", raising=False)
    monkeypatch.setenv("HWNAS_REMOTE_PYTHON", "my python; rm -rf x")
    command = ssh_command(TARGET, SOURCE)
    assert command[0] == "ssh"
    for option in ("StrictHostKeyChecking=yes", "BatchMode=yes", "ForwardAgent=no"):
        assert command[command.index(option) - 1] == "-o"
    assert command[-5:-1] == ["-p", "2222", "--", "pi@board"]
    assert shlex.split(command[-1])[1] == "my python; rm -rf x"  # one word to the shell there

    monkeypatch.setenv("HWNAS_SSH", "ssh -F 'my config'")
    assert ssh_command(TARGET, SOURCE)[:3] == ["ssh", "-F", "my config"]
    monkeypatch.setenv("HWNAS_SSH", "ssh 'unclosed")
    with pytest.raises(ValueError, match="HWNAS_SSH"):
        ssh_command(TARGET, SOURCE)


def test_an_agent_that_arrives_cut_does_not_run() -> None:
    line = board_command(sys.executable, SOURCE)
    done = subprocess.run(["sh", "-c", line], input=SOURCE[:-1], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"changed or cut" in done.stderr


def test_a_missing_ssh_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_SSH", "no-such-ssh")
    with (
        pytest.raises(TargetError, match="`no-such-ssh` cannot be started"),
        RemoteProfiler(TARGET),
    ):
        pass


@pytest.mark.parametrize(
    ("status", "stderr", "message", "hint", "passing"),
    [
        (
            255,
            "ssh: Could not resolve hostname board: Name or service not known\r\n",
            "Could not resolve hostname board",
            "does the name exist?",
            True,
        ),
        (255, "Connection to board port 22 timed out\n", "timed out", "on this network", True),
        (255, "Timeout, server board not responding.\n", "not responding", "try `ssh", True),
        (
            255,
            "Welcome to the lab\nclient_loop: send disconnect: Broken pipe\n",
            "client_loop: send disconnect: Broken pipe",
            "",
            True,
        ),
        (255, "Welcome to the lab\n", "the agent was killed: Welcome", "memory", True),
        (137, "", "the agent was killed", "memory", True),
        (127, "sh: 1: exec: python3: not found\n", "no python3 on the board", "PYTHON=", False),
        (
            1,
            "this Python is too old: 3.6\n",
            "is 3.6; hwnas needs 3.8 or newer",
            "HWNAS_REMOTE_PYTHON",
            False,
        ),
        (
            255,
            "/home/me/.ssh/config: line 3: Bad configuration option: hsot\n"
            "/home/me/.ssh/config: terminating, 1 bad configuration options\n",
            "refuses its own configuration",
            "mend the file",
            False,
        ),
        (1, "This account is currently not available.\n", "status 1: This account", "", False),
    ],
)
def test_each_end_of_a_connection_is_explained(
    status: int, stderr: str, message: str, hint: str, passing: bool
) -> None:
    failure = failure_of(Cut(status=status, stderr=stderr, greeted=False), TARGET)
    assert message in failure.message
    assert hint in failure.hint
    assert failure.passing is passing


def test_nothing_of_the_agent_is_left_when_the_host_leaves() -> None:
    with profiler() as board:
        board.time(workloads(4), SETTINGS)
        wire = board._board._wire
        assert wire is not None
        process = wire._process
    assert process.returncode == 0  # it ended by itself, at the end of its stdin


def test_an_interrupt_ends_the_agent() -> None:
    seen: list[subprocess.Popen[bytes]] = []

    def interrupted(wire: Wire) -> None:
        seen.append(wire._process)
        raise KeyboardInterrupt

    with profiler() as board, pytest.raises(KeyboardInterrupt):
        board._board.surely(interrupted)
    assert seen[0].returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0].pid, 0)


def test_the_first_connection_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def counted(command: Sequence[str], first: bytes) -> Wire:
        tries.append(1)
        return Wire(command, first)

    monkeypatch.setattr(remote_board, "Wire", counted)
    with pytest.raises(TargetError, match="ended with status 3"), profiler(before="exit 3"):
        pass
    assert len(tries) == 1
