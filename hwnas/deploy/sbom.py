"""The bill of materials of a bundle, `sbom.cdx.json`: its files, its models, what they run on.

In CycloneDX 1.6, which knows models and their cards. Equal files give equal bytes: the serial
number follows from their hashes, and the time is given. Why there is no library behind this:
docs/decisions/0036-bundle-descriptions.md.
"""

from __future__ import annotations

import uuid
from importlib import metadata
from typing import TYPE_CHECKING, Any

from hwnas.core.artifacts import CHECKSUMS, MANIFEST, sha256_of, sha256_of_file
from hwnas.core.decoding import encode_json
from hwnas.core.environment import package_version
from hwnas.core.errors import ArtifactError
from hwnas.deploy.engines import engine_cards
from hwnas.deploy.records import ENGINES_FOLDER
from hwnas_profilers.targets import parse_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hwnas.deploy.records import EngineCard, EngineFigures

SBOM_FILE = "sbom.cdx.json"
SPEC_VERSION = "1.6"

_LATER = frozenset({SBOM_FILE, MANIFEST, CHECKSUMS})
"""Files that hash or list all others: they cannot be listed here too."""

_BUNDLE = "bundle"
# A name space of our own, so that no other tool makes the same serial number from these hashes.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/hwnas/bundle")
_LONGEST_LICENSE_NAME = 80
_UNTOLD = "UNKNOWN"


def sbom_json(folder: Path, *, utc: str | None = None) -> bytes:
    """Describe a bundle's folder, of which every file but those that list the others is there.

    Args:
        folder: The folder, with its sidecars.
        utc: When it was made, in the format of RFC 3339; None leaves the time out.

    Returns:
        A CycloneDX 1.6 document in JSON.

    Raises:
        ArtifactError: The folder holds no engine.
        InputFileError: A file cannot be read.
    """
    cards = engine_cards(folder)
    if not cards:
        raise ArtifactError(
            f"{folder} holds no {ENGINES_FOLDER}/TARGET/engine.json: there is nothing to describe",
            hint="make the bundle with `hwnas export`",
        )
    digests = {
        file.relative_to(folder).as_posix(): sha256_of_file(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.relative_to(folder).as_posix() not in _LATER
    }
    models = {card.model: card for card in reversed(cards)}  # of equal ones the first counts
    packages = {name: version for card in cards for name, version in packages_of(card).items()}
    whole = sha256_of("".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode())
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, whole)}",
        "version": 1,
        "metadata": _metadata(whole, utc),
        "components": [
            *(
                _model(name, digest, models[name]) if name in models else _file(name, digest)
                for name, digest in digests.items()
            ),
            *(_package(name, version) for name, version in sorted(packages.items())),
        ],
        "dependencies": _dependencies(digests, cards),
    }
    return encode_json(document, indent=2)


def packages_of(card: EngineCard) -> dict[str, str]:
    """Return the packages that an engine runs on, with versions, as its sidecar has them.

    Of a sidecar that names none, those of its runtime that are installed here.
    """
    if card.packages:
        return dict(card.packages)
    alternatives = parse_target(card.target).runtime.packages
    names = [name for each in alternatives for name in each.split("|")]
    return {name: version for name in names if (version := package_version(name))}


def _metadata(whole: str, utc: str | None) -> dict[str, Any]:
    tool = {"type": "application", "name": "hwnas", "version": package_version("hwnas")}
    return {
        **({"timestamp": utc} if utc else {}),
        "tools": {"components": [{**tool, **_licenses("hwnas", tool["version"])}]},
        "component": {
            "type": "application",
            "bom-ref": _BUNDLE,
            "name": "hwnas bundle",
            "version": whole,
        },
    }


def _file(name: str, digest: str) -> dict[str, Any]:
    return {"type": "file", "bom-ref": name, "name": name, "hashes": _hashes(digest)}


def _model(name: str, digest: str, card: EngineCard) -> dict[str, Any]:
    return {
        **_file(name, digest),
        "type": "machine-learning-model",
        "modelCard": {
            "modelParameters": {
                "task": "image classification",
                **({"datasets": [_calibration_data(card)]} if card.calibration else {}),
                "inputs": [{"format": _input_format(card)}],
                "outputs": [{"format": f"float32 logits (batch, {len(card.class_names)})"}],
            },
            **({"quantitativeAnalysis": _analysis(card.figures)} if card.figures else {}),
            "properties": [
                {"name": "hwnas:precision", "value": card.precision},
                {"name": "hwnas:normalization", "value": card.normalization},
                {"name": "hwnas:source_sha256", "value": card.source_sha256},
            ],
        },
    }


def _input_format(card: EngineCard) -> str:
    shape = ", ".join(map(str, ("batch", *card.image_shape)))
    low, high = card.pixel_range
    return f"float32 pixels in [{low:g}, {high:g}] ({shape})"


def _calibration_data(card: EngineCard) -> dict[str, Any]:
    data = card.calibration
    assert data is not None
    return {
        "type": "dataset",
        "name": f"calibration: {data.n} images of {data.source}, seed {data.seed}",
        "contents": {"properties": [{"name": "hwnas:sha256", "value": data.sha256}]},
    }


def _analysis(figures: EngineFigures) -> dict[str, Any]:
    measured = [
        ("clean accuracy", figures.clean_accuracy, f"{figures.n} test images"),
        (
            "robust accuracy",
            figures.robust_accuracy,
            f"{figures.robust_n} images; {figures.threat}",
        ),
    ]
    if figures.latency is not None:
        latency = figures.latency
        measured.append(("median latency, microseconds", latency.median_us, f"n = {latency.n}"))
    return {
        "performanceMetrics": [
            {"type": kind, "value": f"{value:.6g}", "slice": of} for kind, value, of in measured
        ]
    }


def _package(name: str, version: str) -> dict[str, Any]:
    purl = _purl(name, version)
    library = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    return {**library, **_licenses(name, version)}


def _purl(name: str, version: str) -> str:
    """Return a package's URL: names are in lower case, and `+` of a local version is escaped.

    >>> _purl("torch", "2.13.0+cpu")
    'pkg:pypi/torch@2.13.0%2Bcpu'
    """
    return f"pkg:pypi/{name.lower().replace('_', '-')}@{version.replace('+', '%2B')}"


def _licenses(name: str, version: str) -> dict[str, Any]:
    """Return a package's licenses where its own metadata tells, and only of the same version.

    An SPDX expression is passed on as one; other texts are names, as nothing here knows what they
    stand for, and whole license texts are left out.
    """
    if package_version(name) != version:
        return {}
    known = metadata.metadata(name).json
    if expression := known.get("license_expression"):
        return {"licenses": [{"expression": expression}]}
    text = str(known.get("license") or "").strip()
    if text and text != _UNTOLD and len(text) <= _LONGEST_LICENSE_NAME and "\n" not in text:
        return {"licenses": [{"license": {"name": text}}]}
    classified = [
        classifier.rpartition(" :: ")[2]
        for classifier in known.get("classifier", ())
        if classifier.startswith("License :: ")
    ]
    return {"licenses": [{"license": {"name": each}} for each in classified]} if classified else {}


def _dependencies(digests: Mapping[str, str], cards: Sequence[EngineCard]) -> list[dict[str, Any]]:
    """Say what needs what: the bundle its files, a model the packages of all that run it."""
    needed: dict[str, set[str]] = {}
    for card in cards:
        purls = {_purl(name, version) for name, version in packages_of(card).items()}
        for part in (card.model, card.plan):
            if part in digests:
                needed.setdefault(part, set()).update(purls)
    return [
        {"ref": _BUNDLE, "dependsOn": list(digests)},
        *({"ref": part, "dependsOn": sorted(purls)} for part, purls in sorted(needed.items())),
    ]


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]
