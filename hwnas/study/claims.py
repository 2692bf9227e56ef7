"""Who does what, where several processes run one study: a lock per piece of work.

A process claims a piece by locking its file. The kernel lets the lock go when the process ends,
however it does, so that another process takes the piece over from its checkpoint. Processes need
not know of one another: those that torchrun starts, and those that are started by hand on other
machines with the same folder, share the work alike.
"""

from __future__ import annotations

import errno
import fcntl
import os
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

from hwnas.core.errors import InputFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@final
class Claims:
    """Claims of pieces of work, by their keys.

    Where the file system has no locks, a piece belongs to one process by its key alone: nothing is
    done twice, but what a killed process leaves waits for the next run.

    Args:
        folder: Where the lock files are; the same for all processes.
        rank: Which process this is, from 0, of those that were started together.
        count: How many they are.
    """

    def __init__(self, folder: Path, *, rank: int = 0, count: int = 1) -> None:
        self._folder = folder
        self._rank, self._count = rank, count

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Try to claim a piece, and say whether it is this process's while the context lasts.

        Raises:
            InputFileError: The folder cannot be written.
        """
        path = self._folder / f"{key}.lock"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise InputFileError(
                f"{path} cannot be written: {error.strerror}",
                hint="check that the folder is writable and the disk has room, then run again",
            ) from error
        try:
            yield self._lock(descriptor, key)
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int, key: str) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                return False
            return zlib.crc32(key.encode()) % self._count == self._rank
        return True
