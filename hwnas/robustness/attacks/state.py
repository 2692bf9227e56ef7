"""What a run of attacks keeps on disk, so that one that was killed goes on where it stopped.

A folder with `settings.json`, which says what was run on what, and one `.npz` for each finished
batch of each attack. Every file is written whole or not at all.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.core.artifacts import sha256_of, write_atomically
from hwnas.core.decoding import encode_json, read_json
from hwnas.core.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

_SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finished:
    """One attack's result on one batch.

    Attributes:
        rows: (n,), int64: which samples of the data set the batch held.
        points: float32, (n, channels, height, width).
        broken: (n,): which points the model gets wrong.
        seconds: Wall time.
        queries: Images that the attack asked about.
    """

    rows: NDArray[np.int64]
    points: NDArray[np.float32]
    broken: NDArray[np.bool_]
    seconds: float
    queries: int


class AttackState:
    """The folder of a run; with None in its place nothing is kept.

    Args:
        folder: Where; made if need be.
        settings: Returns all that the results hang on, as plain data; not called where nothing is
            kept. Attacks are not among it: a later run may add some.

    Raises:
        ArtifactError: The folder is one of other settings, or of something else.
    """

    def __init__(self, folder: Path | None, settings: Callable[[], Mapping[str, Any]]) -> None:
        self._folder = folder
        if folder is None:
            return
        self._claim(folder, settings())

    def _claim(self, folder: Path, settings: Mapping[str, Any]) -> None:
        path = folder / _SETTINGS
        if path.is_file():
            _check_settings(path, settings)
        elif folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise ArtifactError(
                f"{folder} is no state of an attack: it holds no {_SETTINGS}",
                hint="name a new folder",
            )
        else:
            write_atomically(path, encode_json(dict(settings), indent=1))

    def load(self, attack: str, number: int, rows: NDArray[np.int64]) -> Finished | None:
        """Return a batch that an earlier run finished, or None.

        Args:
            attack: The attack.
            number: Which of its batches.
            rows: The samples that the batch holds.

        Raises:
            ArtifactError: The file was changed, or is of other samples.
        """
        path = self._path(attack, number)
        if path is None or not path.is_file():
            return None
        try:
            # Opened here: numpy would leave a file open that it cannot read.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                finished = Finished(
                    rows=stored["rows"],
                    points=stored["points"],
                    broken=stored["broken"],
                    seconds=float(stored["seconds"]),
                    queries=int(stored["queries"]),
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ArtifactError(
                f"{path} cannot be read: it was changed after it was written",
                hint="delete it: that batch is then attacked again",
            ) from error
        if not np.array_equal(finished.rows, rows):
            raise ArtifactError(
                f"{path} is of other samples than this run attacks there",
                hint=f"delete {path.parent}, or name a new folder",
            )
        return finished

    def save(self, attack: str, number: int, finished: Finished) -> None:
        """Keep a finished batch.

        Raises:
            InputFileError: It cannot be written.
        """
        path = self._path(attack, number)
        if path is None:
            return
        buffer = io.BytesIO()
        np.savez(
            buffer,
            rows=finished.rows,
            points=finished.points,
            broken=finished.broken,
            seconds=np.float64(finished.seconds),
            queries=np.int64(finished.queries),
        )
        write_atomically(path, buffer.getvalue())

    def _path(self, attack: str, number: int) -> Path | None:
        return None if self._folder is None else self._folder / f"{attack}-{number:05}.npz"


def sha256_of_array(values: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's values, in hexadecimal."""
    return sha256_of(np.ascontiguousarray(values).tobytes())


def sha256_of_weights(model: nn.Module) -> str:
    """Return the SHA-256 of a module's weights and buffers with their names, in hexadecimal."""
    digests = {
        name: sha256_of_array(tensor.detach().cpu().contiguous().view(-1).numpy())
        for name, tensor in model.state_dict().items()
        if hasattr(tensor, "detach")
    }
    return sha256_of(encode_json(digests))


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    try:
        stored = read_json(path, dict[str, Any])
    except ConfigError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.message}", hint="name a new folder"
        ) from error
    differing = [
        f"{name} {stored.get(name)} there, {settings.get(name)} here"
        for name in sorted(stored.keys() | settings.keys())
        if stored.get(name) != settings.get(name)
    ]
    if differing:
        raise ArtifactError(
            f"{path.parent} keeps a run of other settings: {'; '.join(differing)}",
            hint="name a new folder, or go on with those settings",
        )
