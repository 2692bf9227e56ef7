"""The bill of materials: valid by the published schema, complete, and equal for equal files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from hwnas.core.artifacts import sha256_of
from hwnas.core.environment import package_version
from hwnas.core.errors import ArtifactError
from hwnas.deploy.records import CalibrationData, EngineFigures
from hwnas.deploy.sbom import SBOM_FILE, packages_of, sbom_json
from hwnas_profilers.records import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hwnas.deploy.bundled.conftest import SmallBundle

UTC = "2026-01-02T03:04:05+00:00"
FIGURES = EngineFigures(
    n=1000,
    clean_accuracy=0.875,
    robust_accuracy=0.5,
    robust_n=500,
    threat="linf 8/255",
    latency=Statistics(
        n=200, median_us=73.5, low_us=73, high_us=74, min_us=70, p10_us=72, p90_us=75
    ),
)


def components(document: bytes) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(document)["components"]}


def test_it_is_valid_by_the_published_schema(small_bundle: SmallBundle) -> None:
    card = replace(
        small_bundle.card,
        figures=FIGURES,
        calibration=CalibrationData(source="digits, train", n=64, seed=3, sha256="c" * 64),
    )
    small_bundle.write(card)
    document = sbom_json(small_bundle.folder, utc=UTC)
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(document.decode()) is None
    # The validator is no rubber stamp.
    broken = json.loads(document)
    broken["components"][0]["type"] = "engine"
    assert validator.validate_str(json.dumps(broken)) is not None


def test_every_file_is_there_with_its_hash(small_bundle: SmallBundle) -> None:
    found = components(sbom_json(small_bundle.folder))
    for name in ("model.onnx", "genotype.json", "engines/onnxruntime-cpu/engine.json"):
        digest = sha256_of((small_bundle.folder / name).read_bytes())
        assert found[name]["hashes"] == [{"alg": "SHA-256", "content": digest}]


def test_the_model_has_a_card_with_what_was_found_on_it(small_bundle: SmallBundle) -> None:
    small_bundle.write(replace(small_bundle.card, figures=FIGURES))
    model = components(sbom_json(small_bundle.folder))["model.onnx"]
    assert model["type"] == "machine-learning-model"
    parameters = model["modelCard"]["modelParameters"]
    assert parameters["inputs"] == [{"format": "float32 pixels in [0, 1] (batch, 1, 8, 8)"}]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert [(each["type"], each["value"], each["slice"]) for each in metrics] == [
        ("clean accuracy", "0.875", "1000 test images"),
        ("robust accuracy", "0.5", "500 images; linf 8/255"),
        ("median latency, microseconds", "73.5", "n = 200"),
    ]


def test_packages_have_urls_and_licenses_of_their_own_version_only(
    small_bundle: SmallBundle,
) -> None:
    found = components(sbom_json(small_bundle.folder))
    runtime = found["onnxruntime"]
    assert runtime["purl"] == f"pkg:pypi/onnxruntime@{package_version('onnxruntime')}"
    assert "MIT" in json.dumps(runtime["licenses"])
    assert found["absent_package"]["purl"] == "pkg:pypi/absent-package@1.0%2Bcpu"
    assert "licenses" not in found["absent_package"]
    small_bundle.write(replace(small_bundle.card, packages={"onnxruntime": "0.0.1"}))
    assert "licenses" not in components(sbom_json(small_bundle.folder))["onnxruntime"]


def test_a_sidecar_without_packages_has_those_of_its_runtime(small_bundle: SmallBundle) -> None:
    card = replace(small_bundle.card, packages={})
    assert packages_of(card) == {"onnxruntime": package_version("onnxruntime")}


def test_equal_files_give_equal_bytes_and_others_another_number(small_bundle: SmallBundle) -> None:
    folder = small_bundle.folder
    before = sbom_json(folder, utc=UTC)
    # Files that list the others come later, and change nothing.
    for name in (SBOM_FILE, "manifest.json", "SHA256SUMS"):
        (folder / name).write_text("later")
    assert sbom_json(folder, utc=UTC) == before
    assert json.loads(before)["metadata"]["timestamp"] == UTC
    assert "timestamp" not in json.loads(sbom_json(folder))["metadata"]
    (folder / "genotype.json").write_text("[]")
    numbers = {json.loads(each)["serialNumber"] for each in (before, sbom_json(folder, utc=UTC))}
    assert len(numbers) == 2


def test_the_model_needs_its_runtime(small_bundle: SmallBundle) -> None:
    document = json.loads(sbom_json(small_bundle.folder))
    needs = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    assert f"pkg:pypi/onnxruntime@{package_version('onnxruntime')}" in needs["model.onnx"]
    refs = [each["bom-ref"] for each in document["components"]]
    assert len(set(refs)) == len(refs)
    assert {ref for group in needs.values() for ref in group} <= set(refs)


def test_a_folder_without_engines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"engine\.json"):
        sbom_json(tmp_path)
