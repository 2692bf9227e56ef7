from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from hwnas.core.errors import ExportError
from hwnas_export.onnx_export import (
    INPUT_NAME,
    OPSET,
    OUTPUT_NAME,
    check_onnx,
    onnx_from_module,
    onnx_from_modules,
)
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner


def block(width: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())


def run(
    model: onnx.ModelProto, images: torch.Tensor
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with OnnxRuntimeRunner(model.SerializeToString()) as runner:
        return runner.infer(images.numpy())


class Branching(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.sum() > 0 else -images


class WithoutOnnx(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        real: torch.Tensor = torch.linalg.eigvals(images).real
        return real


def test_a_model_is_whole_and_names_nothing_of_this_machine() -> None:
    module = block(4).train()
    model = onnx_from_module(module, (1, 3, 8, 8))
    assert module.training
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET}
    assert [value.name for value in model.graph.input] == [INPUT_NAME]
    assert [value.name for value in model.graph.output] == [OUTPUT_NAME]
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu"]  # batch norm is folded
    text = model.SerializeToString()
    for trace in (b".py", b"/home", b"/work", b"stack_trace", b"torch."):
        assert trace not in text
    assert not any(initializer.external_data for initializer in model.graph.initializer)


def test_the_batch_is_open_only_where_asked_for() -> None:
    sizes = {
        dynamic: onnx_from_module(block(4), (1, 3, 8, 8), dynamic_batch=dynamic)
        .graph.input[0]
        .type.tensor_type.shape.dim[0]
        for dynamic in (False, True)
    }
    assert sizes[False].dim_value == 1
    assert sizes[True].dim_param == "batch"


def test_many_at_once_are_the_same_as_one_each() -> None:
    modules: list[nn.Module] = [block(4, 1), block(6, 2), nn.Identity(), block(4, 3)]
    shapes = [(1, 3, 8, 8), (2, 3, 6, 6), (1, 3, 8, 8), (1, 3, 8, 8)]
    together = onnx_from_modules(modules, shapes)
    assert len(together) == len(modules)
    generator = torch.Generator().manual_seed(0)
    for module, shape, model in zip(modules, shapes, together, strict=True):
        images = torch.rand(*shape, generator=generator)
        with torch.no_grad():
            expected = module.eval()(images).numpy()
        alone = run(onnx_from_module(module, shape), images)
        np.testing.assert_array_equal(run(model, images), alone)
        np.testing.assert_allclose(alone, expected, atol=1e-5)
        inner = {value.name for value in model.graph.value_info}
        assert not any(name.startswith(("images_", "logits_")) for name in inner)


def test_modules_exported_together_carry_only_their_own_weights() -> None:
    small, large = onnx_from_modules([block(4), block(64)], [(1, 3, 8, 8)] * 2)
    assert small.ByteSize() < large.ByteSize() / 4


@pytest.mark.parametrize("module", [Branching(), WithoutOnnx()], ids=["branching", "no ONNX"])
def test_what_cannot_be_exported_is_one_clear_error(
    module: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=f"{type(module).__name__} cannot be exported") as caught:
        onnx_from_module(module, (1, 3, 8, 8))
    assert "\n" not in caught.value.message
    assert "\x1b" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert module.training
    assert logging.getLogger("torch").level != logging.ERROR


def test_an_exporter_that_gives_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
    with pytest.raises(ExportError, match="gave nothing"):
        onnx_from_module(block(4), (1, 3, 8, 8))


def test_another_opset_is_never_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx_from_module(block(4), (1, 3, 8, 8))
    model.opset_import[0].version = 18
    program = SimpleNamespace(model_proto=model)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)
    with pytest.raises(ExportError, match=r"opsets .*18.* not 20"):
        onnx_from_module(block(4), (1, 3, 8, 8))


def test_a_broken_model_does_not_pass_the_check() -> None:
    model = onnx_from_module(block(4), (1, 3, 8, 8))
    check_onnx(model)

    foreign = onnx.ModelProto.FromString(model.SerializeToString())
    foreign.opset_import.add(domain="com.example", version=1)
    with pytest.raises(ExportError, match=r"com\.example"):
        check_onnx(foreign)

    traced = onnx.ModelProto.FromString(model.SerializeToString())
    traced.graph.node[0].metadata_props.add(key="source", value="/somewhere")
    with pytest.raises(ExportError, match="metadata"):
        check_onnx(traced)

    cut = onnx.ModelProto.FromString(model.SerializeToString())
    cut.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ExportError, match="not valid"):
        check_onnx(cut)
