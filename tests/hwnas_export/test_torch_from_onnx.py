"""Every rule against ONNX Runtime, over the operator sets in which an operator changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hwnas.core.errors import ExportError, InputFileError
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.torch_from_onnx import check_twin, torch_from_onnx
from hwnas_export.torch_from_onnx_ops import RULES

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPE = (2, 3, 7, 6)
GENERATOR_SEED = 0


def model_of(
    *nodes: onnx.NodeProto,
    opset: int = 20,
    shape: tuple[int | str, ...] = SHAPE,
    **constants: NDArray[Any],
) -> onnx.ModelProto:
    """A graph from `x` to `y`, its constants by name."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 19 else 10
    )


def one(operator: str, inputs: str = "x", **attributes: Any) -> onnx.NodeProto:
    """The one node of a graph; `-` leaves an input out."""
    names = [name.replace("-", "") for name in inputs.split()]
    return helper.make_node(operator, names, ["y"], **attributes)


def by_onnxruntime(
    model: onnx.ModelProto, x: NDArray[np.float32], *, optimized: bool = False
) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: x})[0]
    return outputs


def by_torch(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = torch_from_onnx(model)(torch.from_numpy(x)).numpy()
    return found


def drawn(shape: tuple[int, ...] = SHAPE, seed: int = GENERATOR_SEED) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def assert_equal(model: onnx.ModelProto, x: NDArray[np.float32] | None = None) -> None:
    x = drawn() if x is None else x
    expected, found = by_onnxruntime(model, x), by_torch(model, x)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def f32(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def i64(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


ACTIVATIONS: dict[str, dict[str, Any]] = {
    "Relu": {}, "HardSwish": {}, "HardSigmoid": {"alpha": 0.3, "beta": 0.4}, "Sigmoid": {},
    "Tanh": {}, "LeakyRelu": {"alpha": 0.2}, "Elu": {"alpha": 0.7}, "Selu": {}, "Softplus": {},
    "Softsign": {}, "Mish": {}, "Gelu": {}, "Erf": {}, "Abs": {}, "Neg": {}, "Exp": {},
    "Reciprocal": {}, "Floor": {}, "Ceil": {}, "Round": {}, "Sign": {}, "Identity": {},
    "Dropout": {}, "GlobalAveragePool": {}, "GlobalMaxPool": {}, "LRN": {"size": 3},
}  # fmt: skip


@pytest.mark.parametrize("operator", ACTIVATIONS)
def test_operators_of_one_input(operator: str) -> None:
    assert_equal(model_of(one(operator, **ACTIVATIONS[operator])), 3 * drawn())


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("operator", ["Relu", "Sigmoid", "HardSigmoid", "Elu", "Softplus"])
def test_older_and_newer_operator_sets(operator: str, opset: int) -> None:
    assert_equal(model_of(one(operator), opset=opset))


def test_rounding_is_half_to_even() -> None:
    halves = np.arange(-8, 8, 0.5, dtype=np.float32).reshape(1, 1, 4, 8)
    assert_equal(model_of(one("Round"), shape=halves.shape), halves)


def test_gelu_of_both_kinds() -> None:
    assert_equal(model_of(one("Gelu", approximate="tanh")))
    assert_equal(model_of(one("Gelu", approximate="none")))


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Mean"])
@pytest.mark.parametrize("shape", [(), (1,), (6,), (3, 1, 1), SHAPE])
def test_arithmetic_broadcasts(operator: str, shape: tuple[int, ...]) -> None:
    other = np.asarray(drawn(shape, seed=1), dtype=np.float32)
    assert_equal(model_of(one(operator, "x other"), other=other))
    assert_equal(model_of(one(operator, "other x"), other=other))


def test_powers_and_roots() -> None:
    positive = np.abs(drawn()) + np.float32(0.1)
    assert_equal(model_of(one("Pow", "x e"), e=f32(2.0)))
    assert_equal(model_of(one("Pow", "x e"), e=np.array(3, dtype=np.int64)))
    assert_equal(model_of(one("Sqrt")), positive)
    assert_equal(model_of(one("Log")), positive)
    assert_equal(model_of(one("PRelu", "x slope"), slope=drawn((3, 1, 1))))


@pytest.mark.parametrize("opset", [11, 12, 13, 20])
def test_clip(opset: int) -> None:
    low, high = np.float32(-0.3), np.float32(0.4)
    assert_equal(model_of(one("Clip", "x a b"), opset=opset, a=np.array(low), b=np.array(high)))
    assert_equal(model_of(one("Clip", "x a"), opset=opset, a=np.array(low)))
    assert_equal(model_of(one("Clip", "x - b"), opset=opset, b=np.array(high)))
    assert_equal(model_of(one("Clip"), opset=opset))


def test_clip_between_bounds_that_are_computed() -> None:
    low = helper.make_node("ReduceMean", ["x"], ["low"], keepdims=0)
    assert_equal(model_of(low, one("Clip", "x low")))


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [11, 13, 21])
@pytest.mark.parametrize("axis", [None, 1, 2, -1])
def test_softmax_over_one_axis_or_as_it_was(operator: str, opset: int, axis: int | None) -> None:
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    assert_equal(model_of(one(operator, **attributes), opset=opset))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, ...], NDArray[np.float32]]:
    group, each = draw(st.sampled_from([(1, 3), (3, 1), (2, 2)]))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    attributes: dict[str, Any] = {"group": group}
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    attributes["strides"] = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto_pad == "NOTSET":
        attributes["dilations"] = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
        attributes["pads"] = draw(st.tuples(*[st.integers(0, 3)] * 4))
    else:
        attributes["auto_pad"] = auto_pad
    outputs = group * draw(st.integers(1, 2))
    weight = drawn((outputs, each, *kernel), seed=draw(st.integers(0, 99)))
    return attributes, (2, group * each, 9, 8), weight


@settings(max_examples=60)
@given(convolutions(), st.booleans())
def test_convolutions(
    case: tuple[dict[str, Any], tuple[int, ...], NDArray[np.float32]], with_bias: bool
) -> None:
    attributes, shape, weight = case
    constants: dict[str, Any] = {"w": weight}
    if with_bias:
        constants["b"] = drawn((len(weight),), seed=1)
    node = one("Conv", " ".join(["x", *constants]), **attributes)
    assert_equal(model_of(node, shape=shape, **constants), drawn(shape))


@st.composite
def poolings(draw: st.DrawFn) -> dict[str, Any]:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    attributes: dict[str, Any] = {"kernel_shape": kernel}
    attributes["strides"] = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    auto_pad = draw(st.sampled_from(["NOTSET"] * 3 + ["SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto_pad == "NOTSET":
        # A pad is smaller than the kernel, as ONNX Runtime demands.
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]
        attributes["ceil_mode"] = draw(st.integers(0, 1))
    else:
        attributes["auto_pad"] = auto_pad
        # ONNX Runtime pads by less than nothing where a stride is larger than the kernel.
        attributes["strides"] = [
            min(pair) for pair in zip(attributes["strides"], kernel, strict=True)
        ]
    return attributes


@settings(max_examples=80)
@given(poolings(), st.sampled_from([13, 19, 21]))
def test_max_pooling(attributes: dict[str, Any], opset: int) -> None:
    shape = (2, 3, 9, 8)
    assert_equal(model_of(one("MaxPool", **attributes), opset=opset, shape=shape), drawn(shape))


@settings(max_examples=120)
@given(poolings(), st.integers(0, 1), st.sampled_from([13, 19, 21]))
def test_average_pooling(attributes: dict[str, Any], counts_pads: int, opset: int) -> None:
    shape = (2, 3, 9, 8)
    node = one("AveragePool", count_include_pad=counts_pads, **attributes)
    assert_equal(model_of(node, opset=opset, shape=shape), drawn(shape))


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_dilated_pooling(operator: str) -> None:
    node = one(operator, kernel_shape=(2, 3), dilations=(2, 2), strides=(1, 2), pads=(1, 1, 0, 1))
    assert_equal(model_of(node, opset=20, shape=(2, 3, 9, 8)), drawn((2, 3, 9, 8)))


@pytest.mark.parametrize("opset", [13, 14, 15, 21])
def test_normalizations(opset: int) -> None:
    statistics: dict[str, Any] = {
        "s": drawn((3,), 1), "b": drawn((3,), 2), "m": drawn((3,), 3), "v": np.abs(drawn((3,), 4))
    }  # fmt: skip
    node = one("BatchNormalization", "x s b m v", epsilon=1e-3, momentum=0.8)
    assert_equal(model_of(node, opset=opset, **statistics))
    node = one("InstanceNormalization", "x s b", epsilon=1e-3)
    assert_equal(model_of(node, opset=opset, s=statistics["s"], b=statistics["b"]))


def test_layer_normalization() -> None:
    node = one("LayerNormalization", "x s b", axis=2)
    assert_equal(model_of(node, opset=17, s=drawn((7, 6), 1), b=drawn((7, 6), 2)))


@pytest.mark.parametrize("flips", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gemm(flips: tuple[int, int]) -> None:
    flat = helper.make_node("Flatten", ["x"], ["flat"])
    rows = 2 if flips[0] else 126
    weight = drawn((5, rows) if flips[1] else (rows, 5), 1)
    node = one("Gemm", "flat w b", alpha=0.5, beta=2.0, transA=flips[0], transB=flips[1])
    assert_equal(model_of(flat, node, w=weight, b=drawn((5,), 2)))


def test_matmul_broadcasts() -> None:
    assert_equal(model_of(one("MatMul", "x w"), w=drawn((6, 4), 1)))
    assert_equal(model_of(one("MatMul", "x w"), w=drawn((3, 6, 4), 1)))


@pytest.mark.parametrize(
    ("operator", "moved"),
    [("ReduceSum", 13), ("ReduceMean", 18), ("ReduceMax", 18), ("ReduceMin", 18),
     ("ReduceProd", 18), ("ReduceL2", 18)],
)  # fmt: skip
@pytest.mark.parametrize("opset", [11, 13, 18, 21])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions_as_their_axes_moved_to_an_input(
    operator: str, moved: int, opset: int, keep: int
) -> None:
    def reduced(*axes: int) -> onnx.ModelProto:
        if opset < moved:
            attributes: dict[str, Any] = {"axes": axes} if axes else {}
            return model_of(one(operator, keepdims=keep, **attributes), opset=opset)
        if not axes:
            return model_of(one(operator, keepdims=keep), opset=opset)
        return model_of(one(operator, "x a", keepdims=keep), opset=opset, a=i64(*axes))

    for axes in ((), (1,), (2, 3), (-1, 1)):
        assert_equal(reduced(*axes))


def test_a_reduction_of_no_axes_may_do_nothing() -> None:
    assert_equal(model_of(one("ReduceSum", noop_with_empty_axes=1)))


@pytest.mark.parametrize("opset", [11, 13, 21])
def test_squeeze_and_unsqueeze(opset: int) -> None:
    if opset < 13:
        models = (
            model_of(one("Unsqueeze", axes=[0, -1]), opset=opset),
            model_of(one("Squeeze", axes=[1]), opset=opset, shape=(2, 1, 3, 1)),
        )
    else:
        models = (
            model_of(one("Unsqueeze", "x a"), opset=opset, a=i64(0, -1)),
            model_of(one("Squeeze", "x a"), opset=opset, shape=(2, 1, 3, 1), a=i64(1)),
        )
    assert_equal(models[0])
    assert_equal(models[1], drawn((2, 1, 3, 1)))
    assert_equal(model_of(one("Squeeze"), opset=opset, shape=(2, 1, 3, 1)), drawn((2, 1, 3, 1)))


@pytest.mark.parametrize("axis", [0, 1, 2, 4, -1])
def test_flatten(axis: int) -> None:
    assert_equal(model_of(one("Flatten", axis=axis)))


@pytest.mark.parametrize("sizes", [(2, -1), (0, -1), (0, 0, 42), (3, 2, 7, 6)])
def test_reshape(sizes: tuple[int, ...]) -> None:
    assert_equal(model_of(one("Reshape", "x s"), s=i64(*sizes)))


def test_transpose() -> None:
    assert_equal(model_of(one("Transpose")))
    assert_equal(model_of(one("Transpose", perm=[0, 2, 3, 1])))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int) -> None:
    assert_equal(model_of(one("Concat", "x x c", axis=axis), c=drawn(seed=1)))


@pytest.mark.parametrize(
    ("opset", "given", "attributes"),
    [(11, None, {"split": [2, 4]}), (13, [2, 4], {}), (13, None, {}),
     (18, None, {"num_outputs": 2}), (18, [1, 5], {}), (21, None, {"num_outputs": 2})],
)  # fmt: skip
def test_split(opset: int, given: list[int] | None, attributes: dict[str, Any]) -> None:
    inputs = ["x", "s"] if given else ["x"]
    node = helper.make_node("Split", inputs, ["left", "right"], axis=3, **attributes)
    constants: dict[str, Any] = {"s": i64(*given)} if given else {}
    for half in ("left", "right"):
        assert_equal(model_of(node, one("Relu", half), opset=opset, **constants))


def test_an_uneven_split_has_a_smaller_last_part() -> None:
    node = helper.make_node("Split", ["x"], ["a", "b"], axis=2, num_outputs=2)
    assert_equal(model_of(node, one("Relu", "b"), opset=18))


@settings(max_examples=80)
@given(
    st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([1, 2, 3, -1, -2]), st.sampled_from(
        [2, 3, -1]
    ),
)  # fmt: skip
def test_slices(start: int, end: int, step: int, axis: int) -> None:
    size = SHAPE[axis]
    if not len(range(size)[slice(start, end, step)]):
        return  # ONNX Runtime and torch both give nothing, in whatever shape
    model = model_of(one("Slice", "x s e a t"), s=i64(start), e=i64(end), a=i64(axis), t=i64(step))
    assert_equal(model)


def test_a_slice_backward_to_the_very_first() -> None:
    lowest = np.iinfo(np.int64).min
    model = model_of(one("Slice", "x s e a t"), s=i64(-1), e=i64(lowest), a=i64(3), t=i64(-1))
    assert_equal(model)
    assert_equal(model_of(one("Slice", "x s e"), s=i64(0, 1), e=i64(2, 3)))


@pytest.mark.parametrize("opset", [11, 13, 18, 21])
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padding(opset: int, mode: str) -> None:
    pads = i64(0, 0, 1, 2, 0, 0, 2, 1)
    assert_equal(model_of(one("Pad", "x p", mode=mode), opset=opset, p=pads))


def test_padding_with_a_value_of_some_axes_and_cropping() -> None:
    value = np.array(0.5, dtype=np.float32)
    assert_equal(model_of(one("Pad", "x p v"), p=i64(0, 1, 1, -2, 0, 0, 2, 1), v=value))
    model = model_of(one("Pad", "x p v a"), opset=18, p=i64(1, 2), v=value, a=i64(1))
    assert_equal(model)
    assert_equal(model_of(one("Pad", "x p - a", mode="wrap"), opset=19, p=i64(1, 2), a=i64(3)))


def test_expand_tile_and_gather() -> None:
    thin = (2, 1, 1, 6)
    assert_equal(model_of(one("Expand", "x s"), shape=thin, s=i64(3, 7, 1)), drawn(thin))
    assert_equal(model_of(one("Tile", "x r"), r=i64(1, 2, 1, 3)))
    assert_equal(model_of(one("Gather", "x i", axis=1), i=i64(2, -1, 0)))
    assert_equal(model_of(one("Gather", "x i", axis=3), i=np.array(-2, dtype=np.int64)))
    assert_equal(model_of(one("Gather", "x i", axis=0), i=i64(1, 0, 1, 1).reshape(2, 2)))


def test_a_shape_that_is_computed_when_the_graph_runs() -> None:
    nodes = (
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch", "zero"], ["batch_1"]),
        helper.make_node("Concat", ["batch_1", "rest"], ["sizes"], axis=0),
        one("Reshape", "x sizes"),
    )
    model = model_of(*nodes, shape=("n", 3, 7, 6), first=np.array(0), zero=i64(0), rest=i64(-1))
    for count in (1, 5):
        assert_equal(model, drawn((count, 3, 7, 6)))


def test_a_part_of_a_shape_and_a_constant_of_it() -> None:
    nodes = (
        helper.make_node("Shape", ["x"], ["shape"], start=1, end=-1),
        helper.make_node(
            "ConstantOfShape", ["shape"], ["filled"],
            value=helper.make_tensor("v", TensorProto.FLOAT, [1], [2.5]),
        ),
        helper.make_node("Unsqueeze", ["filled", "a"], ["wide"]),
        one("Mul", "x wide"),
    )  # fmt: skip
    assert_equal(model_of(*nodes, opset=15, a=i64(0, 3)))
    size = helper.make_node("Size", ["x"], ["size"])
    as_float = helper.make_node("Cast", ["size"], ["count"], to=TensorProto.FLOAT)
    assert_equal(model_of(size, as_float, one("Div", "x count")))


def test_conditions() -> None:
    zero = np.array(0, dtype=np.float32)
    for operator in ("Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"):
        test = helper.make_node(operator, ["x", "zero"], ["test"])
        assert_equal(model_of(test, one("Where", "test x other"), zero=zero, other=drawn(seed=1)))
    both = (
        helper.make_node("Greater", ["x", "zero"], ["a"]),
        helper.make_node("Less", ["x", "one"], ["b"]),
        helper.make_node("And", ["a", "b"], ["c"]),
        helper.make_node("Not", ["c"], ["d"]),
        helper.make_node("Or", ["d", "a"], ["e"]),
        one("Cast", "e", to=TensorProto.FLOAT),
    )
    assert_equal(model_of(*both, zero=zero, one=np.array(1, dtype=np.float32)))


def test_casts_and_constants_of_all_forms() -> None:
    whole = helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64)
    assert_equal(model_of(whole, one("Cast", "whole", to=TensorProto.FLOAT)), 3 * drawn())
    for attributes in (
        {"value_float": 2.0}, {"value_floats": [1.0, 2, 3, 4, 5, 6]},
        {"value": numpy_helper.from_array(f32(0.5))},
    ):  # fmt: skip
        made = helper.make_node("Constant", [], ["c"], **attributes)
        assert_equal(model_of(made, one("Mul", "x c")))
    made = helper.make_node("Constant", [], ["c"], value_ints=[2, -1])
    assert_equal(model_of(made, one("Reshape", "x c")))


def test_every_rule_is_tried_here() -> None:
    files = Path(__file__).parent.glob("test_torch_from_onnx*.py")
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    assert [name for name in RULES if f'"{name}"' not in text] == []


# What a conversion refuses.


def test_an_operator_without_a_rule_is_named() -> None:
    model = model_of(helper.make_node("Sin", ["x"], ["y"], name="wave"), opset=17)
    with pytest.raises(ExportError, match=r"node `wave` \(Sin, opset 17\).*no rule") as caught:
        torch_from_onnx(model)
    assert "black box" in caught.value.hint


def test_an_operator_of_another_domain_is_named() -> None:
    model = model_of(helper.make_node("Relu", ["x"], ["y"], domain="com.example"))
    with pytest.raises(ExportError, match=r"Relu of com\.example"):
        torch_from_onnx(model)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (one("Relu", power=2), "attribute `power`"),
        (one("Cast", to=TensorProto.UINT8), "cast to UINT8"),
        (one("MaxPool", kernel_shape=[2]), "two dimensions"),
        (one("MaxPool", kernel_shape=[2, 2], storage_order=2), "storage_order=2"),
        (one("Pad", "x p", mode="mirror"), "mode=mirror"),
        (one("Constant", ""), "holds no numbers"),
    ],
)
def test_what_has_no_rule_is_never_passed_over(node: onnx.NodeProto, reason: str) -> None:
    del node.input[len([name for name in node.input if name]) :]
    with pytest.raises(ExportError, match=reason):
        torch_from_onnx(model_of(node, p=i64(0, 0, 0, 0, 0, 0, 0, 0)))


def test_training_mode_and_second_outputs_are_refused() -> None:
    statistics: dict[str, Any] = {name: np.abs(drawn((3,), 1)) for name in "sbmv"}
    node = one("BatchNormalization", "x s b m v", training_mode=1)
    with pytest.raises(ExportError, match="training_mode=1"):
        torch_from_onnx(model_of(node, **statistics))
    node = helper.make_node("MaxPool", ["x"], ["y", "places"], kernel_shape=[2, 2])
    with pytest.raises(ExportError, match="first output alone"):
        torch_from_onnx(model_of(node))
    node = one("Dropout", "x ratio on")
    with pytest.raises(ExportError, match="training mode"):
        torch_from_onnx(model_of(node, ratio=np.array(0.5, np.float32), on=np.array(True)))


def test_axes_that_are_computed_are_refused() -> None:
    axes = helper.make_node("Shape", ["x"], ["a"])
    with pytest.raises(ExportError, match="is no constant"):
        torch_from_onnx(model_of(axes, one("ReduceSum", "x a")))


def test_an_operator_set_out_of_range_is_refused() -> None:
    with pytest.raises(ExportError, match="opset 9") as caught:
        torch_from_onnx(model_of(one("Relu"), opset=9))
    assert "convert_version" in caught.value.hint


def test_several_inputs_or_outputs_or_other_types_are_refused() -> None:
    model = model_of(one("Relu"))
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    with pytest.raises(ExportError, match=r"2 inputs \(x, z\)"):
        torch_from_onnx(model)
    model = model_of(one("Relu"))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    with pytest.raises(ExportError, match="type UINT8"):
        torch_from_onnx(model)
    with pytest.raises(ExportError, match="2 axes"):
        torch_from_onnx(model_of(one("Relu"), shape=(2, 3)))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(InputFileError, match="cannot be read"):
        torch_from_onnx(path)
    path.write_bytes(b"\xff\xff no model")
    with pytest.raises(InputFileError, match="no ONNX model"):
        torch_from_onnx(path)
    with pytest.raises(InputFileError, match="no graph"):
        torch_from_onnx(b"")


def test_values_of_types_without_a_rule_are_refused() -> None:
    model = model_of(one("Identity"), c=np.array(["text"], dtype=object))
    with pytest.raises(ExportError, match="type STRING"):
        torch_from_onnx(model)


# Whole networks.


class Attention(nn.Module):
    """Squeeze and excitation, a shuffle of channels, a residual: what classifiers are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = nn.functional.hardswish(self.stem(images))
        branch = nn.functional.silu(self.norm(self.depthwise(features)))
        gate = nn.functional.hardsigmoid(
            self.excite(torch.relu(self.squeeze(branch.mean((2, 3), keepdim=True))))
        )
        n, c, h, w = branch.shape
        shuffled = (branch * gate).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        left, right = torch.cat([features + shuffled, features], 1).chunk(2, dim=1)
        pooled = nn.functional.adaptive_avg_pool2d(left.clamp(-1, 1) + right, 1)
        logits: torch.Tensor = self.head(pooled.flatten(1))
        return logits


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Attention().eval()


@pytest.mark.parametrize("free", [True, False])
def test_a_network_and_its_gradients(network: nn.Module, free: bool) -> None:
    model = onnx_from_module(network, (2, 3, 16, 16), dynamic_batch=free)
    twin = torch_from_onnx(model)
    images = drawn((4, 3, 16, 16))
    parity = check_twin(model.SerializeToString(), twin, images)
    assert parity.n == 4
    assert parity.agreement == 1.0
    assert parity.max_abs_diff is not None
    assert parity.largest is not None
    assert parity.max_abs_diff <= 1e-5 * parity.largest
    gradients = []
    for module in (network, twin):
        pixels = torch.from_numpy(images).requires_grad_()
        module(pixels).square().sum().backward()
        assert pixels.grad is not None
        gradients.append(pixels.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_weights_are_there_by_name_and_move_with_the_module(network: nn.Module) -> None:
    twin = torch_from_onnx(onnx_from_module(network, (1, 3, 16, 16), dynamic_batch=True))
    assert {"head/weight", "squeeze/weight"} <= set(twin.state_dict())
    assert twin.double()(torch.rand(1, 3, 16, 16, dtype=torch.float64)).dtype == torch.float64


def test_a_batch_that_is_written_into_the_graph_is_kept_to() -> None:
    model = model_of(
        helper.make_node("Relu", ["x"], ["r"]), one("Reshape", "r s"), shape=(2, 3, 4, 4),
        s=i64(2, 48),
    )  # fmt: skip
    images = drawn((5, 3, 4, 4))
    found = by_torch(model, images)
    np.testing.assert_array_equal(found, np.maximum(images, 0).reshape(5, 48))
    # One that no node reads is none: the whole batch goes through at once.
    assert torch_from_onnx(model_of(one("Relu"), shape=(1, 3, 4, 4)))._batch is None


def test_weights_beside_the_file_are_found(network: nn.Module, tmp_path: Path) -> None:
    model = onnx_from_module(network, (1, 3, 16, 16), dynamic_batch=True)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=200)
    assert check_twin(path, torch_from_onnx(path), drawn((3, 3, 16, 16))).agreement == 1.0
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputFileError, match=r"weights\.bin"):
        torch_from_onnx(path)


def test_another_network_is_no_twin(network: nn.Module) -> None:
    model = onnx_from_module(network, (1, 3, 16, 16), dynamic_batch=True).SerializeToString()
    other = Attention().eval()
    parity = check_twin(model, other, drawn((20, 3, 16, 16)))
    assert parity.max_abs_diff is not None
    assert parity.max_abs_diff > 1e-3
    with pytest.raises(ExportError, match="gives"):
        check_twin(model, nn.Flatten(), drawn((2, 3, 16, 16)))


def test_functions_of_the_model_are_put_in_their_places() -> None:
    body = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    model = model_of(helper.make_node("Twice", ["x"], ["y"], domain="local"))
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("local", 1))
    x = drawn()
    np.testing.assert_array_equal(by_torch(model, x), 2 * x)
