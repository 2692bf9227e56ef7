"""A small network's portable model, and the sidecar of an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from hwnas.core.artifacts import sha256_of
from hwnas.deploy.making import Recipe
from hwnas.deploy.records import EngineCard
from hwnas_export.onnx_export import onnx_from_module

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="session")
def portable() -> bytes:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
        module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 3))
        return bytes(onnx_from_module(module, (1, 1, 8, 8), dynamic_batch=True).SerializeToString())


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        threads=1,
        batch=1,
        batches=(1, 2, 4),
        class_names=CLASSES,
        image_shape=(1, 8, 8),
        pixel_range=(0.0, 1.0),
    )


@pytest.fixture
def new_card(portable: bytes) -> Callable[..., EngineCard]:
    """Make a sidecar of the portable model; others of its fields may be given."""

    def make(**given: Any) -> EngineCard:
        digest = sha256_of(portable)
        usual: dict[str, Any] = {
            "target": "onnxruntime-cpu",
            "precision": "fp32",
            "model": "model.onnx",
            "model_sha256": digest,
            "source_sha256": digest,
            "class_names": CLASSES,
            "image_shape": (1, 8, 8),
            "pixel_range": (0.0, 1.0),
        }
        return EngineCard(**(usual | given))

    return make
