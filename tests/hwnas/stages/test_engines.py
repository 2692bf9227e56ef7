"""Which engine of a bundle is its main one, and engines in short."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hwnas.core.artifacts import sha256_of
from hwnas.core.decoding import encode_json
from hwnas.deploy.records import EngineCard, LatencyChoice
from hwnas.stages.engines import exported_parity, main_target, summaries_of
from hwnas_profilers.records import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.stages.bundle import ModelCard

US = Statistics(
    n=60, median_us=2.0, low_us=1.9, high_us=2.1, min_us=1.8, p10_us=1.9, p90_us=2.2
)  # fmt: skip


def card(target: str, **given: object) -> EngineCard:
    fields: dict[str, object] = {
        "target": target,
        "precision": "fp32",
        "model": "model.onnx",
        "model_sha256": sha256_of(b"model"),
        "source_sha256": sha256_of(b"model"),
        "class_names": ("a", "b"),
        "image_shape": (1, 8, 8),
        "pixel_range": (0.0, 1.0),
    }
    return EngineCard(**fields | given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("searched_for", "there", "main"),
    [
        ("onnxruntime-cpu", ["openvino-cpu", "onnxruntime-cpu"], "onnxruntime-cpu"),
        ("onnxruntime-cpu-int8", ["openvino-cpu", "onnxruntime-cpu-int8"], "onnxruntime-cpu-int8"),
        ("onnxruntime-cpu-int8", ["openvino-cpu", "onnxruntime-cpu"], "onnxruntime-cpu"),
        ("onnxruntime-cpu", ["openvino-cpu", "tensorrt-fp16"], "openvino-cpu"),
    ],
)
def test_the_main_engine_is_that_of_the_search_or_the_one_in_its_place(
    searched_for: str, there: list[str], main: str
) -> None:
    assert main_target(searched_for, [card(target) for target in there]) == main


def test_engines_in_short(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"model")
    choice = LatencyChoice(batch=1, engine=US, fp32=US, pays=False)
    for each in (
        card("onnxruntime-cpu", session={"memory_pattern": "off", "memory_arena": "off"}),
        card("openvino-cpu-bf16", choice=choice),
    ):
        folder = tmp_path / "engines" / each.target
        folder.mkdir(parents=True)
        (folder / "engine.json").write_bytes(encode_json(each))

    class Card:
        left_out = ()

    model_card: ModelCard = Card()  # type: ignore[assignment]  # nothing else of it is read
    engines, slower = summaries_of(tmp_path, model_card)
    assert slower == ()
    fp32, bf16 = engines
    assert fp32.session == "memory_arena off, memory_pattern off"
    assert (fp32.latency_us, fp32.size_bytes) == (None, 5)
    assert (bf16.latency_us, bf16.fp32_us) == (2.0, 2.0)
    assert exported_parity(tmp_path, "onnxruntime-cpu") is None
