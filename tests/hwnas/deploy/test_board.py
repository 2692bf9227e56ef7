from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hwnas.core.artifacts import sha256_of
from hwnas.core.decoding import encode_json
from hwnas.core.environment import this_device
from hwnas.core.errors import ArtifactError, TargetError
from hwnas.deploy.board import files_to_keep, model_for, speed_on_board
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_profilers.remote_runner import RemoteRunner
from hwnas_profilers.targets import parse_target
from hwnas_profilers.timing import RoundLog, TimingSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hwnas.deploy.records import EngineCard

    NewCard = Callable[..., EngineCard]

CPU = parse_target("ssh://pi@board/onnxruntime-cpu")
INT8 = parse_target("ssh://pi@board/onnxruntime-cpu-int8")
FP16 = parse_target("ssh://nano@jetson/tensorrt-fp16")
IMAGES = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)


@pytest.fixture
def bundle(tmp_path: Path, portable: bytes) -> Path:
    (tmp_path / "model.onnx").write_bytes(portable)
    return tmp_path


def write(bundle: Path, card: EngineCard, model: bytes = b"") -> None:
    place = bundle / "engines" / card.target
    place.mkdir(parents=True)
    (place / "engine.json").write_bytes(encode_json(card))
    if model:
        (bundle / card.model).write_bytes(model)


def test_an_engine_of_the_bundle_is_taken_without_what_was_built_elsewhere(
    bundle: Path, new_card: NewCard
) -> None:
    model = "engines/onnxruntime-cpu-int8/model.onnx"
    card = new_card(
        target=INT8.name, precision="int8", model=model, model_sha256=sha256_of(b"quantized"),
        session={"spinning": "off"}, packages={"onnxruntime": "1"}, device=this_device(), threads=3,
    )  # fmt: skip
    write(bundle, card, b"quantized")
    found, content = model_for(bundle, INT8, new_card())
    assert content == b"quantized"
    assert (found.target, found.precision, found.model) == (INT8.name, "int8", model)
    assert (found.threads, found.session, found.packages, found.device) == (3, {}, {}, None)


def test_precisions_that_follow_from_the_portable_model_need_no_engine(
    bundle: Path, new_card: NewCard, portable: bytes
) -> None:
    assert model_for(bundle, CPU, new_card()) == (new_card(), portable)
    card, half = model_for(bundle, FP16, new_card())
    assert (card.target, card.precision) == ("tensorrt-fp16", "fp16")
    assert card.model == "engines/tensorrt-fp16/model.onnx"
    assert card.model_sha256 == sha256_of(half) != card.source_sha256 == sha256_of(portable)
    with OnnxRuntimeRunner(half) as found, OnnxRuntimeRunner(portable) as exact:
        given, expected = found.infer(IMAGES), exact.infer(IMAGES)
    assert not np.array_equal(given, expected)
    assert np.allclose(given, expected, atol=1e-2)


def test_int8_is_exported_and_not_guessed(bundle: Path, new_card: NewCard) -> None:
    with pytest.raises(TargetError, match="no engine for target") as caught:
        model_for(bundle, INT8, new_card())
    assert "hwnas export --targets onnxruntime-cpu-int8" in caught.value.hint


@pytest.mark.parametrize("content", [b"other", None])
def test_a_model_that_is_not_the_sidecars_is_refused(
    content: bytes | None, bundle: Path, new_card: NewCard
) -> None:
    (bundle / "model.onnx").unlink()
    if content is not None:
        (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        model_for(bundle, CPU, new_card())


def test_what_is_kept_lists_its_hashes_and_runs_where_it_can(new_card: NewCard) -> None:
    files = files_to_keep(new_card(), b"model")
    lines = [line.split("  ") for line in files["SHA256SUMS"].decode().splitlines()]
    listed = {name: digest for digest, name in lines}
    others = {name: content for name, content in files.items() if name != "SHA256SUMS"}
    assert listed == {name: sha256_of(content) for name, content in others.items()}
    assert set(others) == {"model.onnx", "run.py", "engines/onnxruntime-cpu/engine.json"}
    sidecar = json.loads(files["engines/onnxruntime-cpu/engine.json"])
    assert sidecar["model"] == "model.onnx"
    assert "run.py" not in files_to_keep(new_card(target="tensorrt-fp32"), b"model")


@pytest.mark.usefixtures("shell_for_ssh")
def test_speed_is_measured_on_the_board(portable: bytes) -> None:
    settings = TimingSettings(relative_width=0.5, min_samples=20, max_samples=30, max_disturbed=0)
    log = RoundLog()
    with RemoteRunner(CPU, portable) as runner:
        speed = speed_on_board(runner, settings, batch=1, batches=[32, 1], log=log)
    assert speed.target == str(CPU)
    assert speed.latency.n >= 20
    assert 100 <= speed.tail.n <= 1000
    assert speed.tail.median_us <= speed.tail.p99_us <= speed.tail.max_us
    assert [each.batch for each in speed.throughput] == [1, 32]
    for each in speed.throughput:
        assert each.low <= each.images_per_s <= each.high
        assert each.images_per_s == pytest.approx(1e6 * each.batch / each.call.median_us)
    assert log.kept > 0
