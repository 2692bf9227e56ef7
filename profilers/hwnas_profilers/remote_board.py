"""A board with an agent on it, which is found again where the connection is cut."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from hwnas.core.environment import Device
from hwnas.core.errors import TargetError
from hwnas.core.progress import SILENT
from hwnas_profilers import agent
from hwnas_profilers.conditions import MachineState
from hwnas_profilers.remote_ssh import board_python, failure_of, login_command, ssh_command
from hwnas_profilers.remote_wire import Cut, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hwnas.core.progress import Progress
    from hwnas_profilers.targets import Target

T = TypeVar("T")

RUN_AGAIN = "what is finished is kept: run the same command again to go on"
"""What a table's user is told where a board is lost."""

PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Before each further try to reach a board that was lost."""

GREETING_S = 180
"""A small board with a slow card needs a minute to load a runtime."""

_NEWEST_ONNXRUNTIME = {(3, 8): "1.19.2", (3, 9): "1.19.2", (3, 10): "1.23.2"}
"""By Python; https://pypi.org/project/onnxruntime says what each release has wheels for."""

_SERVED = {"onnxruntime": ((1, 18), (2,)), "tensorrt": ((10, 3), (12,))}
"""Oldest version, and first that is too new. hwnas exports opset 20 in IR 10: onnxruntime 1.18."""

_64_BIT = ("aarch64", "arm64", "x86_64", "AMD64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What an agent says of its board. `boot` is new whenever the board is started."""

    name: str
    driver: str
    machine: str
    cores: int
    memory_mib: int
    system: str
    governor: str
    boot: str
    facts: dict[str, str]
    packages: dict[str, str]
    state: MachineState
    wire: int

    @property
    def device(self) -> Device:
        """The board, as tables describe devices."""
        return Device(
            name=self.name,
            machine=self.machine,
            cores=self.cores,
            memory_mib=self.memory_mib,
            system=self.system,
            governor=self.governor,
            driver=self.driver,
            facts=self.facts,
        )

    @property
    def identity(self) -> dict[str, str]:
        """What must not change while figures are taken that belong together."""
        facts = {name: self.facts.get(name, "") for name in ("python", "l4t", "power_mode")}
        names = ("name", "driver", "machine", "cores", "system", "boot")
        return {name: str(getattr(self, name)) for name in names} | facts | self.packages


@final
class Board:
    """An agent on a board, and the way to it.

    Args:
        target: A target with a destination.
        threads: Threads within an operator.
        command: Starts an agent that reads its source from stdin; by default over ssh.
        pauses_s: Before each further try where the connection was cut.
        if_lost: What to do where it is lost for good.
    """

    def __init__(
        self,
        target: Target,
        threads: int,
        *,
        command: Sequence[str] | None = None,
        pauses_s: Sequence[float] = PAUSES_S,
        if_lost: str = RUN_AGAIN,
    ) -> None:
        self.target = target
        self._if_lost = if_lost
        self._traffic = (0, 0)
        self._source = Path(agent.__file__).read_bytes()
        runtime = target.name.partition("-")[0]
        setup = json.dumps({"runtime": runtime, "threads": threads}).encode() + b"\n"
        self._first = self._source + setup
        self._command = command
        self._pauses_s = pauses_s
        self._wire: Wire | None = None
        self._greeting: Greeting | None = None
        self.connections = 0
        """How often it was connected to: with each, the agent holds no model."""

    @property
    def greeting(self) -> Greeting:
        """What the board said of itself when it was first reached."""
        if self._greeting is None:
            raise RuntimeError(
                f"{self.target} is not connected: use its profiler in a `with` block"
            )
        return self._greeting

    @property
    def traffic_bytes(self) -> tuple[int, int]:
        """What was sent and what was received so far, over all connections."""
        sent, received = self._traffic
        if self._wire is not None:
            sent, received = sent + self._wire.sent_bytes, received + self._wire.received_bytes
        return sent, received

    def connect(self) -> None:
        """Reach the board for the first time.

        Raises:
            TargetError: It cannot be reached, or cannot be measured.
        """
        try:
            self._connected()
        except Cut as cut:
            failure = failure_of(cut, self.target)
            raise TargetError(f"{self.target}: {failure.message}", hint=failure.hint) from cut
        finally:
            if self._greeting is None:
                self.close(gently=False)

    def close(self, *, gently: bool = True) -> None:
        """End the agent, and with it all that it holds."""
        self._traffic = self.traffic_bytes
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close(gently=gently)

    def surely(self, work: Callable[[Wire], T], *, progress: Progress = SILENT) -> T:
        """Do work with the agent; where it is cut, connect again and do it anew.

        Args:
            work: Sends commands and receives all of their answers. Whatever it needs the agent to
                hold, it sees to itself: `connections` tells whether that is a new one.
            progress: Told of each cut.

        Raises:
            TargetError: The agent fails, or was lost too often.
        """
        for tries, pause_s in enumerate((*self._pauses_s, None), start=1):
            try:
                return work(self._connected())
            except Cut as cut:
                self.close(gently=False)
                failure = failure_of(cut, self.target)
                message = f"{self.target}: {failure.message}"
                if pause_s is None or not failure.passing:
                    times = f", {tries} times in a row" if tries > 1 else ""
                    hint = f"{failure.hint}; {self._if_lost}" if failure.hint else self._if_lost
                    raise TargetError(f"{message}{times}", hint=hint) from cut
                progress.say(f"{message}; connecting again in {pause_s:g} s")
                time.sleep(pause_s)
            except BaseException:
                # Answers may be on their way that nobody waits for any more.
                self.close(gently=False)
                raise
        raise AssertionError("the last try returns or raises")

    def _connected(self) -> Wire:
        if self._wire is not None:
            return self._wire
        self._wire = Wire(self._command or ssh_command(self.target, self._source), self._first)
        greeting = self._wire.greeting(Greeting, limit_s=GREETING_S)
        if not isinstance(greeting, Greeting):
            raise _missing(self.target, greeting)
        if self._greeting is None:
            _check_versions(self.target, greeting)
            self._greeting = greeting
        _check_same(self.target, self._greeting, greeting, self._if_lost)
        self.connections += 1
        return self._wire


def _check_same(target: Target, before: Greeting, now: Greeting, if_lost: str) -> None:
    was, now_is = before.identity, now.identity
    changed = {name for name in was | now_is if was.get(name) != now_is.get(name)}
    if not changed:
        return
    if changed == {"boot"}:
        what = "it was started anew"
    else:
        what = ", ".join(
            f"{name} was {was.get(name)}, is {now_is.get(name)}"
            for name in sorted(changed - {"boot"})
        )
    raise TargetError(
        f"{target} is not as it was before the connection was lost: {what}",
        hint=f"figures of before and after do not belong together; {if_lost}",
    )


def _check_versions(target: Target, greeting: Greeting) -> None:
    if greeting.wire != agent.WIRE:
        raise TargetError(
            f"{target}: the agent speaks version {greeting.wire} of what is said between it and "
            f"hwnas, which speaks version {agent.WIRE}"
        )
    for name, (oldest, too_new) in _SERVED.items():
        version = greeting.packages.get(name)
        if version is None:
            continue
        parts = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if not oldest <= parts < too_new:
            python = greeting.facts.get("python", "")
            needs = f">={'.'.join(map(str, oldest))},<{'.'.join(map(str, too_new))}"
            raise TargetError(
                f"{target}: the board has {name} {version}, and hwnas needs {name}{needs}",
                hint=install_line(target, name, python, greeting.machine),
            )


def _missing(target: Target, said: dict[str, Any]) -> TargetError:
    name, python, machine = (str(said.get(key, "")) for key in ("missing", "python", "machine"))
    words = f" ({said.get('words')})"
    if name == "libcuda.so.1":
        return TargetError(
            f"{target}: the board has no NVIDIA driver{words}",
            hint="use a board with an NVIDIA GPU and its driver",
        )
    return TargetError(
        f"{target}: {board_python()} on the board (Python {python}) cannot import "
        f"{name or 'what it needs'}{words}",
        hint=install_line(target, name, python, machine),
    )


def install_line(target: Target, name: str, python: str, machine: str) -> str:
    """Return how to get a package onto a board.

    Args:
        target: The board.
        name: The package, or what it imports as.
        python: Version of the board's Python.
        machine: Its instruction set.
    """
    if name == "tensorrt":
        return (
            "on a Jetson it comes with JetPack: sudo apt install python3-libnvinfer; elsewhere "
            "pip install tensorrt"
        )
    if machine not in _64_BIT:
        return f"there are no onnxruntime packages for {machine}: install a 64-bit system"
    version = tuple(int(part) for part in re.findall(r"\d+", python)[:2])
    newest = _NEWEST_ONNXRUNTIME.get((version[0], version[1])) if len(version) > 1 else None
    onnxruntime = f"onnxruntime=={newest}" if newest else "onnxruntime"
    line = f"{login_command(target)} {board_python()} -m pip install numpy {onnxruntime}"
    return (
        f"{line}; or into a virtual environment there, named by HWNAS_REMOTE_PYTHON=.../bin/python"
    )
