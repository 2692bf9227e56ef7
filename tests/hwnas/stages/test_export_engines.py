"""Several engines from one network: what `hwnas export` makes, keeps, leaves out and refuses."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from hwnas.core.artifacts import sha256_of_file
from hwnas.core.decoding import read_json
from hwnas.core.errors import MissingDependencyError, TargetError
from hwnas.deploy.engine_targets import check_buildable
from hwnas.deploy.engines import engine_card, engine_cards
from hwnas.stages.bundle import ModelCard
from hwnas_export import tensorrt_api
from hwnas_export.onnx_metadata import metadata_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Call = Callable[..., Result]

pytestmark = pytest.mark.slow

ALL = ("onnxruntime-cpu", "onnxruntime-cpu-int8", "onnxruntime-cpu-fp16")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A bundle of all engines of ONNX Runtime on the CPU, and what was said of it."""

    bundle: Path
    result: dict[str, Any]
    call: tuple[object, ...]


@pytest.fixture(scope="module")
def exported(finished: Any, hwnas: Call, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    out = tmp_path_factory.mktemp("exported") / "bundle"
    call = (
        "export", "--network", finished.out / "network", "--out", out, "--targets", ",".join(ALL),
        "--keep-slower", "--calibration-images", 40, "--triton", "--json",
    )  # fmt: skip
    made = hwnas(*call)
    assert made.exit_code == 0, made.stderr
    return Exported(bundle=out, result=json.loads(made.stdout), call=call)


def error_of(result: Result) -> str:
    assert result.exit_code == 1, result.stderr
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_each_target_has_an_engine_that_computes_what_pytorch_does(exported: Exported) -> None:
    engines = {each["target"]: each for each in exported.result["engines"]}
    assert set(engines) == set(ALL)
    assert exported.result["left_out"] == []
    errors = {target: engine["relative_l2"] for target, engine in engines.items()}
    assert errors["onnxruntime-cpu"] < 1e-5 < errors["onnxruntime-cpu-fp16"] < 1e-2
    assert errors["onnxruntime-cpu-fp16"] < errors["onnxruntime-cpu-int8"] < 0.15
    size = {target: engine["size_bytes"] for target, engine in engines.items()}
    assert size["onnxruntime-cpu-fp16"] < 0.7 * size["onnxruntime-cpu"]


def test_sidecars_say_what_engines_are(exported: Exported) -> None:
    bundle = exported.bundle
    card = read_json(bundle / "card.json", ModelCard)
    assert card.target == "onnxruntime-cpu"
    for engine in engine_cards(bundle):
        assert engine.model_sha256 == sha256_of_file(bundle / engine.model)
        assert engine.source_sha256 == sha256_of_file(bundle / "model.onnx")
        assert engine.class_names == card.class_names
        assert (engine.choice is None) == (engine.precision == "fp32")
    calibration = engine_card(bundle, "onnxruntime-cpu-int8").calibration
    assert calibration is not None
    assert calibration.n == 40
    assert "validation" in calibration.source


def test_the_portable_model_says_how_it_is_fed(exported: Exported) -> None:
    for name in ("model.onnx", "engines/onnxruntime-cpu-int8/model.onnx"):
        metadata = metadata_of(onnx.load_model(exported.bundle / name))
        assert json.loads(metadata["hwnas.class_names"]) == [str(digit) for digit in range(10)]
        assert json.loads(metadata["hwnas.pixel_range"]) == [0.0, 1.0]
        assert metadata["hwnas.normalization"] == "inside the model"
        assert metadata["hwnas.version"]
        assert str(exported.bundle.parent) not in str(metadata)


def test_all_that_is_promised_is_there_and_hashed(exported: Exported) -> None:
    for name in ("run.py", "sbom.cdx.json", "triton/onnxruntime-cpu/config.pbtxt"):
        assert (exported.bundle / name).is_file()
    check = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"],
        cwd=exported.bundle,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout


def test_a_second_export_repeats_nothing(exported: Exported, hwnas: Call) -> None:
    again = hwnas(*exported.call)
    assert again.exit_code == 0, again.stderr
    assert "is finished already" in again.stderr
    assert json.loads(again.stdout) == exported.result


def test_what_does_not_pay_is_said_and_left_out(finished: Any, hwnas: Call, tmp_path: Path) -> None:
    asked = ["onnxruntime-cpu-int8", "onnxruntime-cpu-fp16"]
    made = hwnas(
        "export", "--network", finished.out / "network", "--out", tmp_path / "bundle",
        "--targets", ",".join(asked), "--json",
    )  # fmt: skip
    assert made.exit_code == 0, made.stderr
    result = json.loads(made.stdout)
    kept = [engine["target"] for engine in result["engines"]]
    left = [each["target"] for each in result["left_out"]]
    # Which they are is for the clock to say; that all is told is not.
    assert sorted(left + [target for target in kept if target in asked]) == sorted(asked)
    for target in asked:
        assert (f"{target} is no faster than onnxruntime-cpu" in made.stderr) == (target in left)
    card = read_json(tmp_path / "bundle" / "card.json", ModelCard)
    assert [each.target for each in card.left_out] == left
    assert card.target in kept
    if left:
        assert "onnxruntime-cpu" in kept


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--targets", "torch-cpu"), "no bundle can be made for target `torch-cpu`"),
        (("--targets", "onnxruntime-cpu-int9"), "onnxruntime-cpu-int8"),
        (("--targets", "onnxruntime-cuda"), "cannot be used here"),
        (("--batches", "8,1,64"), "not 8,1,64"),
        (("--batches", "8"), "not 8"),
        (("--calibration-images", "0"), "cannot be calibrated on 0 images"),
    ],
)
def test_what_cannot_be_exported(
    given: tuple[str, ...], says: str, finished: Any, hwnas: Call, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    result = hwnas("export", "--network", finished.out / "network", "--out", out, *given)
    assert says in error_of(result)
    assert "hint: " in result.stderr
    assert not out.exists()


def test_tensorrt_that_is_not_installed_has_its_install_line(
    finished: Any, hwnas: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_api, "_MODULES", ("no_such_tensorrt",))
    result = hwnas(
        "export", "--network", finished.out / "network", "--out", tmp_path / "bundle",
        "--targets", "tensorrt-fp16",
    )  # fmt: skip
    assert "pip install" in error_of(result)


@pytest.mark.tensorrt
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorrt_for_rtx_builds_where_there_is_no_gpu(
    finished: Any, hwnas: Call, tmp_path: Path
) -> None:
    try:
        if check_buildable("tensorrt-fp16"):
            pytest.skip("there is a GPU here")
    except (MissingDependencyError, TargetError) as error:
        pytest.skip(error.message)
    out = tmp_path / "bundle"
    made = hwnas(
        "export", "--network", finished.out / "network", "--out", out, "--targets",
        "tensorrt-fp16", "--compute-capabilities", "8.6,8.9", "--batches", "1,4,16", "--json",
    )  # fmt: skip
    assert made.exit_code == 0, made.stderr
    assert "compute capability 8.6, 8.9, ahead of time" in made.stderr
    (card,) = engine_cards(out)
    assert card.plan_sha256 == sha256_of_file(out / card.plan)
    assert (card.device, card.choice, card.batches) == (None, None, (1, 4, 16))
    assert card.compute_capabilities == ("8.6", "8.9")
    said = error_of(hwnas("verify", out))
    assert "no engine of" in said
