from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from hwnas.core.errors import ExportError
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import ChannelSpec, StageSpec
from hwnas_export.onnx_chain import chained
from hwnas_export.onnx_export import INPUT_NAME, OUTPUT_NAME, onnx_from_module, onnx_from_modules
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_profilers.workload import Chain

Images = NDArray[np.float32]

SPACE = ChannelSpace(
    ChannelSpec(
        name="tiny",
        image_shape=(3, 8, 8),
        classes=4,
        stem=4,
        stem_stride=2,
        stages=(StageSpec(blocks=2, widths=(6, 4)),),
    )
)


def run(model: onnx.ModelProto, images: Images) -> Images:
    with OnnxRuntimeRunner(model.SerializeToString()) as runner:
        return runner.infer(images)


def op_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def weight_shapes(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    """Return the shapes of all convolutions' and classifiers' weights, in order."""
    shapes = {each.name: tuple(each.dims) for each in model.graph.initializer}
    return [shapes[node.input[1]] for node in model.graph.node if node.op_type in ("Conv", "Gemm")]


@pytest.fixture(scope="module")
def parts() -> list[onnx.ModelProto]:
    """The operators of a small network, exported one by one, with weights of their own."""
    torch.manual_seed(0)
    workload = SPACE.workload(SPACE.genotype((4, 6)))
    assert isinstance(workload, Chain)
    modules = [part.build() for part in workload.parts]
    return list(onnx_from_modules(modules, [part.input_shape for part in workload.parts]))


@pytest.fixture(scope="module")
def images() -> Images:
    return np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)


def test_a_chain_computes_what_its_parts_do_one_after_the_other(
    parts: list[onnx.ModelProto], images: Images
) -> None:
    value = images
    for part in parts:
        value = run(part, value)
    chain = chained(parts)
    onnx.checker.check_model(chain, full_check=True)
    assert [end.name for end in (*chain.graph.input, *chain.graph.output)] == [
        INPUT_NAME,
        OUTPUT_NAME,
    ]
    outputs = run(chain, images)
    assert outputs.shape == (1, 4)
    np.testing.assert_allclose(outputs, value, rtol=1e-5, atol=1e-6)


def test_a_chain_has_the_nodes_of_the_network_exported_as_a_whole(
    parts: list[onnx.ModelProto],
) -> None:
    whole = onnx_from_module(SPACE.network(SPACE.genotype((4, 6))).eval(), (1, 3, 8, 8))
    assert op_types(chained(parts)) == op_types(whole)
    assert weight_shapes(chained(parts)) == weight_shapes(whole)


def test_the_parts_are_left_as_they_were(parts: list[onnx.ModelProto]) -> None:
    before = [part.SerializeToString(deterministic=True) for part in parts]
    chained(parts)
    assert [part.SerializeToString(deterministic=True) for part in parts] == before


def test_a_part_may_follow_itself(images: Images) -> None:
    torch.manual_seed(0)
    part = onnx_from_module(nn.Conv2d(3, 3, 1), (1, 3, 8, 8))
    twice = chained([part, part, part])
    onnx.checker.check_model(twice, full_check=True)
    np.testing.assert_allclose(
        run(twice, images), run(part, run(part, run(part, images))), atol=1e-5
    )


def test_one_part_is_a_chain(parts: list[onnx.ModelProto], images: Images) -> None:
    np.testing.assert_array_equal(run(chained(parts[:1]), images), run(parts[0], images))


def test_parts_that_do_not_fit_are_refused(parts: list[onnx.ModelProto]) -> None:
    with pytest.raises(ExportError, match=r"part 1 of a chain gives \(1, 4, 4, 4\).* takes"):
        chained([parts[0], parts[0]])
    with pytest.raises(ExportError, match=r"part 2 of a chain gives \(1, 4\)"):
        chained([*parts[-2:], parts[0]])


def tiny_model(
    *nodes: onnx.NodeProto, inputs: int = 1, outputs: tuple[str, ...] = ("b",), opset: int = 20
) -> onnx.ModelProto:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, 8, 8))

    graph = helper.make_graph(
        nodes or [helper.make_node("Relu", ["a"], ["b"])],
        "tiny",
        [value(name) for name in "axyz"[:inputs]],
        [value(name) for name in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_parts_of_unequal_opsets_are_refused() -> None:
    with pytest.raises(ExportError, match="parts 1 and 2 of a chain are of unequal opsets"):
        chained([tiny_model(), tiny_model(opset=18)])


def test_an_input_that_is_not_given_stays_so(images: Images) -> None:
    # Clip without its lower bound.
    limit = helper.make_node(
        "Constant", [], ["limit"], value=helper.make_tensor("", TensorProto.FLOAT, (), [0.5])
    )
    model = tiny_model(limit, helper.make_node("Clip", ["a", "", "limit"], ["b"]))
    np.testing.assert_array_equal(
        run(chained([model, tiny_model()]), images), np.clip(images, 0, 0.5)
    )


def with_control_flow() -> onnx.ModelProto:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["c"])],
        "branch",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, (1, 3, 8, 8))],
    )
    always = helper.make_tensor("", TensorProto.BOOL, (), [True])
    return tiny_model(
        helper.make_node("Constant", [], ["always"], value=always),
        helper.make_node("If", ["always"], ["b"], then_branch=branch, else_branch=branch),
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_control_flow(), "control flow"),
        (tiny_model(inputs=2), "2 inputs and 1 outputs"),
        (tiny_model(outputs=("b", "a")), "1 inputs and 2 outputs"),
        (tiny_model(outputs=("a",)), "computes nothing"),
    ],
)
def test_what_is_no_plain_graph_from_one_end_to_the_other_is_refused(
    model: onnx.ModelProto, message: str
) -> None:
    with pytest.raises(ExportError, match=f"part 2 of a chain .*{message}"):
        chained([tiny_model(), model])
