"""What scripts build on: the result of `hwnas run`, its bundle, and that a second run is free."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hwnas.core.artifacts import sha256_of_file
from hwnas.data.sources import DataConfig
from hwnas.deploy.engines import engine_card
from hwnas.stages.artifacts import data_inputs, is_current

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Call = Callable[..., Result]
    NewConfig = Callable[..., Path]
    Hashes = Callable[[Path], dict[str, str]]

pytestmark = pytest.mark.slow

STAGES = ("teacher", "search", "network", "engine", "verification", "bundle")
GATES = {"max_abs_diff", "agreement", "clean_drop", "robust_drop", "black_box_gap", "latency"}
BUNDLED = {
    "SHA256SUMS",
    "card.json",
    "genotype.json",
    "manifest.json",
    "model.onnx",
    "engines",
    "report.html",
    "run.py",
    "sbom.cdx.json",
    "verification.json",
    "weights.safetensors",
}


def times_in(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_stdout_is_one_document_and_the_summary(finished: Any) -> None:
    result = json.loads(finished.stdout)  # which refuses anything before or after
    assert result == json.loads((finished.out / "summary.json").read_text())
    assert not list(finished.out.glob("*.checkpoint"))
    assert not list(finished.out.rglob(".*"))


def test_the_result_has_what_scripts_build_on(finished: Any) -> None:
    result = json.loads(finished.stdout)
    for name in ("budget_ms", "predicted_ms", "measured_ms"):
        assert isinstance(result[name], float)
        assert result[name] > 0
    assert result["predicted_ms"] <= result["budget_ms"]
    for name in ("params", "macs"):
        assert isinstance(result[name], int)
        assert result[name] > 1000
    for name in ("clean_accuracy", "robust_accuracy"):
        assert set(result[name]) == {"twin", "engine"}
        assert all(0 <= value <= 1 for value in result[name].values())
    assert result["parity"]["max_abs_diff"] < 1e-3
    assert 0.99 <= result["parity"]["agreement"] <= 1
    assert set(result["gates"]) >= GATES
    assert set(map(type, result["gates"].values())) == {bool}
    assert Path(result["bundle"]) == finished.bundle


def test_progress_goes_to_stderr_alone(finished: Any) -> None:
    for said in ("python: hwnas.api.run(", "timing: ", "teacher: ", "search: ", "train: "):
        assert said in finished.stderr
        assert said not in finished.stdout


def test_the_bundle_holds_all_that_is_promised(finished: Any) -> None:
    assert {file.name for file in finished.bundle.iterdir()} >= BUNDLED
    check = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=finished.bundle,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout
    listed = {line.split("  ")[1] for line in _lines(finished.bundle / "SHA256SUMS")}
    files = [file for file in finished.bundle.rglob("*") if file.is_file()]
    assert listed == {str(file.relative_to(finished.bundle)) for file in files} - {"SHA256SUMS"}


def test_sidecars_hold_what_was_found_on_the_engines(finished: Any) -> None:
    found = json.loads((finished.bundle / "verification.json").read_text())
    card = engine_card(finished.bundle, "onnxruntime-cpu")
    assert card.figures is not None
    assert card.figures.n == found["clean_accuracy"]["engine"]["n"]
    assert card.figures.clean_accuracy == found["clean_accuracy"]["engine"]["value"]
    assert card.figures.robust_accuracy <= found["black_box"]["square"]["value"] + 1e-9 or (
        card.figures.robust_n < found["black_box"]["square"]["n"]
    )
    assert card.figures.latency is not None
    assert card.figures.latency.median_us == found["latency"]["median_us"]
    assert "eps 0.1" in card.figures.threat


def test_the_card_says_what_it_was_made_with(finished: Any) -> None:
    card = json.loads((finished.bundle / "card.json").read_text())
    assert card["table_sha256"] == sha256_of_file(finished.table)
    assert card["image_shape"] == [1, 8, 8]
    assert card["threat"]["eps"] == 0.1
    manifest = json.loads((finished.bundle / "manifest.json").read_text())
    assert manifest["call"].startswith("hwnas.api.run(config=Path(")


def test_the_report_is_a_page_of_this_run(finished: Any) -> None:
    page = (finished.bundle / "report.html").read_text()
    assert page == (finished.out / "report.html").read_text()
    assert "<svg" in page
    assert "rnas-cl-xs" in page


def test_a_second_run_repeats_nothing(finished: Any, hwnas: Call) -> None:
    before = times_in(finished.out)
    again = hwnas("run", finished.config, "--out", finished.out, "--json")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(finished.stdout)
    after = times_in(finished.out)
    parts = [finished.out / name for name in (*STAGES, "genotype.json", "table.jsonl")]
    for part in parts:
        assert {p: t for p, t in after.items() if p.is_relative_to(part)} == {
            p: t for p, t in before.items() if p.is_relative_to(part)
        }
    for stage in ("teacher", "search", "derive", "train", "export", "verify", "bundle"):
        assert re.search(rf"^{stage}: .* is finished already$", again.stderr, re.MULTILINE)
    measured = r"49 of 49 operators and (\d+) of \1 pairs of neighbors are measured already"
    assert re.search(measured, again.stderr)
    assert "is calibrated already" in again.stderr


def test_other_tolerances_are_judged_anew_and_nothing_is_trained(
    finished: Any, hwnas: Call, new_config: NewConfig, tmp_path: Path, hashes_in: Hashes
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished.out, out)
    config = new_config(("verify.tolerances.latency_over_budget", 0.0))
    before = hashes_in(out / "network")
    result = hwnas("run", config, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    assert hashes_in(out / "network") == before
    assert "train: " in result.stderr
    card = json.loads((out / "bundle" / "card.json").read_text())
    assert card["verify"]["tolerances"]["latency_over_budget"] == 0.0


def test_a_failed_gate_exits_3_with_bundle_report_and_result(
    finished: Any, hwnas: Call, new_config: NewConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished.out, out)
    # No engine of other arithmetic has exactly the logits of its twin.
    config = new_config(("verify.tolerances.relative_l2", 0.0))
    result = hwnas("run", config, "--out", out, "--json")
    assert result.exit_code == 3, result.stderr
    document = json.loads(result.stdout)
    assert document["gates"]["relative_l2"] is False
    assert document == json.loads((out / "summary.json").read_text())
    assert "relative_l2" in result.stderr
    assert "Traceback" not in result.stderr
    assert (out / "bundle" / "report.html").is_file()
    again = hwnas("run", config, "--out", out, "--json")
    assert again.exit_code == 3
    assert json.loads(again.stdout)["gates"] == document["gates"]
    # A gate may have failed by a busy machine: the engine is verified again, nothing else is.
    assert "verifying once more" in again.stderr
    assert "export: " in again.stderr


def test_what_a_stage_is_made_from_decides_whether_it_is_current(finished: Any) -> None:
    manifest = json.loads((finished.out / "teacher" / "manifest.json").read_text())
    settings, inputs = manifest["settings"], manifest["inputs"]
    assert set(inputs) == {"data"}

    def current(**changed: Any) -> bool:
        given = {"settings": settings, "inputs": inputs, **changed}
        return is_current(finished.out / "teacher", kind="teacher", **given)

    # A tuple is a list in JSON.
    blocks = tuple(settings["teacher"]["blocks"])
    assert current(settings={**settings, "teacher": {**settings["teacher"], "blocks": blocks}})
    assert not current(settings={**settings, "seed": 1})
    assert not current(inputs={"data": "0" * 64})


def test_own_images_are_inputs_by_their_content(tmp_path: Path) -> None:
    assert data_inputs(DataConfig()) == {}
    assert data_inputs(DataConfig(source=f"npz:{tmp_path / 'missing.npz'}")) == {}
    file = tmp_path / "data_batch_1.bin"
    file.write_bytes(b"a")
    of_file = data_inputs(DataConfig(source=f"npz:{file}"))
    of_folder = data_inputs(DataConfig(source=f"cifar10:{tmp_path}"))
    file.write_bytes(b"b")
    assert data_inputs(DataConfig(source=f"npz:{file}")) != of_file
    assert data_inputs(DataConfig(source=f"cifar10:{tmp_path}")) != of_folder


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
