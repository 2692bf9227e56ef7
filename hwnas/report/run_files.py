"""A finished run's folder, read strictly into one value: all that its report is made of.

The layers above own some of these files (the settings, the model card, the results of stages), so
their classes are out of reach here; `_part` takes the few fields that the report needs, as strictly
typed as the rest.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hwnas.core.artifacts import MANIFEST, Manifest, read_manifest, sha256_of_file
from hwnas.core.decoding import convert, read_json
from hwnas.core.errors import ArtifactError, ConfigError, InputFileError
from hwnas.data.sources import DataConfig
from hwnas.search.records import Derivation, SearchRecord, read_derivation, read_search
from hwnas.verify.verification import Verification
from hwnas_profilers.table import LatencyTable

CONFIG_FILE = "config.json"
TABLE_FILE = "table.jsonl"
GENOTYPE_FILE = "genotype.json"
SEARCH_FILE = "search.json"
HISTORY_FILE = "history.json"
RESULT_FILE = "result.json"
CARD_FILE = "card.json"
VERIFICATION_FILE = "verification.json"

TEACHER, SEARCH, NETWORK, ENGINE, VERIFIED = (
    "teacher",
    "search",
    "network",
    "engine",
    "verification",
)
KINDS = {
    TEACHER: "teacher",
    SEARCH: "search",
    NETWORK: "train",
    ENGINE: "export",
    VERIFIED: "verify",
}
"""Stage that made each folder of a run, in the order of the run."""

History = tuple[dict[str, float], ...]
"""Figures of every epoch."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What the report says of a trained network: its validation figures.

    Attributes:
        params: Its parameters.
        clean_accuracy: On validation images as they are.
        robust_accuracy: On PGD examples of the threat model.
        n: Validation images.
        eps: Size of the perturbation in pixel units.
        steps: PGD steps.
        initial_accuracy: On validation images, as cut out of the supernet; None elsewhere.
    """

    params: int
    clean_accuracy: float
    robust_accuracy: float
    n: int
    eps: float
    steps: int
    initial_accuracy: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What the report takes from the engine's model card."""

    opset: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    data: DataConfig
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """A run that has reached its verification.

    Attributes:
        path: Its folder.
        settings: Its resolved settings, as plain data.
        table: The latency table that it used.
        teacher: The teacher's figures.
        teacher_history: Empty where the teacher was given, not trained.
        search: What the search learned.
        search_history: How it went.
        derivation: The derived network.
        network: The trained network's figures.
        network_history: How its training went.
        card: The engine's card.
        verification: What was found on the engine.
        manifests: Of each folder, by its name, in the order of the run.
    """

    path: Path
    settings: dict[str, Any]
    table: LatencyTable
    teacher: Trained
    teacher_history: History
    search: SearchRecord
    search_history: History
    derivation: Derivation
    network: Trained
    network_history: History
    card: Card
    verification: Verification
    manifests: dict[str, Manifest]


@dataclass(frozen=True, slots=True, kw_only=True)
class _TablePart:
    """Where the settings say the table is; empty for the run's own."""

    path: str


def read_run(run: Path) -> RunFiles:
    """Read a run's folder, and check that its parts were made from each other.

    Args:
        run: Folder of `hwnas run`.

    Raises:
        InputFileError: The folder or a file is missing: the run has not reached its verification.
        ArtifactError: A file was changed, or a part was made from other parts than those here.
        ConfigError: A file holds something else than hwnas writes.
        LatencyTableError: The table cannot be read.
    """
    _require_verified(run)
    manifests = {name: read_manifest(run / name, kind=kind) for name, kind in KINDS.items()}
    settings = read_json(run / CONFIG_FILE, dict[str, Any])
    given = _part(settings.get("table"), _TablePart, source=f"{run / CONFIG_FILE} [table]").path
    derivation = read_derivation(run / GENOTYPE_FILE)
    table_path = Path(given) if given else run / TABLE_FILE
    table = LatencyTable.read(table_path)
    _require_same(table_path, derivation.table_sha256, made="the network was derived", run=run)
    _require_same(
        run / SEARCH / SEARCH_FILE,
        derivation.search_sha256,
        made="the network was derived",
        run=run,
    )
    _require_same(
        run / ENGINE / MANIFEST,
        manifests[VERIFIED].inputs.get("engine", ""),
        made="the engine was verified",
        run=run,
    )
    return RunFiles(
        path=run,
        settings=settings,
        table=table,
        teacher=_trained(run / TEACHER),
        teacher_history=_history(run / TEACHER),
        search=read_search(run / SEARCH / SEARCH_FILE),
        search_history=_history(run / SEARCH),
        derivation=derivation,
        network=_trained(run / NETWORK),
        network_history=_history(run / NETWORK),
        card=_part_of_file(run / ENGINE / CARD_FILE, Card),
        verification=read_json(run / VERIFIED / VERIFICATION_FILE, Verification),
        manifests=manifests,
    )


def _require_verified(run: Path) -> None:
    """Raise, naming the first part that is missing, unless the run has all of them."""
    if not run.is_dir():
        raise InputFileError(
            f"{run} is no folder of a run",
            hint=f"make it: `hwnas run CONFIG.toml --out {run}`",
        )
    parts = [run / CONFIG_FILE, run / GENOTYPE_FILE, *(run / name / MANIFEST for name in KINDS)]
    for part in parts:
        if not part.is_file():
            raise InputFileError(
                f"the run in {run} has not reached its verification: there is no {part}",
                hint=f"go on with it: `hwnas run CONFIG.toml --out {run}`",
            )


def _require_same(path: Path, sha256: str, *, made: str, run: Path) -> None:
    if sha256_of_file(path) != sha256:
        raise ArtifactError(
            f"{path} was changed since {made}: the report would mix figures of two runs",
            hint=f"bring the run up to date: `hwnas run CONFIG.toml --out {run}`",
        )


def _history(folder: Path) -> History:
    return read_json(folder / HISTORY_FILE, tuple[dict[str, float], ...])


def _trained(folder: Path) -> Trained:
    return _part_of_file(folder / RESULT_FILE, Trained)


def _part_of_file(path: Path, kind: type[T]) -> T:
    return _part(read_json(path, dict[str, Any]), kind, source=str(path))


def _part(document: object, kind: type[T], *, source: str) -> T:
    """Convert those fields of a document that a dataclass names."""
    if not isinstance(document, dict):
        raise ConfigError(f"{source} holds no fields")
    assert dataclasses.is_dataclass(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    known = {name: value for name, value in document.items() if name in names}
    return convert(known, kind, source=source)
