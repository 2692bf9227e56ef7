"""A line to an agent: JSON lines and bytes over the pipes of a process, e.g. of ssh."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeVar, final

from hwnas.core.decoding import convert
from hwnas.core.errors import ConfigError, TargetError
from hwnas_profilers.agent import GREETING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T")

_LINE_BYTES = 16 * 2**20
_SKIPPED_BYTES = 64 * 2**10
_TAIL_BYTES = 8 * 2**10
_SLICE_BYTES = 64 * 2**10
_FAREWELL_S = 5.0
_SHOWN_CHARACTERS = 200


class Cut(Exception):
    """The agent cannot be heard any more; never leaves this package.

    Attributes:
        status: Exit status of the process.
        stderr: The end of what it, or the agent, wrote there.
        skipped: What came before the greeting.
        greeted: Whether the agent had greeted.
        timeout_s: For how long there was no answer, where that is why; else None.
    """

    def __init__(
        self,
        *,
        status: int,
        stderr: str,
        skipped: str = "",
        greeted: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(f"status {status}: {stderr}")
        self.status = status
        self.stderr = stderr
        self.skipped = skipped
        self.greeted = greeted
        self.timeout_s = timeout_s


@final
class Wire:
    """A process with an agent at its end, to which commands are sent, and which answers in order.

    Args:
        command: Starts the process; it is not run by a shell.
        first: What is written before any command.

    Raises:
        TargetError: It cannot be started.
    """

    def __init__(self, command: Sequence[str], first: bytes) -> None:
        # A file cannot fill up as a pipe does, and whoever holds on to it keeps nobody waiting.
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        try:
            # In a session of its own, so that Ctrl-C reaches this program and not ssh.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,
            )
        except OSError as error:
            self._stderr.close()
            raise TargetError(
                f"`{command[0]}` cannot be started: {error.strerror}",
                hint="install an OpenSSH client; HWNAS_SSH names another command",
            ) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._first = first
        self._skipped = b""
        self._greeted = False
        self._timed_out = threading.Event()
        self.sent_bytes = 0
        """What was written, the agent itself included."""
        self.received_bytes = 0

    def greeting(self, kind: type[T], *, limit_s: int) -> T | dict[str, Any]:
        """Send the first bytes, and return the agent's greeting, after whatever a login prints.

        Returns:
            The greeting; as it came, where the agent cannot go on.

        Raises:
            Cut: There is none.
            TargetError: Something else than an agent speaks.
        """
        self._write(self._first, limit_s)
        with self._deadline(limit_s):
            line = self._line(limit_s)
            while not line.startswith(GREETING.encode()):
                self._skipped += line
                if len(self._skipped) > _SKIPPED_BYTES:
                    raise self._nonsense(self._skipped)
                line = self._line(limit_s)
        self._greeted = True
        greeting = self._decoded(line[len(GREETING) :])
        return greeting if "missing" in greeting else self._converted(greeting, kind)

    def send(
        self,
        message: Mapping[str, object],
        payload: bytes = b"",
        *,
        limit_s: int,
        on_sent: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Send a command.

        Args:
            message: The command.
            payload: Bytes that belong to it.
            limit_s: How long it may take; the agent ends itself where it takes far longer.
            on_sent: Told of bytes of the payload as they are taken.

        Raises:
            Cut: The agent is gone.
        """
        fields = {**message, "bytes": len(payload), "limit_s": limit_s}
        self._write(json.dumps(fields).encode() + b"\n", limit_s)
        if payload:
            self._write(payload, limit_s, on_sent)

    def receive(self, kind: type[T], *, limit_s: int) -> T:
        """Wait for an answer of a kind.

        Raises:
            Cut: The agent is gone, or the answer is not there in time.
            TargetError: The agent failed, or what came is no such answer.
        """
        with self._deadline(limit_s):
            line = self._line(limit_s)
        answer = self._decoded(line)
        if "error" in answer:
            raise TargetError(f"the agent failed: {answer['error']}")
        return self._converted(answer, kind)

    def close(self, *, gently: bool) -> None:
        """End the agent, and leave no process.

        Args:
            gently: Let it end by itself, as it does when it is at rest.
        """
        if gently:
            self._close_input()
        else:
            self._process.terminate()
        try:
            self._process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close_input()
        self._output.close()
        self._stderr.close()

    def _close_input(self) -> None:
        # Half a command may be left in the buffer; nobody waits for it.
        with contextlib.suppress(OSError):
            self._input.close()

    def _write(
        self, data: bytes, limit_s: int, on_sent: Callable[[int], None] = lambda count: None
    ) -> None:
        with self._deadline(limit_s):
            for begin in range(0, len(data), _SLICE_BYTES):
                part = data[begin : begin + _SLICE_BYTES]
                try:
                    self._input.write(part)
                    self._input.flush()
                except OSError as error:
                    raise self._cut(limit_s) from error
                self.sent_bytes += len(part)
                on_sent(len(part))

    def _line(self, limit_s: int) -> bytes:
        line = self._output.readline(_LINE_BYTES)
        self.received_bytes += len(line)
        if line.endswith(b"\n"):
            return line
        if len(line) == _LINE_BYTES:
            raise self._nonsense(line)
        raise self._cut(limit_s)

    def _cut(self, limit_s: int) -> Cut:
        try:
            status = self._process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:  # it closed its end, but lives
            self._process.kill()
            status = self._process.wait()
        self._stderr.seek(0, 2)
        self._stderr.seek(max(self._stderr.tell() - _TAIL_BYTES, 0))
        return Cut(
            status=status,
            stderr=self._stderr.read().decode(errors="replace"),
            skipped=self._skipped.decode(errors="replace"),
            greeted=self._greeted,
            timeout_s=limit_s if self._timed_out.is_set() else None,
        )

    @contextmanager
    def _deadline(self, limit_s: int) -> Iterator[None]:
        """End the process if this takes too long: then reads and writes end too, wherever."""

        def end() -> None:
            self._timed_out.set()
            self._process.kill()

        timer = threading.Timer(limit_s, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _decoded(self, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise self._nonsense(line) from error
        if not isinstance(answer, dict):
            raise self._nonsense(line)
        return answer

    def _converted(self, answer: dict[str, Any], kind: type[T]) -> T:
        try:
            return convert(answer, kind, source="the agent's answer")
        except ConfigError as error:
            raise TargetError(f"the board does not speak as an agent does: {error}") from error

    @staticmethod
    def _nonsense(said: bytes) -> TargetError:
        text = said.decode(errors="replace").strip()[:_SHOWN_CHARACTERS]
        return TargetError(
            f"the board does not speak as an agent does: `{text}`",
            hint="something else writes there: look at the shell's start-up files on the board",
        )
