"""Artifacts: files and folders that are either whole or absent, with a manifest that proves them.

A result is a folder: payload, `manifest.json` and, in a bundle, `SHA256SUMS`. It is written under a
temporary name beside its place and renamed once complete, so that a killed run or a full disk
leaves nothing half-written.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hwnas.core.decoding import encode_json, read_json, read_text
from hwnas.core.environment import Provenance, provenance
from hwnas.core.errors import ArtifactError, ConfigError, InputFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an artifact is, what it was made from, and by what.

    Attributes:
        schema: Version of this layout.
        kind: Name of the stage that made the artifact.
        call: The Python call that repeats it.
        settings: The resolved settings.
        inputs: SHA-256 of each input, by role.
        outputs: SHA-256 of each payload file, by path relative to the artifact.
        provenance: Package, code, device and library versions, and the UTC time.
    """

    kind: str
    call: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, str]
    provenance: Provenance
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestDraft:
    """The part of a manifest that is known before the payload is."""

    kind: str
    call: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        InputFileError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees either the old content or the whole new one.

    Raises:
        InputFileError: The folder cannot be made or written, or the disk is full. Nothing is left.
    """
    temporary = _temporary_beside(path)
    with _clear_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        try:
            with temporary.open("wb") as file:
                _hold(file.fileno())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def new_artifact(path: Path, draft: ManifestDraft, *, checksums: bool = False) -> Iterator[Path]:
    """Make an artifact folder: yield an empty folder to fill, then hash, describe and rename it.

    Args:
        path: The artifact's place. An artifact that stands there is replaced once the new one is
            whole; anything else that does is never touched.
        draft: Its manifest, less the outputs.
        checksums: Write `SHA256SUMS` too, for those who have no hwnas at hand.

    Raises:
        InputFileError: The folder cannot be written, something else stands in its place, or the
            disk is full. Nothing is left.
    """
    check_place(path)
    temporary = _temporary_beside(path)
    with _clear_os_errors(path), ExitStack() as stack:
        temporary.mkdir(parents=True)
        try:
            descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            _hold(descriptor)
            _remove_abandoned(path)
            yield temporary
            outputs = {
                file.relative_to(temporary).as_posix(): sha256_of_file(file)
                for file in sorted(temporary.rglob("*"))
                if file.is_file()
            }
            manifest = Manifest(
                kind=draft.kind,
                call=draft.call,
                settings=draft.settings,
                inputs=dict(draft.inputs),
                outputs=outputs,
                provenance=provenance(),
            )
            write_atomically(temporary / MANIFEST, encode_json(manifest, indent=2))
            if checksums:
                write_atomically(temporary / CHECKSUMS, _checksums(temporary).encode())
            _replace_folder(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def check_place(path: Path) -> None:
    """Check that an artifact may be made in a place, and would replace nothing but an artifact.

    Raises:
        InputFileError: A file stands there, or a folder of something else.
    """
    with _clear_os_errors(path):
        if not path.exists():
            return
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file stands in the folder's place")
        if not (path / MANIFEST).is_file() and any(path.iterdir()):
            raise InputFileError(
                f"{path} holds files that hwnas did not make: it would have to delete them",
                hint="name a new folder",
            )


def read_manifest(path: Path, *, kind: str) -> Manifest:
    """Read an artifact's manifest and check every payload file against its hash.

    Args:
        path: The artifact folder.
        kind: The stage that must have made it.

    Raises:
        ArtifactError: No manifest, another kind or schema, or a file missing or changed.
    """
    if not (path / MANIFEST).is_file():
        raise ArtifactError(
            f"{path} is no finished hwnas artifact: it holds no {MANIFEST}",
            hint=f"make it with `hwnas {kind}`",
        )
    try:
        manifest = read_json(path / MANIFEST, Manifest)
    except ConfigError as error:
        raise ArtifactError(error.message, hint=f"make {path} again: `hwnas {kind}`") from error
    if manifest.schema != SCHEMA:
        raise ArtifactError(
            f"{path} has manifest schema {manifest.schema}; this hwnas reads {SCHEMA}",
            hint="use the hwnas version named in its manifest, or make it again",
        )
    if manifest.kind != kind:
        raise ArtifactError(
            f"{path} was made by `hwnas {manifest.kind}`; this needs one of `hwnas {kind}`"
        )
    for name, digest in manifest.outputs.items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(f"{file} is missing", hint=f"make {path} again: `hwnas {kind}`")
        if sha256_of_file(file) != digest:
            raise ArtifactError(
                f"{file} was changed after it was made: its SHA-256 is not the manifest's",
                hint=f"restore it, or make {path} again: `hwnas {kind}`",
            )
    return manifest


def check_checksums(folder: Path) -> None:
    """Check every file that `SHA256SUMS` names, the manifest among them.

    Raises:
        ArtifactError: The list is missing or not readable, or a file is missing or was changed.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no {CHECKSUMS}", hint="make it: `hwnas export`")
    listed = set()
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise ArtifactError(f"{path}:{number} is no line of a checksum list: {line[:80]!r}")
        file = folder / name
        if not file.is_file():
            raise ArtifactError(f"{file} is missing", hint="restore it, or export again")
        if sha256_of_file(file) != digest:
            raise ArtifactError(
                f"{file} was changed after it was made: its SHA-256 is not the one in {CHECKSUMS}",
                hint="restore it, or export again",
            )
        listed.add(name)
    if MANIFEST not in listed:
        raise ArtifactError(
            f"{path} does not list {MANIFEST}: it was changed", hint="restore it, or export again"
        )


def _checksums(folder: Path) -> str:
    """List every file's hash in the format of `sha256sum --check`."""
    return "".join(
        f"{sha256_of_file(file)}  {file.relative_to(folder).as_posix()}\n"
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    )


def _temporary_beside(path: Path) -> Path:
    """Return a name in the same folder (so that the rename is atomic) that no other run uses.

    Process numbers do not tell runs apart: in containers each run may have the same one, so that
    what a killed run left would be in the way of the next.
    """
    path = path.absolute()  # so that `.` has a name too
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")


def _hold(descriptor: int) -> bool:
    """Hold an open file or folder; the kernel lets it go when the process dies, however.

    Returns:
        Whether it is held: not if another process holds it, or the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_abandoned(path: Path) -> None:
    """Remove what killed runs left of this file or folder; a run that still writes is let be."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if left.suffix not in (".part", ".old"):
            continue
        with suppress(OSError):  # gone meanwhile, or not ours to remove
            descriptor = os.open(left, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not _hold(descriptor):
                    continue
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            finally:
                os.close(descriptor)


def _replace_folder(source: Path, target: Path) -> None:
    """Put a folder in its place. A folder cannot be renamed over a full one: step aside first."""
    if not target.exists():
        source.rename(target)
        return
    aside = _temporary_beside(target).with_suffix(".old")
    target.rename(aside)
    try:
        source.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    # The new one is in its place: whatever keeps the old one from going is no failure of this.
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _clear_os_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into one clear error that names the path."""
    try:
        yield
    except InputFileError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputFileError(
            f"{path} cannot be written: {reason}",
            hint="check that the folder is writable and the disk has room, then run again",
        ) from error
