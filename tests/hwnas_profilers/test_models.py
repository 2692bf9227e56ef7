from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from hwnas.core.errors import ExportError
from hwnas_export import onnx_export
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_profilers import models
from hwnas_profilers.models import OnnxModels
from hwnas_profilers.workload import Operator, OperatorKey, Workload, chain_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

MakeOperator = Callable[[int], Operator]


class Branching(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.sum() > 0 else -images


BAD = Operator(
    name="the bad one",
    build=Branching,
    input_shape=(1, 3, 8, 8),
    key=OperatorKey(kind="bad", in_shape=(3, 8, 8), out_shape=(3, 8, 8)),
)


def relu(side: int) -> Operator:
    """Return an operator that can follow itself."""
    shape = (3, side, side)
    return Operator(
        name=f"relu {side}",
        build=nn.ReLU,
        input_shape=(1, *shape),
        key=OperatorKey(kind="relu", in_shape=shape, out_shape=shape),
    )


@pytest.fixture
def counted_exports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many modules each joined export is of; models are made up, torch takes its time."""
    counts: list[int] = []

    def made_up(
        modules: Sequence[nn.Module], shapes: Sequence[Sequence[int]]
    ) -> list[onnx.ModelProto]:
        counts.append(len(modules))
        found = []
        for shape in shapes:
            ends = [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name in (onnx_export.INPUT_NAME, onnx_export.OUTPUT_NAME)
            ]
            node = helper.make_node("Relu", [ends[0].name], [ends[1].name])
            found.append(helper.make_model(helper.make_graph([node], "relu", ends[:1], ends[1:])))
        return found

    monkeypatch.setattr(onnx_export, "onnx_from_modules", made_up)
    return counts


def op_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_part_is_exported_once_however_many_chains_it_is_in(counted_exports: list[int]) -> None:
    kept = OnnxModels()
    chains = [chain_of([relu(8)] * length) for length in (2, 3, 4)]
    kept.export([*chains, relu(8), relu(4)])
    assert counted_exports == [2]
    for chain in chains:
        assert op_types(kept.model_of(chain)) == ["Relu"] * len(chain.parts)
    kept.export(chains)
    assert counted_exports == [2]


def test_what_is_asked_for_is_exported_where_it_was_not(counted_exports: list[int]) -> None:
    kept = OnnxModels()
    assert op_types(kept.model_of(relu(8))) == ["Relu"]
    kept.export([relu(8), relu(4)])
    assert counted_exports == [1, 1]


def test_a_chain_computes_what_its_modules_do_in_a_row(make_operator: MakeOperator) -> None:
    built: list[nn.Module] = []

    def remembered(operator: Operator) -> Operator:
        module = operator.build()
        built.append(module)
        return Operator(
            name=f"{operator.name} #{len(built)}",
            build=lambda: module,
            input_shape=operator.input_shape,
            key=operator.key,
        )

    torch.manual_seed(1)
    chain = chain_of([remembered(make_operator(width)) for width in (3, 3, 7)])
    images = torch.randn(1, 3, 8, 8)
    with (
        torch.no_grad(),
        OnnxRuntimeRunner(OnnxModels().model_of(chain).SerializeToString()) as runner,
    ):
        expected = nn.Sequential(*built)(images).numpy()
        np.testing.assert_allclose(runner.infer(images.numpy()), expected, atol=1e-5)


def test_many_are_exported_in_chunks(
    counted_exports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_EXPORT_CHUNK", 2)
    OnnxModels().export([relu(side) for side in (4, 5, 6)])
    assert counted_exports == [2, 1]


def test_a_bad_operator_is_named_and_does_not_hurt_the_others(
    make_operator: MakeOperator,
) -> None:
    kept = OnnxModels()
    good = make_operator(4)
    kept.export([good, BAD])
    assert op_types(kept.model_of(good)) == ["Conv", "Relu"]
    for _ in range(2):  # and it is remembered
        with pytest.raises(
            ExportError, match=r"^the bad one: Branching cannot be exported"
        ) as caught:
            kept.model_of(BAD)
        assert "control flow" in caught.value.hint
    with pytest.raises(ExportError) as caught:
        kept.model_of(chain_of([BAD, good]))
    assert caught.value.message.startswith("the bad one: ")


def test_a_failure_that_only_the_joined_export_has_is_survived(
    make_operator: MakeOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(modules: object, shapes: object) -> None:
        raise ExportError("together they fail")

    monkeypatch.setattr(onnx_export, "onnx_from_modules", fail)
    kept = OnnxModels()
    kept.export([make_operator(4), make_operator(5)])
    assert (
        kept.model_of(make_operator(5)).graph.output[0].type.tensor_type.shape.dim[1].dim_value == 5
    )


@pytest.mark.usefixtures("counted_exports")
def test_a_chain_of_parts_that_do_not_fit_is_refused() -> None:
    with pytest.raises(ExportError, match="of a chain gives"):
        OnnxModels().model_of(chain_of([relu(8), relu(4)]))


def test_what_is_kept_is_bounded_and_exported_again_beyond(
    counted_exports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_KEPT_BYTES", 0)
    kept = OnnxModels()
    first, second = relu(8), relu(4)
    kept.export([first])
    kept.export([first])  # all there: nothing is thrown away for nothing
    assert counted_exports == [1]
    kept.export([first, second])
    assert counted_exports == [1, 2]
    assert op_types(kept.model_of(first)) == ["Relu"]
    assert counted_exports == [1, 2]


@pytest.mark.usefixtures("counted_exports")
def test_other_shapes_under_the_same_name_are_other_models() -> None:
    kept = OnnxModels()
    for side in (8, 4):
        workload = Workload(name="relu", build=nn.ReLU, input_shape=(1, 3, side, side))
        shape = kept.model_of(workload).graph.input[0].type.tensor_type.shape
        assert shape.dim[3].dim_value == side


def test_a_model_comes_in_the_precision_asked_for(make_operator: MakeOperator) -> None:
    kept = OnnxModels()
    operator = make_operator(4)
    assert "QuantizeLinear" in op_types(kept.model_of(operator, "int8"))
    assert "Cast" in op_types(kept.model_of(operator, "fp16"))
    assert op_types(kept.model_of(operator, "bf16")) == op_types(kept.model_of(operator))
