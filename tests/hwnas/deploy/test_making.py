"""Engines are made for what is asked, kept where they pay, and described as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hwnas.core.artifacts import sha256_of_file
from hwnas.core.environment import this_device
from hwnas.core.errors import DataError, ExportError, MissingDependencyError, TargetError
from hwnas.deploy import making
from hwnas.deploy.conversion import Conversion
from hwnas.deploy.engine_parity import engine_parity, model_parity
from hwnas.deploy.engine_targets import check_buildable
from hwnas.deploy.engines import engine_cards, open_runner
from hwnas.deploy.making import make_engines
from hwnas.deploy.records import CalibrationData, LatencyChoice
from hwnas.verify.verification import VerifySettings
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.precision import precision_of
from hwnas_export.tensorrt_api import is_rtx, trt_module
from hwnas_profilers.records import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from hwnas.deploy.making import Recipe

RECORD = CalibrationData(source="noise", n=32, seed=0, sha256="0" * 64)
IMAGES = np.random.default_rng(0).random((32, 1, 8, 8), dtype=np.float32)


def took(latency_us: float) -> Statistics:
    return Statistics(
        n=60, median_us=latency_us, low_us=latency_us, high_us=latency_us, min_us=latency_us,
        p10_us=latency_us, p90_us=latency_us,
    )  # fmt: skip


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Say which engines pay, in place of a clock, and choose one session."""
    answers = {"onnxruntime-cpu-int8": True, "onnxruntime-cpu-fp16": False}

    def choice(engine: OnnxRuntimeRunner, fp32: OnnxRuntimeRunner, **_: object) -> LatencyChoice:
        assert fp32.name == "onnxruntime-cpu"
        us = 50.0 if answers[engine.name] else 150.0
        return LatencyChoice(batch=1, engine=took(us), fp32=took(100.0), pays=us < 100.0)

    monkeypatch.setattr(making, "latency_choice", choice)
    monkeypatch.setattr(making, "chosen_session", lambda *_, **__: {"memory_pattern": "off"})
    return answers


@pytest.fixture
def folder(tmp_path: Path, portable: bytes) -> Path:
    (tmp_path / "model.onnx").write_bytes(portable)
    return tmp_path


@pytest.fixture
def conversion(portable: bytes) -> Conversion:
    return Conversion(portable, lambda: (IMAGES, RECORD))


@pytest.fixture
def expected(portable: bytes) -> NDArray[np.float32]:
    with OnnxRuntimeRunner(portable) as runner:
        return runner.infer(IMAGES)


def test_engines_are_described_as_they_are(
    folder: Path, conversion: Conversion, recipe: Recipe, pays: dict[str, bool]
) -> None:
    made = make_engines(folder, ["onnxruntime-cpu", "onnxruntime-cpu-int8"], conversion, recipe)
    assert made.cards == engine_cards(folder)
    assert made.left_out == ()
    fp32, int8 = made.cards
    assert (fp32.model, fp32.precision, fp32.choice) == ("model.onnx", "fp32", None)
    assert int8.model == "engines/onnxruntime-cpu-int8/model.onnx"
    assert int8.choice is not None
    assert int8.calibration == RECORD
    for card in made.cards:
        assert card.model_sha256 == sha256_of_file(folder / card.model)
        assert card.source_sha256 == sha256_of_file(folder / "model.onnx")
        assert card.device == this_device()
        assert card.session == {"memory_pattern": "off"}
        assert card.packages
        assert precision_of(onnx.load_model(folder / card.model)) == card.precision
        with open_runner(folder, card) as runner:
            assert runner.name == card.target
            assert runner.infer(IMAGES).shape == (32, 3)


def test_an_engine_that_gains_nothing_is_left_out_and_fp32_kept(
    folder: Path, conversion: Conversion, recipe: Recipe, pays: dict[str, bool]
) -> None:
    made = make_engines(
        folder, ["onnxruntime-cpu-fp16", "onnxruntime-cpu-int8"], conversion, recipe
    )
    assert [card.target for card in made.cards] == ["onnxruntime-cpu", "onnxruntime-cpu-int8"]
    (left,) = made.left_out
    assert (left.target, left.kept) == ("onnxruntime-cpu-fp16", "onnxruntime-cpu")
    assert left.choice.engine.median_us > left.choice.fp32.median_us
    assert not (folder / "engines" / "onnxruntime-cpu-fp16").exists()


def test_unless_it_is_asked_for(
    folder: Path, conversion: Conversion, recipe: Recipe, pays: dict[str, bool]
) -> None:
    kept = replace(recipe, keep_slower=True)
    made = make_engines(folder, ["onnxruntime-cpu-fp16"], conversion, kept)
    (card,) = made.cards
    assert card.target == "onnxruntime-cpu-fp16"
    assert card.choice is not None
    assert not card.choice.pays
    assert made.left_out == ()


def test_quantized_networks_keep_their_head_in_float(conversion: Conversion) -> None:
    for target in ("onnxruntime-cpu-int8", "tensorrt-int8"):
        graph = onnx.load_model_from_string(conversion(target).content).graph
        makers = {name: node for node in graph.node for name in node.output}
        head = makers["logits"]
        assert head.op_type == "Gemm"
        assert head.input[1] not in makers


def test_fp32_is_the_portable_model_itself(conversion: Conversion, portable: bytes) -> None:
    for target in ("onnxruntime-cpu", "openvino-cpu", "openvino-cpu-bf16", "tensorrt-fp32"):
        assert conversion(target).content == portable
        assert conversion(target).calibration is None


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.full_like(IMAGES, 0.5), "are 0.5 everywhere"),
        (np.repeat(IMAGES[:1], 32, axis=0), "are the same image"),
    ],
)
def test_a_constant_calibration_set_is_refused(
    images: NDArray[np.float32], says: str, portable: bytes
) -> None:
    with pytest.raises(DataError, match=says):
        Conversion(portable, lambda: (images, RECORD))("onnxruntime-cpu-int8")


def test_a_target_of_no_use_is_refused_before_anything_is_made(
    folder: Path, conversion: Conversion, recipe: Recipe
) -> None:
    with pytest.raises(TargetError):
        make_engines(folder, ["onnxruntime-cpu", "torch-cpu"], conversion, recipe)
    assert engine_cards(folder) == ()


def test_parity_is_judged_by_the_precision(
    folder: Path,
    conversion: Conversion,
    recipe: Recipe,
    pays: dict[str, bool],
    expected: NDArray[np.float32],
    portable: bytes,
) -> None:
    verify = VerifySettings()
    assert model_parity(portable, IMAGES, expected, verify).max_abs_diff == 0.0
    with pytest.raises(ExportError, match="differ from PyTorch's by up to"):
        model_parity(portable, IMAGES, expected + 0.01, verify)
    made = make_engines(folder, ["onnxruntime-cpu", "onnxruntime-cpu-int8"], conversion, recipe)
    fp32, int8 = (engine_parity(folder, card, IMAGES, expected, verify) for card in made.cards)
    assert fp32.relative_l2 is not None
    assert int8.relative_l2 is not None
    assert fp32.relative_l2 < 1e-6 < int8.relative_l2
    tight = replace(verify, tolerances=replace(verify.tolerances, max_abs_diff=1e-7))
    with pytest.raises(ExportError, match=r"onnxruntime-cpu-int8 differ from PyTorch's by up to"):
        engine_parity(folder, made.cards[1], IMAGES, expected, tight)
    with pytest.raises(ExportError, match="differ from PyTorch's by up to"):
        engine_parity(folder, made.cards[1], IMAGES, expected + 10, verify)


def test_an_engine_that_gives_no_numbers_is_refused(
    folder: Path, recipe: Recipe, portable: bytes, expected: NDArray[np.float32]
) -> None:
    model = onnx.load_model_from_string(portable)
    bias = next(each for each in model.graph.initializer if list(each.dims) == [3])
    bias.CopyFrom(numpy_helper.from_array(np.full(3, np.inf, np.float32), bias.name))
    broken = model.SerializeToString()
    (folder / "model.onnx").write_bytes(broken)
    conversion = Conversion(broken, lambda: (IMAGES, RECORD))
    (card,) = make_engines(folder, ["onnxruntime-cpu"], conversion, recipe).cards
    with pytest.raises(ExportError, match="NaN or infinity for 32 of 32 validation images"):
        engine_parity(folder, card, IMAGES, expected, VerifySettings())


@pytest.mark.tensorrt
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("target", ["tensorrt-fp32", "tensorrt-fp16", "tensorrt-int8"])
def test_plans_are_built_ahead_of_time_where_there_is_no_gpu(
    target: str,
    folder: Path,
    conversion: Conversion,
    recipe: Recipe,
    expected: NDArray[np.float32],
) -> None:
    try:
        rtx = is_rtx(trt_module())
    except (MissingDependencyError, TargetError) as error:
        pytest.skip(str(error))
    if not rtx or check_buildable(target):
        pytest.skip("only TensorRT for RTX, without a GPU, builds ahead of time")
    named = replace(recipe, compute_capabilities=("8.6", "8.9"))
    (card,) = make_engines(folder, [target], conversion, named).cards
    assert card.device is None
    assert card.choice is None
    assert card.compute_capabilities == ("8.6", "8.9")
    assert card.plan_sha256 == sha256_of_file(folder / card.plan)
    assert card.batches == recipe.batches
    assert set(card.packages) >= {"tensorrt_rtx"}
    parity = engine_parity(folder, card, IMAGES, expected, VerifySettings())
    assert parity.agreement > 0.9
    with pytest.raises(TargetError, match="cannot be used here"):
        open_runner(folder, card)
