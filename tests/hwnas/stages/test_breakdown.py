"""`hwnas profile --model`: what is written, and what is refused before anything is measured."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from hwnas.core.artifacts import ManifestDraft, new_artifact, read_manifest, sha256_of_file
from hwnas.core.decoding import read_json
from hwnas.core.errors import ArtifactError, ConfigError, InputFileError, TargetError
from hwnas.stages.breakdown import CSV_FILE, JSON_FILE, PNG_FILE, SVG_FILE, make_breakdown
from hwnas_profilers.breakdown.values import Breakdown
from hwnas_profilers.timing import TimingSettings

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK = TimingSettings(
    relative_width=0.5, min_samples=8, max_samples=12, samples_per_round=4, min_sample_us=20
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weights = onnx.numpy_helper.from_array(np.ones((32, 32), np.float32), "w")
    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["a"], "first"),
        oh.make_node("Softmax", ["a"], ["y"], "second"),
    ]
    ends = [oh.make_tensor_value_info(name, 1, ["batch", 32]) for name in "xy"]
    graph = oh.make_graph(nodes, "g", ends[:1], ends[1:], [weights])
    path = tmp_path / "model.onnx"
    onnx.save(oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)]), path)
    return path


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured before it was checked")

    monkeypatch.setattr("hwnas_profilers.breakdown.measure.measure_breakdown", refuse)


def test_everything_is_written_and_reads_back(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = make_breakdown(model, "onnxruntime-cpu", out, batch=3, settings=QUICK)
    manifest = read_manifest(out, kind="profile")
    assert set(manifest.outputs) == {JSON_FILE, CSV_FILE, SVG_FILE, PNG_FILE}
    assert manifest.inputs == {"model": sha256_of_file(model)}
    assert "model=Path(" in manifest.call
    assert "batch=3" in manifest.call
    assert read_json(out / JSON_FILE, Breakdown) == found
    assert found.out == str(out)
    with (out / CSV_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["first", "second"]
    assert [row["macs"] for row in rows] == [str(3 * 32 * 32), ""]
    assert sum(float(row["latency_us"]) for row in rows) == pytest.approx(found.latency_us)


def test_a_breakdown_is_replaced(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for batch in (1, 2):
        make_breakdown(model, "onnxruntime-cpu", out, batch=batch, settings=QUICK)
    assert "2x32" in read_json(out / JSON_FILE, Breakdown).inputs


def test_nothing_is_written_unasked(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = make_breakdown(model, "onnxruntime-cpu", settings=QUICK)
    assert found.out == ""
    assert list(tmp_path.iterdir()) == [model]


def _a_file(out: Path) -> None:
    out.write_text("mine")


def _a_folder(out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("mine")


def _a_bundle(out: Path) -> None:
    with new_artifact(out, ManifestDraft(kind="export")) as folder:
        (folder / "model.onnx").write_bytes(b"mine")


@pytest.mark.usefixtures("no_measuring")
@pytest.mark.parametrize(
    ("make", "error"),
    [(_a_file, InputFileError), (_a_folder, InputFileError), (_a_bundle, ArtifactError)],
)
def test_what_else_stands_there_is_kept(
    make: Callable[[Path], None], error: type[Exception], model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make(out)
    before = {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()}
    with pytest.raises(error):
        make_breakdown(model, "onnxruntime-cpu", out, settings=QUICK)
    assert before
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.usefixtures("no_measuring")
def test_settings_and_target_are_checked_first(model: Path) -> None:
    with pytest.raises(ConfigError, match="threads is 0"):
        make_breakdown(model, "onnxruntime-cpu", threads=0)
    with pytest.raises(ConfigError, match="batch is 0"):
        make_breakdown(model, "onnxruntime-cpu", batch=0)
    with pytest.raises(TargetError, match="gives no breakdown"):
        make_breakdown(Path("no.onnx"), "tensorrt-fp16")
    with pytest.raises(InputFileError, match="does not exist"):
        make_breakdown(model.with_name("modell.onnx"), "onnxruntime-cpu")
