from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from hwnas.core.errors import DataError
from hwnas.robustness.evaluate import logits_from_module
from hwnas.verify.asking import asking, reference_logits
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner

if TYPE_CHECKING:
    from tests.hwnas.verify.conftest import Trained


@pytest.mark.parametrize("batch", [None, 16])
def test_threads_give_the_logits_of_one(trained: Trained, batch: int | None) -> None:
    model = onnx_from_module(trained.twin, (batch or 1, 1, 8, 8), dynamic_batch=batch is None)
    wanted = logits_from_module(trained.twin, trained.images, batch=200)
    with OnnxRuntimeRunner(model.SerializeToString()) as engine:
        for workers in (1, 2, 3):
            with asking(engine, batch=50, workers=workers) as predict:
                for count in (1, 7, 33, 200):
                    found = predict(trained.images[:count])
                    np.testing.assert_allclose(found, wanted[:count], atol=1e-4)


def test_a_reference_is_a_module_or_a_function(trained: Trained) -> None:
    def ask(images: np.ndarray) -> np.ndarray:
        return logits_from_module(trained.twin, images, batch=len(images))

    of_module = reference_logits(trained.twin, trained.images, batch=64)
    np.testing.assert_allclose(
        reference_logits(ask, trained.images, batch=64), of_module, atol=1e-5
    )
    with pytest.raises(DataError, match="instead of logits"):
        reference_logits(lambda images: images, trained.images, batch=64)
