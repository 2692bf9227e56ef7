"""TensorRT's timing cache in a file: what one build timed, the next need not time again.

Engines of one device and version that share it are built faster and choose alike. The file begins
with one line that says what it belongs to and what its content hashes to, so that a foreign or a
broken cache is never handed to TensorRT, which promises nothing for junk.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from hwnas.core.artifacts import sha256_of, write_atomically
from hwnas.core.errors import InputFileError

if TYPE_CHECKING:
    from pathlib import Path

_logger = logging.getLogger(__name__)


def read_timing_cache(path: Path, owner: str) -> bytes:
    """Return a cache's content; nothing where there is no file, or it is not of use.

    Args:
        path: The file.
        owner: Device and version that it must belong to.

    Raises:
        InputFileError: The file is there, but cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror}") from error
    head, _, content = data.partition(b"\n")
    try:
        facts = json.loads(head)
        file_owner, file_hash = str(facts["owner"]), facts["sha256"]
    except (ValueError, KeyError, TypeError):
        _logger.warning("%s is not a timing cache of hwnas: not used, and overwritten", path)
        return b""
    if file_hash != sha256_of(content):
        _logger.warning("the timing cache %s is broken: not used, and overwritten", path)
        return b""
    if file_owner != owner:
        _logger.warning(
            "the timing cache %s belongs to %s, not to %s: not used, and overwritten",
            path,
            file_owner,
            owner,
        )
        return b""
    return content


def write_timing_cache(path: Path, owner: str, content: bytes) -> None:
    """Write a cache, whole or not at all.

    Raises:
        InputFileError: The file cannot be written.
    """
    head = json.dumps({"owner": owner, "sha256": sha256_of(content)}).encode()
    write_atomically(path, head + b"\n" + content)
