"""A bundle's engines made anew: from its own files alone, and never over the old ones."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from hwnas.core.artifacts import sha256_of_file
from hwnas.core.decoding import read_json
from hwnas.deploy.engines import engine_card, engine_cards
from hwnas.stages.bundle import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Call = Callable[..., Result]
    Hashes = Callable[[Path], dict[str, str]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(finished: Any, hwnas: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine in int8, whose images are not at hand any more."""
    out = tmp_path_factory.mktemp("rebuild") / "bundle"
    made = hwnas(
        "export", "--network", finished.out / "network", "--out", out, "--targets",
        "onnxruntime-cpu,onnxruntime-cpu-int8", "--keep-slower",
    )  # fmt: skip
    assert made.exit_code == 0, made.stderr
    return out


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_data(config: object) -> object:
        raise AssertionError("a bundle is rebuilt where its images need not be")

    monkeypatch.setattr("hwnas.data.sources.load_data", load_data)


def error_of(result: Result) -> str:
    assert result.exit_code == 1, result.stderr
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_engines_are_made_anew_and_the_old_bundle_is_left_alone(
    bundle: Path, no_data: None, hwnas: Call, hashes_in: Hashes, tmp_path: Path
) -> None:
    before = hashes_in(bundle)
    out = tmp_path / "new"
    made = hwnas("rebuild", bundle, "--out", out, "--keep-slower", "--triton", "--json")
    assert made.exit_code == 0, made.stderr
    assert f"hwnas verify {out}" in made.stderr
    assert hashes_in(bundle) == before
    assert {each["target"] for each in json.loads(made.stdout)["engines"]} == {
        "onnxruntime-cpu",
        "onnxruntime-cpu-int8",
    }
    old, new = (engine_card(each, "onnxruntime-cpu-int8") for each in (bundle, out))
    assert new.model_sha256 == old.model_sha256
    assert new.calibration == old.calibration
    assert new.choice is not None
    assert new.choice != old.choice  # timed anew
    for name in ("model.onnx", "weights.safetensors", "genotype.json"):
        assert sha256_of_file(out / name) == before[name]
    for name in ("run.py", "sbom.cdx.json", "triton"):
        assert (out / name).exists()
    sums = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(sums, cwd=out, check=False, capture_output=True).returncode == 0


def test_what_was_verified_on_the_old_engines_is_not_said_of_the_new(
    finished: Any, hwnas: Call, tmp_path: Path
) -> None:
    assert engine_card(finished.bundle, "onnxruntime-cpu").figures is not None
    out = tmp_path / "new"
    made = hwnas("rebuild", finished.bundle, "--out", out)
    assert made.exit_code == 0, made.stderr
    (card,) = engine_cards(out)
    assert card.figures is None
    assert not (out / "verification.json").exists()
    verified = hwnas("verify", out, "--json")
    assert verified.exit_code == 0, verified.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["call"].startswith("hwnas.api.rebuild(bundle=Path(")


def test_fp16_is_made_from_what_is_there(
    bundle: Path, no_data: None, hwnas: Call, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    made = hwnas(
        "rebuild", bundle, "--out", out, "--targets", "onnxruntime-cpu-fp16", "--keep-slower"
    )
    assert made.exit_code == 0, made.stderr
    (card,) = engine_cards(out)
    assert (card.target, card.precision) == ("onnxruntime-cpu-fp16", "fp16")
    assert read_json(out / "card.json", ModelCard).target == "onnxruntime-cpu-fp16"


def test_a_bundle_of_before_engines_had_sidecars_is_rebuilt(
    finished: Any, hwnas: Call, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(finished.bundle, old)
    shutil.rmtree(old / "engines")
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["outputs"] = {
        name: digest
        for name, digest in manifest["outputs"].items()
        if not name.startswith("engines/")
    }
    (old / "manifest.json").write_text(json.dumps(manifest))
    sums = old / "SHA256SUMS"
    kept = [
        line
        for line in sums.read_text().splitlines()
        if "  engines/" not in line and "manifest.json" not in line
    ]
    kept.append(f"{sha256_of_file(old / 'manifest.json')}  manifest.json")
    sums.write_text("\n".join(kept) + "\n")
    made = hwnas("rebuild", old, "--out", tmp_path / "new")
    assert made.exit_code == 0, made.stderr
    assert [card.target for card in engine_cards(tmp_path / "new")] == ["onnxruntime-cpu"]


def test_int8_is_not_made_up(finished: Any, hwnas: Call, tmp_path: Path) -> None:
    result = hwnas(
        "rebuild", finished.bundle, "--out", tmp_path / "new", "--targets", "onnxruntime-cpu-int8"
    )
    said = error_of(result)
    assert "holds no int8 model for target `onnxruntime-cpu-int8`" in said
    assert "`hwnas export --targets onnxruntime-cpu-int8`" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", [".", "new", ".."])
def test_the_old_bundles_place_is_refused(
    place: str, bundle: Path, hwnas: Call, hashes_in: Hashes
) -> None:
    before = hashes_in(bundle)
    said = error_of(hwnas("rebuild", bundle, "--out", bundle / place))
    assert "is to be left as it is" in said
    assert hashes_in(bundle) == before


@pytest.mark.parametrize("name", ["model.onnx", "engines/onnxruntime-cpu-int8/model.onnx"])
def test_a_changed_bundle_is_refused(name: str, bundle: Path, hwnas: Call, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    said = error_of(hwnas("rebuild", copy, "--out", tmp_path / "new"))
    assert name in said
    assert "was changed after it was made" in said
