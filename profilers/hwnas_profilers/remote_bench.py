"""Models that a board holds, and rounds that visit them there."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import numpy as np

from hwnas.core.errors import TargetError
from hwnas_profilers.conditions import MachineState
from hwnas_profilers.timing import Visit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from hwnas.core.progress import Progress
    from hwnas_profilers.remote_board import Board
    from hwnas_profilers.remote_wire import Wire
    from hwnas_profilers.timing import TimingSettings

_QUICK_S = 60  # for what takes a board no time, over a slow link
_COMPILE_S = 900  # for one model: TensorRT tries many kernels
_SLOWEST_LINK = 32 * 2**10  # bytes per second that a link carries at least
_ON_THEIR_WAY = 4  # models that are sent before the first of them is known to be compiled
_PATIENCE = 20  # times what a round should take


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as it is sent.

    Attributes:
        name: What it is called in errors.
        onnx: The serialized model; empty where `of` is given.
        shape: (batch, channels, height, width) of its input.
        seed: What the input is drawn with, on the board.
        batches: Smallest, most frequent and largest batch that the engine must take, where its
            batch is free and the runtime asks; None where it is fixed.
        of: Number of the model that this is too, on images of another shape; None of its own.
    """

    name: str
    onnx: bytes
    shape: tuple[int, ...]
    seed: tuple[int, int]
    batches: tuple[int, int, int] | None = None
    of: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    id: int
    rejected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    id: int
    span: int
    sample_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Visited:
    """What an agent answers to a round."""

    samples_us: list[list[float]]
    cores_ns: list[float]
    state: MachineState


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardState:
    """State of a board, and what else it says of itself now."""

    state: MachineState
    facts: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Forgotten:
    held: int


def limit_of(payload: bytes) -> int:
    """Return how long, in seconds, it may take to send bytes and to compile or compute with them.

    Args:
        payload: What is sent.
    """
    return _COMPILE_S + len(payload) // _SLOWEST_LINK


def ask_state(wire: Wire) -> BoardState:
    """Ask an agent for the state of its board."""
    wire.send({"do": "state"}, limit_s=_QUICK_S)
    return wire.receive(BoardState, limit_s=_QUICK_S)


def facts_of(board: Board) -> dict[str, str]:
    """Return a board's temperature and throttling when first reached and now, and the like."""
    now = board.surely(ask_state)
    facts = dict(now.facts)
    for name, state in (("at_start", board.greeting.state), ("at_end", now.state)):
        if state.temperature_c is not None:
            facts[f"temperature_c_{name}"] = f"{state.temperature_c:g}"
        if state.throttled:
            facts[f"throttled_{name}"] = state.throttled
    if board.connections > 1:
        facts["connections"] = str(board.connections)
    return facts


def _forget(wire: Wire) -> None:
    wire.send({"do": "forget"}, limit_s=_QUICK_S)
    wire.receive(_Forgotten, limit_s=_QUICK_S)


@final
class Holder:
    """Sees to it that the agent holds models, whichever agent it is by now.

    Args:
        board: Where the agent is.
        models: By number.
        on_sent: Told of bytes of models as they are sent.
    """

    def __init__(
        self,
        board: Board,
        models: dict[int, Model],
        on_sent: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.board = board
        self._models = models
        self._on_sent = on_sent
        self._held: set[int] = set()
        self._connection = 0

    def offer(self, answered: Callable[[int, str], None], progress: Progress) -> list[int]:
        """Send all models; returns those that the runtime takes.

        Args:
            answered: Told, once for each, why the runtime refuses it; empty where it takes it.
            progress: Told of lost connections.
        """
        known: dict[int, str] = {}

        def first_time(index: int, reason: str) -> None:
            if index not in known:
                known[index] = reason
                answered(index, reason)

        def work(wire: Wire) -> None:
            if self.is_new():
                _forget(wire)  # what a group before may have left
            pending = [index for index in self._models if not known.get(index)]
            self._load(wire, pending, first_time)

        self.board.surely(work, progress=progress)
        return [index for index, reason in known.items() if not reason]

    def is_new(self) -> bool:
        """Tell whether the agent is another one than when this was last asked."""
        if self._connection == self.board.connections:
            return False
        self._connection = self.board.connections
        self._held.clear()
        return True

    def hold(self, wire: Wire, indices: Iterable[int]) -> None:
        """Send those models that the agent does not hold."""

        def answered(index: int, reason: str) -> None:
            if reason:
                raise TargetError(
                    f"{self.board.target} took {self._models[index].name} before the connection "
                    f"was lost, and now rejects it: {reason}"
                )

        self._load(wire, indices, answered)

    def _load(
        self, wire: Wire, indices: Iterable[int], answered: Callable[[int, str], None]
    ) -> None:
        awaited: deque[int] = deque()

        def receive() -> None:
            index = awaited.popleft()
            limit_s = limit_of(self._models[index].onnx)
            answer = wire.receive(_Loaded, limit_s=limit_s)
            if answer.id != index:
                raise TargetError(f"the agent answers for model {answer.id}, not for {index}")
            if not answer.rejected:
                self._held.add(index)
            answered(index, answer.rejected)

        for index in self._with_those_of(indices):
            if index in self._held:
                continue
            model = self._models[index]
            command = {
                "do": "load",
                "id": index,
                "sha256": hashlib.sha256(model.onnx).hexdigest(),
                "shape": model.shape,
                "seed": model.seed,
                "batches": model.batches,
                "of": model.of,
            }
            limit_s = limit_of(model.onnx)
            wire.send(command, model.onnx, limit_s=limit_s, on_sent=self._on_sent)
            awaited.append(index)
            if len(awaited) == _ON_THEIR_WAY:
                receive()
        while awaited:
            receive()

    def _with_those_of(self, indices: Iterable[int]) -> list[int]:
        """Return numbers after those of the models that they stand for."""
        each = list(indices)
        needed = [of for index in each if (of := self._models[index].of) is not None]
        return list(dict.fromkeys([*needed, *each]))


@final
class RemoteBench:
    """Models on a board, as a bench: a round costs one question and one answer.

    Where the connection is cut, the round is done anew, with models and spans as before. The
    board's counters then continue from the last reading, as if the time between had not been: a new
    agent counts its own processor time from zero, and the pause was nobody's disturbance.

    Args:
        holder: Holds the models.
        accepted: The models, in the order of the bench's indices.
        progress: Told of lost connections.
    """

    def __init__(self, holder: Holder, accepted: Sequence[int], progress: Progress) -> None:
        self._holder = holder
        self._accepted = accepted
        self._progress = progress
        self._settings: TimingSettings | None = None
        self._spans: dict[int, _Prepared] = {}
        self._ready: set[int] = set()
        self._state: MachineState | None = None
        self._clock = _ContinuedClock()

    def prepare(self, index: int, settings: TimingSettings) -> None:
        """See `Bench`; the board is told of all of them together, when the first is needed."""
        self._settings = settings
        self._ready.discard(self._accepted[index])
        self._spans.pop(self._accepted[index], None)

    def visit(self, indices: Sequence[int], samples: Sequence[int]) -> Iterator[Visit]:
        """See `Bench`."""
        ids = [self._accepted[index] for index in indices]

        def work(wire: Wire) -> Visited:
            self._make_ready(wire, ids)
            order = [
                (each, count, self._spans[each].span)
                for each, count in zip(ids, samples, strict=True)
            ]
            expected_us = sum((count + 1) * self._spans[each].sample_us for each, count, _ in order)
            limit_s = _QUICK_S + math.ceil(_PATIENCE * expected_us / 1e6)
            wire.send({"do": "visit", "order": order}, limit_s=limit_s)
            return wire.receive(Visited, limit_s=limit_s)

        answer = self._holder.board.surely(work, progress=self._progress)
        if [len(taken) for taken in answer.samples_us] != list(samples):
            raise TargetError(f"{self._holder.board.target} took other samples than asked for")
        self._state = self._clock.continued(answer.state)
        for taken, core_ns in zip(answer.samples_us, answer.cores_ns, strict=True):
            yield Visit(samples_us=np.array(taken, dtype=np.float64), core_ns=core_ns)

    def state(self) -> MachineState:
        """See `Bench`; after a round it is the one that came with the round."""
        state, self._state = self._state, None
        if state is not None:
            return state

        def work(wire: Wire) -> MachineState:
            self._make_ready(wire, self._accepted)
            return ask_state(wire).state

        return self._clock.continued(self._holder.board.surely(work, progress=self._progress))

    def _make_ready(self, wire: Wire, ids: Sequence[int]) -> None:
        """Let the agent hold models and warm them up, as far as that is not done."""
        new = self._holder.is_new()
        if new:
            self._ready.clear()
        self._holder.hold(wire, ids)
        cold = [each for each in ids if each not in self._ready]
        if cold:
            assert self._settings is not None, "prepare comes first"
            command = {
                "do": "prepare",
                "ids": cold,
                "warmup_calls": self._settings.warmup_calls,
                "min_sample_us": self._settings.min_sample_us,
            }
            wire.send(command, limit_s=_COMPILE_S)
            for each in cold:
                prepared = wire.receive(_Prepared, limit_s=_COMPILE_S)
                # The first agent's spans hold: samples of other spans would not be the same kind.
                self._spans.setdefault(each, prepared)
                self._ready.add(each)
        if new:
            self._clock.go_on_from(ask_state(wire).state)


@final
class _ContinuedClock:
    """Continues the counters of a state where another agent has taken over."""

    def __init__(self) -> None:
        self._last: MachineState | None = None
        self._shift = (0.0, 0.0, 0.0)

    def go_on_from(self, first: MachineState) -> None:
        """Take a new agent's first reading for the last one of the agent before."""
        if self._last is not None:
            last = self._last
            self._shift = (
                last.at_ns - first.at_ns,
                last.own_ns - first.own_ns,
                (last.busy_ns or 0) - (first.busy_ns or 0),
            )

    def continued(self, state: MachineState) -> MachineState:
        """Return a reading as the first agent would have it."""
        at_ns, own_ns, busy_ns = self._shift
        self._last = replace(
            state,
            at_ns=state.at_ns + at_ns,
            own_ns=state.own_ns + own_ns,
            busy_ns=None if state.busy_ns is None else state.busy_ns + busy_ns,
        )
        return self._last
