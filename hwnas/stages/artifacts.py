"""Whether a stage's artifact is the one that its settings and inputs would make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.core.artifacts import MANIFEST, check_place, read_manifest, sha256_of, sha256_of_file
from hwnas.core.decoding import encode_json
from hwnas.data.sources import DOWNLOADED, load_data

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hwnas.data.sources import DataConfig

_BATCHES = "*_batch*"
"""CIFAR-10's files, whichever of its forms a folder holds."""


def is_current(
    path: Path, *, kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str]
) -> bool:
    """Say whether a finished artifact was made with these settings from these inputs.

    Raises:
        ArtifactError: It was changed after it was made, or another stage made it.
        InputFileError: Something else stands in its place: known before hours of work, not after.
    """
    check_place(path)
    if not (path / MANIFEST).is_file():
        return False
    manifest = read_manifest(path, kind=kind)
    # Settings as a manifest gives them back: JSON has lists where Python has tuples.
    wanted = json.loads(encode_json(dict(settings)))
    return manifest.settings == wanted and manifest.inputs == dict(inputs)


def data_inputs(config: DataConfig) -> dict[str, str]:
    """Return the hash of a user's own images, for the inputs of what is made from them.

    Raises:
        InputFileError: They cannot be read, or downloaded.
    """
    kind, _, name = config.source.partition(":")
    place = Path(name)
    if not name:
        return {}
    if kind == DOWNLOADED and not any(place.rglob(_BATCHES)):
        load_data(config)  # which brings them there
    if place.is_dir():
        files = [file for file in sorted(place.rglob(_BATCHES)) if file.is_file()]
        hashes = [sha256_of_file(file) for file in files]
        return {"data": sha256_of("\n".join(hashes).encode())}
    return {"data": sha256_of_file(place)} if place.is_file() else {}


def checkpoint_beside(out: Path) -> Path:
    """Return where an artifact's checkpoint is kept until the artifact is whole."""
    out = out.absolute()  # so that `.` has a name too
    return out.with_name(f"{out.name}.checkpoint")
