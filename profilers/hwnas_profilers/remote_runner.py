"""A compiled network on a board that is fed from here: it is verified as an engine of this machine.

Images go over the wire and logits come back. Where the connection is cut, the model is sent again,
as the board keeps nothing, and the images that were not answered; what was answered is not asked
for again. Latency is measured by the agent's own visits, next to the network.
"""

from __future__ import annotations

import base64
import itertools
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from hwnas.core.errors import ExportError, TargetError
from hwnas.core.progress import SILENT
from hwnas_export.runner import Runner
from hwnas_profilers.remote_bench import Holder, Model, RemoteBench, Visited, facts_of, limit_of
from hwnas_profilers.remote_board import PAUSES_S, Board, install_line
from hwnas_profilers.remote_packing import packed
from hwnas_profilers.statistics import summarize
from hwnas_profilers.timing import time_in_rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from hwnas.core.environment import Device
    from hwnas.core.progress import Progress, Task
    from hwnas_export.runner import Sampler
    from hwnas_profilers.records import Statistics
    from hwnas_profilers.remote_wire import Wire
    from hwnas_profilers.targets import Target
    from hwnas_profilers.timing import RoundLog, TimingSettings

_NETWORK = 0  # its number on the board; inputs that are bound count on from there
_PART_BYTES = 4 * 2**20  # of images that are asked about at once: what a cut loses
_RUN_AGAIN = "run the same command again"
_TOO_NEW = re.compile(r"opset|IR[ _]version", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inferred:
    id: int
    shape: list[int]
    values: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    id: int
    rejected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Called:
    id: int
    elapsed_ns: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    folder: str
    refused: str


@final
class RemoteRunner(Runner):
    """Run an ONNX model with the runtime of a board.

    Args:
        target: A target with a destination.
        model: The serialized ONNX model, in the target's precision.
        threads: Threads within an operator, on a CPU.
        batches: Smallest, most frequent and largest batch, where the model's batch is free.
        progress: Told of what is sent and of lost connections.
        command: Starts an agent that reads its source from stdin; by default over ssh.
        pauses_s: Before each further try where the connection was cut.
    """

    def __init__(
        self,
        target: Target,
        model: bytes,
        *,
        threads: int = 1,
        batches: tuple[int, int, int] = (1, 1, 65_536),
        progress: Progress = SILENT,
        command: Sequence[str] | None = None,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        super().__init__()
        self.name = str(target)
        self._target = target
        self._model = model
        self._largest = batches[2]
        self._batches = batches
        self._models: dict[int, Model] = {}
        self._timed: dict[int, int] = {}
        self._progress = progress
        self._board = Board(target, threads, command=command, pauses_s=pauses_s, if_lost=_RUN_AGAIN)
        self._numbers = itertools.count(_NETWORK + 1)
        self._on_sent: Callable[[int], None] = lambda count: None

    @property
    def device(self) -> Device:
        """The board."""
        return self._board.greeting.device

    @property
    def packages(self) -> dict[str, str]:
        """Versions of the libraries on the board, by package."""
        return dict(self._board.greeting.packages)

    @property
    def traffic_bytes(self) -> tuple[int, int]:
        """What was sent to the board and what was received from it so far."""
        return self._board.traffic_bytes

    def facts(self) -> dict[str, str]:
        """Return what the board says of itself now: see `remote_bench.facts_of`."""
        self._check_active()
        return facts_of(self._board)

    def time(
        self, batches: Sequence[int], settings: TimingSettings, *, log: RoundLog
    ) -> list[Statistics]:
        """Measure the latency of calls on the board, by visits there in interleaved rounds.

        Args:
            batches: Images per call; of a model with a fixed batch that one alone.
            settings: How exactly.
            log: Takes note of what the rounds were like.
        """
        numbers = [self._number_of(batch) for batch in batches]
        bench = RemoteBench(self._holder, numbers, self._progress)
        timed = time_in_rounds(bench, len(numbers), settings, log=log, progress=self._progress)
        return [summarize(each.samples_us) for each in timed]

    def time_calls(self, batch: int, calls: int) -> NDArray[np.float64]:
        """Time calls on the board one by one; microseconds, (calls,).

        Args:
            batch: Images per call.
            calls: How many.
        """
        number = self._number_of(batch)
        limit_s = limit_of(b"")

        def work(wire: Wire) -> Visited:
            self._hold(wire, number)
            wire.send({"do": "visit", "order": [(number, calls, 1)]}, limit_s=limit_s)
            return wire.receive(Visited, limit_s=limit_s)

        (samples_us,) = self._board.surely(work, progress=self._progress).samples_us
        return np.array(samples_us, dtype=np.float64)

    def _number_of(self, batch: int) -> int:
        """Return the number of the network on images of a batch, which are drawn on the board."""
        self._check_active()
        if batch not in self._timed:
            self._timed[batch] = next(self._numbers)
            self._models[self._timed[batch]] = Model(
                name="the engine",
                onnx=b"",
                shape=(batch, *self._shape[1:]),
                seed=(0, batch),
                of=_NETWORK,
            )
        return self._timed[batch]

    def check_room(self, folder: str, needed: int) -> None:
        """Make sure, before hours of work, that files can be kept in a folder on the board.

        Args:
            folder: Its path there; a relative one begins where a login lands.
            needed: Bytes.

        Raises:
            TargetError: They cannot.
        """
        self._keep({"folder": folder, "files": [], "needed": needed}, b"")

    def keep(self, folder: str, files: dict[str, bytes]) -> str:
        """Write files into a folder on the board, in the place of those that were kept before.

        They arrive all or not at all, and only if each has the hash that it has here.

        Args:
            folder: As in `check_room`.
            files: Contents by name, `SHA256SUMS` among them.

        Returns:
            The folder's whole path.

        Raises:
            TargetError: They cannot be written.
        """
        from hwnas.core.artifacts import sha256_of

        listed = [[name, len(content), sha256_of(content)] for name, content in files.items()]
        return self._keep({"folder": folder, "files": listed}, b"".join(files.values()))

    def _activate_impl(self) -> None:
        self._shape = _input_shape(self._model)
        free = self._shape[0] is None
        model = Model(
            name="the engine",
            onnx=self._model,
            shape=(self._shape[0] or self._batches[0], *self._shape[1:]),
            seed=(0, 0),
            batches=self._batches if free else None,
        )
        self._board.connect()
        self._models, self._timed = {_NETWORK: model}, {model.shape[0]: _NETWORK}
        self._holder = Holder(self._board, self._models, lambda count: self._on_sent(count))
        try:
            with self._sending(len(self._model), then="compiling there"):
                self._holder.offer(self._refuse, self._progress)
        except BaseException:
            self._board.close(gently=False)
            raise

    def _close_impl(self) -> None:
        self._board.close()

    def _input_shape_impl(self) -> tuple[int | None, int, int, int]:
        return self._shape

    def _infer_impl(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        fit = max(_PART_BYTES // max(images[:1].nbytes, 1), 1)
        size = self._shape[0] or min(fit, self._largest)
        parts = [
            self._infer_part(images[begin : begin + size])
            for begin in range(0, max(len(images), 1), size)
        ]
        return np.concatenate(parts)

    def _infer_part(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        packing, payload = packed(images)
        command = {"do": "infer", "id": _NETWORK, **packing}
        answer = self._ask(command, payload, _Inferred)
        values = np.frombuffer(base64.b64decode(answer.values), "<f4").astype(np.float32)
        if len(answer.shape) < 1 or answer.shape[0] != len(images):
            raise TargetError(f"{self.name} answers for other images than it was asked about")
        return values.reshape(answer.shape)

    def _call_on_impl(self, images: NDArray[np.float32]) -> Callable[[], object]:
        sample = self._sampler_on_impl(images)
        return lambda: sample(1)

    def _sampler_on_impl(self, images: NDArray[np.float32]) -> Sampler:
        packing, payload = packed(images)
        number = next(self._numbers)
        bound_at = 0

        def bound(wire: Wire) -> None:
            nonlocal bound_at
            self._hold(wire)
            if bound_at == self._board.connections:
                return
            command = {"do": "bind", "id": _NETWORK, "as": number, **packing}
            limit_s = limit_of(payload)
            wire.send(command, payload, limit_s=limit_s)
            wire.receive(_Bound, limit_s=limit_s)
            bound_at = self._board.connections

        def sample(calls: int) -> float:
            def work(wire: Wire) -> _Called:
                bound(wire)
                limit_s = limit_of(b"")
                wire.send({"do": "call", "id": number, "calls": calls}, limit_s=limit_s)
                return wire.receive(_Called, limit_s=limit_s)

            return self._board.surely(work, progress=self._progress).elapsed_ns

        self._board.surely(bound, progress=self._progress)
        return sample

    def _ask(self, command: dict[str, Any], payload: bytes, kind: type[Any]) -> Any:
        """Ask the agent, once it holds the model."""
        limit_s = limit_of(payload)

        def work(wire: Wire) -> Any:
            self._hold(wire)
            wire.send(command, payload, limit_s=limit_s, on_sent=self._on_sent)
            return wire.receive(kind, limit_s=limit_s)

        return self._board.surely(work, progress=self._progress)

    def _hold(self, wire: Wire, number: int = _NETWORK) -> None:
        self._holder.is_new()  # a new agent holds nothing
        self._holder.hold(wire, [number])

    def _keep(self, command: dict[str, Any], payload: bytes) -> str:
        self._check_active()
        with self._sending(len(payload), then="writing there"):
            answer = self._ask({"do": "keep", **command}, payload, _Kept)
        if answer.refused:
            raise TargetError(
                f"{answer.folder} on {self._target.host} cannot be written: {answer.refused}",
                hint="name another folder, or make room there",
            )
        folder: str = answer.folder
        return folder

    @contextmanager
    def _sending(self, size_bytes: int, *, then: str) -> Iterator[None]:
        """Show how much is sent, and what the board does once it has all."""
        if not size_bytes:
            yield
            return
        with self._progress.task("sending (KiB)", round(size_bytes / 1024, 1)) as task:
            self._on_sent = _Sent(task, size_bytes, then)
            try:
                yield
            finally:
                self._on_sent = lambda count: None

    def _refuse(self, _: int, reason: str) -> None:
        if not reason:
            return
        hint = "the engine does not run there: take another target, or export it again"
        if _TOO_NEW.search(reason):
            greeting = self._board.greeting
            runtime = self._target.name.partition("-")[0]
            had = f"{runtime} {greeting.packages.get(runtime, '')}".strip()
            python = greeting.facts.get("python", "")
            line = install_line(self._target, runtime, python, greeting.machine)
            hint = f"the model is too new for {had} on the board; install a newer one: {line}"
        raise ExportError(f"{self.name} rejects the model: {reason}", hint=hint)


class _Sent:
    """Advances a task by bytes; what is sent again after a cut is not counted twice."""

    def __init__(self, task: Task, size_bytes: int, then: str) -> None:
        self._task, self._left, self._then = task, size_bytes, then

    def __call__(self, count: int) -> None:
        count = min(count, self._left)
        self._left -= count
        self._task.advance(count / 1024, note="" if self._left else self._then)


def _input_shape(model: bytes) -> tuple[int | None, int, int, int]:
    import onnx

    try:
        graph = onnx.load_model_from_string(model).graph
    except Exception as error:  # protobuf's DecodeError, which ships no type information
        raise ExportError(f"the engine is no ONNX model: {error}") from error
    held = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in held]
    dimensions = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else []
    sizes = [each.dim_value or None for each in dimensions]
    if len(sizes) != 4 or None in sizes[1:]:
        raise ExportError("the engine has not one input (batch, channels, height, width)")
    batch, channels, height, width = sizes
    return batch, channels or 0, height or 0, width or 0
