"""What `hwnas verify` catches in a bundle that came from somewhere."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.numpy import load_file, save_file

from hwnas.core.artifacts import sha256_of_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Call = Callable[..., Result]

pytestmark = pytest.mark.slow

FILES = (
    "SHA256SUMS", "card.json", "genotype.json", "manifest.json", "model.onnx", "parity.json",
    "report.html", "verification.json", "weights.safetensors",
)  # fmt: skip


@pytest.fixture
def bundle(finished: Any, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    copy = tmp_path / "bundle"
    shutil.copytree(finished.bundle, copy)
    return copy


def seal(bundle: Path) -> None:
    """Make manifest and checksums agree with the files, as who changes them on purpose would."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["outputs"] = {name: sha256_of_file(bundle / name) for name in manifest["outputs"]}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    names = [path.name for path in sorted(bundle.iterdir()) if path.name != "SHA256SUMS"]
    lines = [f"{sha256_of_file(bundle / name)}  {name}\n" for name in names]
    (bundle / "SHA256SUMS").write_text("".join(lines))


def error_of(result: Result) -> str:
    assert result.exit_code == 1, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error:") == 1
    return result.stderr[result.stderr.index("error:") :]


def test_the_table_of_files_is_the_bundle(finished: Any) -> None:
    assert tuple(sorted(path.name for path in finished.bundle.iterdir())) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_named(name: str, bundle: Path, hwnas: Call) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    said = error_of(hwnas("verify", bundle, "--json"))
    assert name in said or name == "SHA256SUMS"
    assert "hint: " in said


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, bundle: Path, hwnas: Call) -> None:
    (bundle / name).unlink()
    assert name in error_of(hwnas("verify", bundle, "--json"))


def test_a_cut_list_of_checksums_is_noticed(bundle: Path, hwnas: Call) -> None:
    (bundle / "SHA256SUMS").write_text("")
    assert "does not list manifest.json" in error_of(hwnas("verify", bundle))


def test_what_is_no_bundle_is_refused(finished: Any, tmp_path: Path, hwnas: Call) -> None:
    for folder in (tmp_path / "nowhere", tmp_path, finished.out / "network"):
        said = error_of(hwnas("verify", folder))
        assert f"{folder} holds no SHA256SUMS" in said
        assert "`hwnas export`" in said


def test_other_weights_fail_the_gates_whatever_the_hashes_say(bundle: Path, hwnas: Call) -> None:
    weights = load_file(bundle / "weights.safetensors")
    name = max(weights, key=lambda each: weights[each].size)
    weights[name] = weights[name] * 1.5
    save_file(weights, bundle / "weights.safetensors")
    seal(bundle)
    result = hwnas("verify", bundle, "--json")
    assert result.exit_code == 3
    assert "max_abs_diff" in result.stderr
    assert "Traceback" not in result.stderr
    document = json.loads(result.stdout)
    assert document["passed"] is False
    failed = {gate["name"] for gate in document["verification"]["gates"] if not gate["passed"]}
    assert {"max_abs_diff", "relative_l2"} <= failed


def test_a_latency_over_the_budget_fails_its_gate(
    bundle: Path, tmp_path: Path, hwnas: Call
) -> None:
    card = json.loads((bundle / "card.json").read_text())
    card["budget_ms"] = 1e-5
    (bundle / "card.json").write_text(json.dumps(card))
    seal(bundle)
    out = tmp_path / "figures.json"
    result = hwnas("verify", bundle, "--out", out, "--json")
    assert result.exit_code == 3
    assert "the budget is 1e-05 ms" in result.stderr
    document = json.loads(result.stdout)
    failed = [gate["name"] for gate in document["verification"]["gates"] if not gate["passed"]]
    assert failed == ["latency"]
    assert json.loads(out.read_text()) == document["verification"]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("image_shape", [1, 9, 9], "the engine takes images of 1x9x9"),
        ("class_names", ["a", "b"], "the engine has 2 classes"),
        ("schema", "1", "Expected `int`"),
        ("budget", 1.0, "did you mean `budget_ms`?"),
    ],
)
def test_a_card_that_cannot_be_is_refused(
    key: str, value: object, says: str, bundle: Path, hwnas: Call
) -> None:
    card = json.loads((bundle / "card.json").read_text())
    card[key] = value
    (bundle / "card.json").write_text(json.dumps(card))
    seal(bundle)
    assert says in error_of(hwnas("verify", bundle))


def test_a_model_that_is_none_is_refused(bundle: Path, hwnas: Call) -> None:
    (bundle / "model.onnx").write_bytes(b"no model")
    seal(bundle)
    error_of(hwnas("verify", bundle))
