"""Attacks made for the engine: they see what replay and scores do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from hwnas.robustness.evaluate import logits_from_module, predictions_of
from hwnas.robustness.pgd import attack_in_batches
from hwnas.robustness.square import square
from hwnas.verify.adaptive import Attacked, attack_adaptively
from hwnas.verify.engine_gates import adaptive_gates
from hwnas.verify.substitute import substitute_for, through
from hwnas.verify.tolerances import Tolerances
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.precision import onnx_in_precision
from tests.hwnas.verify.test_masking import Staircase

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import nn

    from hwnas.verify.records import Adaptive
    from tests.hwnas.verify.conftest import Trained

    Logits = NDArray[np.float32]


def attacked(
    trained: Trained, twin: nn.Module, change: Callable[[Logits], Logits], *, steps: int = 20
) -> Adaptive:
    """Attack an engine that gives the twin's logits after a change."""
    images, labels, threat = trained.images[:100], trained.labels[:100], trained.threat

    def engine(part: NDArray[np.float32]) -> Logits:
        return change(logits_from_module(twin, part, batch=100))

    points = attack_in_batches(
        twin, images, labels, threat, batch=100, seed=0, stop_when_broken=False
    )
    by_scores = square(engine, images, labels, eps=threat.eps_pixels, queries=100, seed=0)
    found = Attacked(
        images=images,
        labels=labels,
        engine_logits=engine(images),
        twin_right=predictions_of(logits_from_module(twin, points, batch=100)) == labels,
        replay_right=predictions_of(engine(points)) == labels,
        square_right=~by_scores.broken,
    )
    return attack_adaptively(
        twin, engine, found, threat, model=None, precision="fp32", steps=steps, batch=64, seed=0
    )


def failed(found: Adaptive) -> set[str]:
    return {gate.name for gate in adaptive_gates(found, Tolerances()) if not gate.passed}


def test_a_sound_engine_is_as_robust_as_its_twin(trained: Trained) -> None:
    found = attacked(trained, trained.twin, lambda logits: logits)
    assert failed(found) == set()
    assert found.worst_case.correct <= found.adaptive.correct <= found.replay.correct
    assert found.replay.correct <= found.clean.correct
    assert abs(found.adaptive.correct - found.twin.correct) <= 1


def test_coarse_scores_blind_square_and_not_the_attack_by_gradients(trained: Trained) -> None:
    def coarse(logits: Logits) -> Logits:
        steps: Logits = np.round(logits / 3)
        return 3 * steps

    found = attacked(trained, trained.twin, coarse)
    assert found.square.correct > found.adaptive.correct
    assert found.adaptive.correct <= found.twin.correct + 2


def test_an_engine_whose_twin_masks_its_gradients_is_found_out(trained: Trained) -> None:
    found = attacked(trained, Staircase(trained.twin), lambda logits: logits)
    assert "square_gap" in failed(found)
    assert found.square_alone > 0.05


def test_an_engine_has_its_own_logits_and_the_modules_gradients(trained: Trained) -> None:
    images = torch.from_numpy(trained.images[:4]).requires_grad_()

    def engine(part: NDArray[np.float32]) -> Logits:
        return np.round(logits_from_module(trained.twin, part, batch=4))

    forward = through(engine, trained.twin, device=torch.device("cpu"))
    logits = forward(images)
    np.testing.assert_array_equal(logits.detach().numpy(), engine(trained.images[:4]))
    (own,) = torch.autograd.grad(logits[:, 3].sum(), images)
    (twins,) = torch.autograd.grad(trained.twin(images)[:, 3].sum(), images)
    torch.testing.assert_close(own, twins)
    with torch.no_grad():
        assert not forward(images).requires_grad


def test_what_cannot_be_converted_is_attacked_by_its_twin_and_says_so(
    trained: Trained, quantized: onnx.ModelProto
) -> None:
    odd = onnx.ModelProto()
    odd.CopyFrom(quantized)
    result = odd.graph.output[0].name
    for node in odd.graph.node:
        node.output[:] = ["plain" if name == result else name for name in node.output]
    odd.graph.node.extend(
        [
            helper.make_node("Sin", ["plain"], ["wave"], name="wave"),
            helper.make_node("Add", ["plain", "wave"], [result]),
        ]
    )
    content = odd.SerializeToString()
    images = trained.images[:50]
    with OnnxRuntimeRunner(content) as engine:
        logits = engine.infer(images)
    for wanted, model_bytes in (("`wave`", content), ("not known", None)):
        chosen = substitute_for(trained.twin, model_bytes, "int8", images, logits, batch=50)
        assert chosen.module is trained.twin
        assert wanted in chosen.note


def test_another_engines_fake_quantization_is_not_believed(
    trained: Trained, model: onnx.ModelProto
) -> None:
    logits = logits_from_module(trained.twin, trained.images, batch=100)
    other = onnx_in_precision(model, "int8", calibration=trained.calibration * 0.1)
    chosen = substitute_for(
        trained.twin, other.SerializeToString(), "int8", trained.images, logits, batch=100
    )
    assert chosen.gradients == "the PyTorch twin"
    assert "further from the engine" in chosen.note


@pytest.mark.parametrize("steps", [1, 7])
def test_few_steps_will_do(trained: Trained, steps: int) -> None:
    assert attacked(trained, trained.twin, lambda logits: logits, steps=steps).steps == steps
