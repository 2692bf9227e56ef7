"""What `hwnas verify` catches in a bundle that came from somewhere."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from hwnas.core.artifacts import sha256_of, sha256_of_file
from hwnas.core.decoding import encode_json, read_json
from hwnas.deploy.records import EngineCard
from hwnas.stages.bundle import ModelCard
from hwnas_export.precision import onnx_in_precision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Call = Callable[..., Result]

pytestmark = pytest.mark.slow


def files_of(bundle: Path) -> list[str]:
    return sorted(
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()
    )


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
    names = [name for name in files_of(bundle) if name != "SHA256SUMS"]
    lines = [f"{sha256_of_file(bundle / name)}  {name}\n" for name in names]
    (bundle / "SHA256SUMS").write_text("".join(lines))


def error_of(result: Result) -> str:
    assert result.exit_code == 1, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error:") == 1
    return result.stderr[result.stderr.index("error:") :]


def test_each_changed_or_missing_file_is_named(bundle: Path, hwnas: Call) -> None:
    names = files_of(bundle)
    assert {"SHA256SUMS", "manifest.json", "model.onnx", "weights.safetensors"} <= set(names)
    for name in names:
        before = (bundle / name).read_bytes()
        changed = bytearray(before)
        changed[len(changed) // 2] ^= 1
        (bundle / name).write_bytes(changed)
        said = error_of(hwnas("verify", bundle, "--json"))
        assert name in said or name == "SHA256SUMS"
        assert "hint: " in said
        (bundle / name).unlink()
        assert name in error_of(hwnas("verify", bundle, "--json"))
        (bundle / name).write_bytes(before)


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
    assert json.loads(out.read_text()) == document
    found = document["verification"]["speed"]
    assert found["tail"]["p99_us"] >= found["tail"]["median_us"]
    assert [each["batch"] for each in found["throughput"]] == [1, 8]


def write_engine(bundle: Path, target: str, precision: str, model: bytes) -> None:
    """Add an engine, as `hwnas export` does."""
    card = read_json(bundle / "card.json", ModelCard)
    folder = bundle / "engines" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    sidecar = EngineCard(
        target=target,
        precision=precision,
        model=f"engines/{target}/model.onnx",
        model_sha256=sha256_of(model),
        source_sha256=sha256_of_file(bundle / "model.onnx"),
        class_names=card.class_names,
        image_shape=card.image_shape,
        pixel_range=card.pixel_range,
    )
    (folder / "engine.json").write_bytes(encode_json(sidecar, indent=2))


@pytest.fixture
def engines(bundle: Path) -> Path:
    """A bundle of engines in FP32 and in FP16, and of one that cannot run here."""
    model = onnx.load(bundle / "model.onnx")
    half = onnx_in_precision(model, "fp16").SerializeToString()
    write_engine(bundle, "onnxruntime-cpu", "fp32", model.SerializeToString())
    write_engine(bundle, "onnxruntime-cpu-fp16", "fp16", half)
    write_engine(bundle, "onnxruntime-cuda-fp16", "fp16", half)
    seal(bundle)
    return bundle


def test_every_engine_that_can_run_here_is_verified(engines: Path, hwnas: Call) -> None:
    result = hwnas("verify", engines, "--json")
    assert result.exit_code == 0, result.stderr
    assert "onnxruntime-cuda-fp16 is not verified here" in result.stderr
    document = json.loads(result.stdout)
    assert document["verification"]["engine"] == "onnxruntime-cpu"
    assert list(document["others"]) == ["onnxruntime-cpu-fp16"]
    assert list(document["not_verified"]) == ["onnxruntime-cuda-fp16"]
    half = document["others"]["onnxruntime-cpu-fp16"]
    assert (half["engine"], half["precision"]) == ("onnxruntime-cpu-fp16", "fp16")
    # The budget was given for the network's own target.
    gates = {gate["name"] for gate in half["gates"]}
    assert "latency" not in gates
    assert half["speed"]["latency"]["median_us"] > 0


def test_one_engine_is_picked(engines: Path, hwnas: Call) -> None:
    result = hwnas("verify", engines, "--target", "onnxruntime-cpu-fp16", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["verification"]["engine"], document["others"]) == ("onnxruntime-cpu-fp16", {})
    said = error_of(hwnas("verify", engines, "--target", "onnxruntime-cpu-int8"))
    assert "holds no engine for target `onnxruntime-cpu-int8`" in said
    assert "cannot be used here" in error_of(
        hwnas("verify", engines, "--target", "onnxruntime-cuda-fp16")
    )


def test_a_damaged_engine_fails_by_its_name(engines: Path, hwnas: Call) -> None:
    model = onnx.load(engines / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    values = numpy_helper.to_array(tensor) * 1.5
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    half = onnx_in_precision(model, "fp16").SerializeToString()
    write_engine(engines, "onnxruntime-cpu-fp16", "fp16", half)
    seal(engines)
    result = hwnas("verify", engines, "--json")
    assert result.exit_code == 3
    assert "onnxruntime-cpu-fp16 failed" in result.stderr
    assert "onnxruntime-cpu failed" not in result.stderr
    document = json.loads(result.stdout)
    assert document["passed"] is False
    assert all(gate["passed"] for gate in document["verification"]["gates"])


def test_a_swapped_engine_is_not_opened(engines: Path, hwnas: Call) -> None:
    place = engines / "engines" / "onnxruntime-cpu-fp16" / "model.onnx"
    place.write_bytes((engines / "model.onnx").read_bytes())
    seal(engines)
    said = error_of(hwnas("verify", engines, "--target", "onnxruntime-cpu-fp16"))
    assert "is not the file that its sidecar describes" in said


def test_a_batch_outside_the_profile_is_refused(engines: Path, hwnas: Call) -> None:
    place = engines / "engines" / "onnxruntime-cpu" / "engine.json"
    sidecar = json.loads(place.read_text())
    sidecar["batches"] = [256, 256, 512]
    place.write_text(json.dumps(sidecar))
    seal(engines)
    said = error_of(hwnas("verify", engines, "--target", "onnxruntime-cpu"))
    assert "takes batches of 256 to 512, and [verify] asks for 128" in said
    assert "set `batch` in [verify] to 256 or more" in said


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
