"""`hwnas bench`: what is written, what is said, and what is refused before anything is timed."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from hwnas.core.artifacts import ManifestDraft, new_artifact, read_manifest
from hwnas.core.errors import ArtifactError, ConfigError, InputFileError, TargetError
from hwnas.stages.bench import PICTURE_FILE, RECORD_FILE, bench
from hwnas_profilers.timing import TimingSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import click.testing

    from tests.hwnas.stages.conftest import Finished

# Intervals so wide that the fewest samples will do; torch.compile would take minutes.
QUICK: dict[str, Any] = {"relative_width": 0.9, "compile_limit_s": 0.0}


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take as few samples as statistics need, on a busy machine too."""
    settings = TimingSettings(
        relative_width=0.9, min_samples=6, max_samples=6, samples_per_round=3, min_sample_us=0,
        max_disturbed=0.0,
    )  # fmt: skip
    monkeypatch.setattr("hwnas.stages.bench.timing_of", lambda *_: settings)


@pytest.mark.usefixtures("few_samples")
def test_figures_and_picture_are_written(
    finished: Finished, tmp_path: Path, hwnas: Callable[..., click.testing.Result]
) -> None:
    out = tmp_path / "bench"
    result = hwnas(
        "bench", finished.bundle, "--batches", "1,4", "--out", out, "--relative-width", "0.9",
        "--compile-limit-s", "0", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    names = {line["name"] for line in found["lines"]}
    assert {"onnxruntime-cpu", "torch eager", "ONNX Runtime default, 1 thread"} <= names
    for line in found["lines"]:
        assert line["low_us"] <= line["median_us"] <= line["high_us"]
        if line["name"] == "torch eager":
            assert line["times_eager"] == 1
    assert ("torch.compile", 1) in {(each["name"], each["batch"]) for each in found["not_timed"]}
    manifest = read_manifest(out, kind="bench")
    assert set(manifest.outputs) == {RECORD_FILE, PICTURE_FILE}
    assert "batches=(1, 4)" in manifest.call
    record = json.loads((out / RECORD_FILE).read_text())
    assert record["provenance"]["device"]["name"] == found["device"]
    for lane, line in zip(record["race"]["lanes"], found["lines"], strict=True):
        assert len(lane["samples_us"]) == line["n"]
    # Made again, it is replaced.
    bench(finished.bundle, batches=(1,), out=out, **QUICK)
    assert len(read_manifest(out, kind="bench").outputs) == 2


@pytest.mark.usefixtures("few_samples")
def test_the_table_names_those_that_were_not_timed(
    finished: Finished, hwnas: Callable[..., click.testing.Result]
) -> None:
    result = hwnas(
        "bench", finished.bundle, "--batches", "1", "--targets", "onnxruntime-cpu",
        "--relative-width", "0.9", "--compile-limit-s", "0",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "median (us)" in result.stdout
    assert "not timed" in result.stdout
    assert "left out" in result.stdout


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"batches": (0,)}, ConfigError, "batches are 0"),
        ({"batches": ()}, ConfigError, "none"),
        ({"compile_limit_s": -1.0}, ConfigError, "compile_limit_s"),
        ({"relative_width": 0.0}, ConfigError, "relative_width"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"targets": ("onnxruntime-cpi",)}, TargetError, "onnxruntime-cpi"),
    ],
)
def test_bad_settings_are_refused(
    finished: Finished, given: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        bench(finished.bundle, **(QUICK | given))


def test_batches_that_are_none_come_with_a_remedy(finished: Finished) -> None:
    with pytest.raises(ConfigError) as caught:
        bench(finished.bundle, batches=(0,), **QUICK)
    assert caught.value.hint == "images per call, e.g. `--batches 1,8,64`"


def test_a_changed_bundle_is_refused(finished: Finished, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(finished.bundle, bundle)
    (bundle / "model.onnx").write_bytes(b"another")
    with pytest.raises(ArtifactError, match=r"model\.onnx was changed"):
        bench(bundle, **QUICK)
    with pytest.raises(ArtifactError):
        bench(tmp_path / "nothing", **QUICK)


def test_only_a_benchmark_is_replaced(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(InputFileError, match="did not make"):
        bench(finished.bundle, out=tmp_path / "mine", **QUICK)
    with new_artifact(tmp_path / "other", ManifestDraft(kind="train")):
        pass
    with pytest.raises(ArtifactError, match="hwnas train"):
        bench(finished.bundle, out=tmp_path / "other", **QUICK)
