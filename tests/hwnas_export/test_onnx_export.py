from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import hwnas
from hwnas.core.errors import ExportError
from hwnas_export.onnx_export import (
    INPUT_NAME,
    OPSET,
    OPSETS,
    OUTPUT_NAME,
    check_onnx,
    onnx_from_module,
    onnx_from_modules,
)
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner

CHECKOUT = Path(hwnas.__file__).parents[1]
TRACES = (b".py", b"stack_trace", b"torch.", str(CHECKOUT).encode(), str(Path.home()).encode())
"""What would name this machine, or the code that the model was exported from."""


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


class Counting(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for _ in range(int(images.sum())):
            images = images + 1
        return images


class Failing(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise ValueError("its own words\nand more of them")


class SmallBatches(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.shape[0] <= 3 else -images


class AllButFive(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.shape[0] != 5 else -images


class AllButOne(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.shape[0] != 1 else -images


class FirstChannels(nn.Module):
    """Flattening what is not contiguous asks whether the batch is 1, and does the same then."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :2].flatten(1)


class Pairs(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(2, -1)


class Chosen(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[images > 0]


class BatchLast(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).t()


class TwoOutputs(nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images + 1, images


class BothWays(nn.Module):
    """Control flow that ONNX can hold: two graphs within the graph."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        chosen: torch.Tensor = torch.cond(
            images.sum() > 0, lambda given: given + 1, lambda given: given - 1, (images,)
        )
        return chosen


def inside(part: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), part))


def test_a_model_is_whole_and_names_nothing_of_this_machine() -> None:
    module = block(4).train()
    model = onnx_from_module(module, (1, 3, 8, 8))
    assert module.training
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET}
    assert [value.name for value in model.graph.input] == [INPUT_NAME]
    assert [value.name for value in model.graph.output] == [OUTPUT_NAME]
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu"]  # batch norm is folded
    text = model.SerializeToString()
    for trace in TRACES:
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


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Branching(), "depends on the values of its data"),
        (Counting(), "depends on the values of its data"),
        (WithoutOnnx(), r"nothing in ONNX for the operator aten\.linalg_eig"),
        (Failing(), "its own words"),
        (nn.Conv2d(4, 4, 1), "expected input.* to have 4 channels, but got 3"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_exported_is_one_clear_error(
    part: nn.Module, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    kind = type(part).__name__
    for module, where in ((part, ""), (inside(part), rf", for its part `1\.1` \({kind}\)")):
        module.train()
        whole = f"^{type(module).__name__} cannot be exported to ONNX{where}: .*{reason}"
        with pytest.raises(ExportError, match=whole) as caught:
            onnx_from_module(module, (1, 3, 8, 8))
        assert "\n" not in caught.value.message
        assert caught.value.hint
        assert "\x1b" not in str(caught.value)
        assert module.training
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch").level != logging.ERROR


def test_a_batch_of_one_that_is_computed_alike_is_no_other_path() -> None:
    module = FirstChannels()
    model = onnx_from_module(module, (1, 3, 8, 8), dynamic_batch=True)
    for batch in (1, 2, 5):
        images = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
        np.testing.assert_allclose(run(model, images), module(images).detach().numpy(), atol=1e-5)
    with pytest.raises(ExportError, match="something else for a batch of 1"):
        onnx_from_module(AllButOne(), (1, 3, 8, 8), dynamic_batch=True)


@pytest.mark.parametrize(
    ("module", "condition"),
    [
        (SmallBatches(), "batch <= 3"),
        (AllButFive(), "batch != 5"),
        (Pairs(), r"\(\(27\*batch\) % 2\) == 0"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_an_open_batch_is_never_narrowed_in_silence(module: nn.Module, condition: str) -> None:
    with pytest.raises(ExportError, match=f"every batch only while {condition}") as caught:
        onnx_from_module(module, (1, 3, 3, 3), dynamic_batch=True)
    assert "fixed batch" in caught.value.hint
    onnx_from_module(module, (2, 3, 3, 3))  # one batch is one path


@pytest.mark.parametrize(
    ("module", "dynamic", "words"),
    [
        (Chosen(), False, "gives an output of shape u0"),
        (Chosen(), True, "gives an output of shape u0"),
        (BatchLast(), True, "gives an output of shape 27xbatch"),
        (TwoOutputs(), True, "gives 2 outputs, not 1"),
        (TwoOutputs(), False, "gives 2 outputs, not 1"),
    ],
)
def test_an_output_that_no_runner_could_carry_is_refused(
    module: nn.Module, dynamic: bool, words: str
) -> None:
    with pytest.raises(ExportError, match=f"{type(module).__name__} {words}"):
        onnx_from_module(module, (2, 3, 3, 3), dynamic_batch=dynamic)


def test_outputs_of_modules_side_by_side_are_not_mixed_up() -> None:
    with pytest.raises(ExportError, match="gives 3 outputs, not 2"):
        onnx_from_modules([TwoOutputs(), nn.ReLU()], [(1, 3, 3, 3)] * 2)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_is_the_one_that_was_asked_for(opset: int) -> None:
    module = nn.Sequential(block(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    model = onnx_from_module(module, (2, 3, 8, 8), dynamic_batch=True, opset=opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(images).numpy()
    np.testing.assert_allclose(run(model, images), expected, atol=1e-5)
    with pytest.raises(ExportError, match="opsets"):
        check_onnx(model, opset=opset + 1)


@pytest.mark.parametrize("opset", [0, 17, 24, 99])
def test_an_opset_that_is_not_served_is_refused(opset: int) -> None:
    with pytest.raises(ExportError, match=f"opset {opset} is not served") as caught:
        onnx_from_module(block(4), (1, 3, 8, 8), opset=opset)
    assert "18 to 23" in caught.value.hint


def test_graphs_within_the_graph_name_nothing_of_this_machine_either() -> None:
    model = onnx_from_module(BothWays(), (1, 3, 3, 3))
    (choice,) = (node for node in model.graph.node if node.op_type == "If")
    text = model.SerializeToString()
    assert not any(trace in text for trace in TRACES)
    choice.attribute[0].g.node[0].doc_string = "traced"
    with pytest.raises(ExportError, match="source metadata"):
        check_onnx(model)


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
    for part in (traced.graph.node[0], traced.graph, traced.graph.input[0], traced):
        part.metadata_props.add(key="source", value="/somewhere/network.py")
        with pytest.raises(ExportError, match="metadata"):
            check_onnx(traced)
        del part.metadata_props[:]
    check_onnx(traced)

    cut = onnx.ModelProto.FromString(model.SerializeToString())
    cut.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ExportError, match="not valid"):
        check_onnx(cut)
