"""A small bundle's folder: one model, its sidecar, and what else stands in a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from hwnas.core.artifacts import sha256_of
from hwnas.core.decoding import encode_json
from hwnas.core.environment import package_version
from hwnas.deploy.records import EngineCard
from hwnas_export.onnx_export import onnx_from_module

if TYPE_CHECKING:
    from pathlib import Path

IMAGE_SHAPE = (1, 8, 8)
CLASS_NAMES = ("cat", 'a "quoted"\nname', "dog")


@dataclass(frozen=True, kw_only=True)
class SmallBundle:
    """A folder with `model.onnx` and the sidecar of its engine, and the network itself."""

    folder: Path
    card: EngineCard
    twin: nn.Module
    model: bytes

    def write(self, card: EngineCard) -> EngineCard:
        """Write another sidecar."""
        place = self.folder / "engines" / card.target
        place.mkdir(parents=True, exist_ok=True)
        (place / "engine.json").write_bytes(encode_json(card, indent=2))
        return card


@pytest.fixture(scope="session")
def small_twin() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(),
            nn.Linear(24, len(CLASS_NAMES)),
        ).eval()  # fmt: skip


@pytest.fixture(scope="session")
def small_model(small_twin: nn.Module) -> bytes:
    model = onnx_from_module(small_twin, (1, *IMAGE_SHAPE), dynamic_batch=True)
    return bytes(model.SerializeToString())


@pytest.fixture
def small_bundle(tmp_path: Path, small_twin: nn.Module, small_model: bytes) -> SmallBundle:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(small_model)
    (folder / "genotype.json").write_text("{}")
    card = EngineCard(
        target="onnxruntime-cpu",
        precision="fp32",
        model="model.onnx",
        model_sha256=sha256_of(small_model),
        source_sha256=sha256_of(small_model),
        packages={"onnxruntime": package_version("onnxruntime"), "absent_package": "1.0+cpu"},
        class_names=CLASS_NAMES,
        image_shape=IMAGE_SHAPE,
        pixel_range=(0.0, 1.0),
    )
    bundle = SmallBundle(folder=folder, card=card, twin=small_twin, model=small_model)
    bundle.write(card)
    return bundle
