"""Whether a stage's artifact is the one that its settings and inputs would make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwnas.core.artifacts import MANIFEST, read_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def is_current(
    path: Path, *, kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str]
) -> bool:
    """Say whether a finished artifact was made with these settings from these inputs.

    Raises:
        ArtifactError: It was changed after it was made, or another stage made it.
    """
    if not (path / MANIFEST).is_file():
        return False
    manifest = read_manifest(path, kind=kind)
    return manifest.settings == dict(settings) and manifest.inputs == dict(inputs)
