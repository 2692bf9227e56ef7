"""Measuring on a board over ssh: docs/decisions/0018-boards-over-ssh.md says how and why.

This side decides everything: which model is visited when, when to stop, what was disturbed. The
board holds compiled models and visits them.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Self, final

from hwnas.core.errors import ExportError, TargetError
from hwnas.core.progress import SILENT
from hwnas_profilers.profiler import Compiled, Profiler
from hwnas_profilers.remote_bench import Holder, Model, RemoteBench, facts_of
from hwnas_profilers.remote_board import PAUSES_S, Board

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from hwnas.core.environment import Device
    from hwnas.core.progress import Progress
    from hwnas_profilers.records import EnergyStatistics
    from hwnas_profilers.targets import Target
    from hwnas_profilers.workload import Workload


@final
class RemoteProfiler(Profiler):
    """Compiles and times on a board, with its runtime.

    Args:
        target: A target with a destination.
        threads: Threads within an operator.
        command: Starts an agent that reads its source from stdin; by default over ssh.
        pauses_s: Before each further try where the connection was cut.
    """

    def __init__(
        self,
        target: Target,
        threads: int = 1,
        *,
        command: Sequence[str] | None = None,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        super().__init__(target, threads)
        self._board = Board(target, threads, command=command, pauses_s=pauses_s)

    def __enter__(self) -> Self:
        self._board.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._board.close()

    @property
    def device(self) -> Device:
        """See `Profiler`."""
        return self._board.greeting.device

    @property
    def packages(self) -> dict[str, str]:
        """See `Profiler`."""
        return dict(self._board.greeting.packages)

    def facts(self) -> dict[str, str]:
        """See `Profiler`: temperature and throttling when first reached and now, and the like."""
        return facts_of(self._board)

    @contextmanager
    def compiled(
        self, workloads: Sequence[Workload], *, seed: int = 0, progress: Progress = SILENT
    ) -> Iterator[Compiled]:
        """See `Profiler`; the board holds the models until it is given others."""
        self.models.export(workloads, progress=progress)
        rejected: dict[int, str] = {}
        models: dict[int, Model] = {}
        for index, workload in enumerate(workloads):
            try:
                proto = self.onnx_of(workload)
            except ExportError as error:
                rejected[index] = error.message
                continue
            models[index] = Model(
                name=workload.name,
                onnx=proto.SerializeToString(),
                shape=workload.input_shape,
                seed=(seed, index),
            )
        holder = Holder(self._board, models)
        with progress.task("compiling", len(workloads)) as task:
            task.advance(len(rejected))

            def answered(index: int, reason: str) -> None:
                if reason:
                    rejected[index] = f"{self.target.name} rejects the model: {reason}"
                task.advance(note=models[index].name)

            accepted = holder.offer(answered, progress)
        bench = RemoteBench(holder, accepted, progress)
        yield Compiled(
            bench=bench, accepted=tuple(accepted), rejected=dict(sorted(rejected.items()))
        )

    def energies(
        self, workloads: Sequence[Workload], *, seed: int = 0, progress: Progress = SILENT
    ) -> list[EnergyStatistics | None]:
        """See `Profiler`."""
        raise TargetError(
            f"{self.target}: energy cannot be metered over ssh: boards have no counter in common",
            hint="leave --energy away",
        )
