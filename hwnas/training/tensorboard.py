"""Figures of trainings as TensorBoard event files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, final

from hwnas.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType


@final
class TensorBoardLog:
    """Write every epoch's figures for TensorBoard: `tensorboard --logdir FOLDER`.

    Args:
        folder: Where the event files go; each training has a folder of its own in it.

    Raises:
        MissingDependencyError: TensorBoard is not installed.

    Example:
        with TensorBoardLog(Path("runs/board")) as log:
            hwnas.api.search(table, teacher, out, budget_ms=0.3, log=log)
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                "TensorBoard is not installed", hint='pip install "hwnas[tensorboard]"'
            ) from error
        self._folder = folder
        self._open = SummaryWriter
        self._writers: dict[str, SummaryWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def log(self, name: str, figures: Mapping[str, float], *, epoch: int) -> None:
        """Take the figures of one epoch: see `MetricLog`."""
        if name not in self._writers:
            # What an interrupted run wrote of this epoch and later ones is superseded.
            self._writers[name] = self._open(str(self._folder / name), purge_step=epoch)
        for figure, value in figures.items():
            self._writers[name].add_scalar(f"{name}/{figure}", value, epoch)
        self._writers[name].flush()

    def close(self) -> None:
        """Close the event files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
