from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper
import onnx.parser
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from torch import nn

from hwnas.core.errors import ExportError
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import CHANNEL_SPACES
from hwnas_export.memory import ModelMemory, memory_of_onnx
from hwnas_export.onnx_export import onnx_from_module, onnx_from_modules

VIEWS = ("Identity", "Flatten", "Reshape", "Unsqueeze")


def parsed(graph: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {graph}')
    onnx.checker.check_model(model, full_check=True)
    return model


def bytes_of(graph: str, **batch: int) -> int:
    return memory_of_onnx(parsed(graph), **batch).peak_activation_bytes


def test_a_node_s_inputs_and_outputs_live_side_by_side() -> None:
    model = parsed("a (float[10] x) => (float[10] z) { y = Relu(x) z = Neg(y) }")
    # 10 floats in, 10 out; nothing else is needed at either node.
    assert memory_of_onnx(model) == ModelMemory(
        weights_bytes=0, peak_activation_bytes=80, peak_node="Relu at 0"
    )


def test_what_is_needed_later_stays_alive() -> None:
    # At Concat of b with itself: b (40 bytes), its double (80) and x, which the last node adds.
    assert (
        bytes_of(
            """a (float[10] x) => (float[10] z) {
            b = Relu(x)
            c = Concat<axis = 0>(b, b)
            d, rest = Split<axis = 0, num_outputs = 2>(c)
            z = Add(d, x)
        }"""
        )
        == 40 + 80 + 80  # at Split: x, c, and both halves
    )


def test_an_input_gives_its_place_away_after_its_last_use() -> None:
    # x (4 kB) is gone when the large middle is made from its one-element sum.
    graph = """a (float[1000] x) => (float[1] z) {{
        sum = ReduceSum<keepdims = 1>(x)
        middle = Concat<axis = 0>({copies})
        z = ReduceSum<keepdims = 1>({last})
    }}"""
    copies = ", ".join(["sum"] * 999)
    assert bytes_of(graph.format(copies=copies, last="middle")) == 4004
    # Needed at the end it stays, and its size comes on top.
    both = """a (float[1000] x) => (float[1] z) {{
        sum = ReduceSum<keepdims = 1>(x)
        middle = Concat<axis = 0>({copies})
        less = ReduceSum<keepdims = 1>(middle)
        more = ReduceSum<keepdims = 1>(x)
        z = Add(less, more)
    }}"""
    assert bytes_of(both.format(copies=copies)) == 4000 + 4 + 999 * 4


def test_an_output_that_nobody_reads_is_made_all_the_same() -> None:
    assert bytes_of("a (float[8] x) => (float[8] z) { y = Relu(x) z = Neg(x) }") == 64
    assert bytes_of(
        "a (float[8] x) => (float[8] y) { y = Relu(x) z = Concat<axis = 0>(x, x) }"
    ) == (
        32 + 32 + 64  # y is an output of the model: alive to the end
    )


def test_views_make_no_tensor() -> None:
    graph = """a (float[2, 50] x) => (float[100] z)
        <int64[1] shape = {{100}}, int64[1] axis = {{0}}> {{
        y = Relu(x)
        {view}
        z = Neg(w)
    }}"""
    for view in (
        "w = Reshape(y, shape)",
        "v = Flatten(y) u = Identity(v) w = Reshape(u, shape)",
        "v = Unsqueeze(y, axis) u = Squeeze(v, axis) w = Reshape(u, shape)",
    ):
        assert bytes_of(graph.format(view=view)) == 800
    # A view keeps what it looks at alive: y is read, under another name, after Abs ran.
    held = "w0 = Reshape(y, shape) v = Abs(y) u = Neg(v) r = Reshape(u, shape) w = Add(w0, r)"
    assert bytes_of(graph.format(view=held)) == 1200


def test_a_view_of_the_input_is_the_input() -> None:
    assert bytes_of("a (float[4, 5] x) => (float[4, 5] y) { y = Identity(x) }") == 80
    assert memory_of_onnx(parsed("a (float[20] x) => (float[20] x) { }")) == ModelMemory(
        weights_bytes=0, peak_activation_bytes=80, peak_node=""
    )


def test_weights_are_no_activations_and_count_once() -> None:
    memory = memory_of_onnx(
        parsed(
            """a (float[1, 4] x) => (float[1, 4] z)
            <float[4, 4] w = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}> {
            one = Constant<value_float = 1.0>()
            turned = Transpose(w)
            y = MatMul(x, w)
            v = MatMul(y, turned)
            z = Add(v, one)
        }"""
        )
    )
    # Transpose is of weights alone: a runtime computes it once, and no call holds it.
    assert memory == ModelMemory(
        weights_bytes=64 + 4, peak_activation_bytes=32, peak_node="MatMul at 2"
    )


@pytest.mark.parametrize(
    ("kind", "weights_bytes"),
    [(TensorProto.FLOAT, 28), (TensorProto.FLOAT16, 14), (TensorProto.INT8, 7),
     (TensorProto.INT4, 4),
     (TensorProto.BFLOAT16, 14), (TensorProto.DOUBLE, 56), (TensorProto.BOOL, 7)],
)  # fmt: skip
def test_an_element_has_the_size_of_its_type(kind: int, weights_bytes: int) -> None:
    weight = onnx.TensorProto(name="w", data_type=kind, dims=[7], raw_data=b"\0" * weights_bytes)
    graph = oh.make_graph(
        [oh.make_node("Identity", ["x"], ["y"])],
        "typed",
        [oh.make_tensor_value_info("x", kind, [3])],
        [oh.make_tensor_value_info("y", kind, [3])],
        [weight],
    )
    memory = memory_of_onnx(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 23)]))
    assert memory.weights_bytes == weights_bytes
    assert memory.peak_activation_bytes == -(-weights_bytes * 3 // 7)


def test_a_free_batch_is_refused_unless_it_is_given() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Flatten(), nn.Linear(256, 2))
    free = onnx_from_module(module, (1, 3, 8, 8), dynamic_batch=True)
    before = free.SerializeToString()
    with pytest.raises(ExportError, match="size `batch` is free"):
        memory_of_onnx(free)
    for batch in (1, 5):
        bound = memory_of_onnx(free, batch=batch)
        assert bound.peak_activation_bytes == batch * 4 * (3 + 4) * 64
    assert free.SerializeToString() == before
    with pytest.raises(ExportError, match="at least 1, not 0"):
        memory_of_onnx(free, batch=0)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ("a (float[N, M] x) => (float[N, M] z) { z = Relu(x) }", "`M` is free"),
        ("a (float[5] x) => (int64[1, N] z) { z = NonZero(x) }", "is free|cannot be inferred"),
        ("a (string[5] x) => (string[5] z) { z = Identity(x) }", "of type STRING"),
        ("a (float[5] x) => (seq(float[5]) z) { z = SequenceConstruct(x) }", "sequence_type"),
        (
            """a (bool c, float[5] x) => (float[5] z) {
            z = If(c) <then_branch = t () => (float[5] p) { p = Relu(x) },
                       else_branch = e () => (float[5] q) { q = Neg(x) }> }""",
            "depends on data",
        ),
    ],
)  # fmt: skip
def test_what_has_no_fixed_size_is_refused(graph: str, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        memory_of_onnx(parsed(graph), batch=2)


def test_an_operator_that_onnx_does_not_know_is_refused() -> None:
    graph = oh.make_graph(
        [
            oh.make_node("Mystery", ["x"], ["y"], domain="vendor"),
            oh.make_node("Relu", ["y"], ["z"]),
        ],
        "vendor",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [oh.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    opsets = [oh.make_opsetid("", 20), oh.make_opsetid("vendor", 1)]
    with pytest.raises(ExportError, match=r"`y` cannot be counted: its shape cannot be inferred"):
        memory_of_onnx(oh.make_model(graph, opset_imports=opsets))


def test_functions_are_looked_into() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
        a (float[10] x) => (float[10] z) { z = local.twice(x) }
        <domain: "local", opset_import: ["" : 20]>
        twice (x) => (z) {
            y = Concat<axis = 0>(x, x)
            h, z = Split<axis = 0, num_outputs = 2>(y)
        }"""
    )
    assert memory_of_onnx(model).peak_activation_bytes == 80 + 40 + 40


class RandomGraph:
    """A graph of one-dimensional tensors, grown node by node from drawn numbers."""

    def __init__(self, data: st.DataObject) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.roots: list[tuple[list[str], list[str]]] = []
        self.sizes: dict[str, int] = {}
        self.root_of: dict[str, str] = {}
        self._lengths: dict[str, int] = {}
        self.weights: list[onnx.TensorProto] = []
        inputs = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3), label="inputs")
        for index, length in enumerate(inputs):
            self._add(f"x{index}", length)
        self.inputs = list(self._lengths)
        for _ in range(data.draw(st.integers(1, 12), label="nodes")):
            self._grow(data)
        names = st.sampled_from(sorted(self._lengths))
        self.outputs = sorted(data.draw(st.sets(names, min_size=1, max_size=3), label="outputs"))

    def model(self) -> onnx.ModelProto:
        def info(name: str) -> onnx.ValueInfoProto:
            return oh.make_tensor_value_info(name, TensorProto.FLOAT, [self._lengths[name]])

        graph = oh.make_graph(
            self.nodes,
            "random",
            [info(name) for name in self.inputs],
            [info(name) for name in self.outputs],
            self.weights,
        )
        model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model

    def peak_bytes(self) -> int:
        """Simulate: at every node, look through all others for what is still needed."""
        outputs = {self.root_of[name] for name in self.outputs}
        peak = 0
        for now, (reads, makes) in enumerate(self.roots):
            alive = {*reads, *makes}
            exists = {self.root_of[name] for name in self.inputs}
            exists.update(itertools.chain(*(made for _, made in self.roots[:now])))
            needed = {name for later, _ in self.roots[now + 1 :] for name in later} | outputs
            alive |= exists & needed
            if now == 0:  # the caller has brought all inputs, needed or not
                alive |= {self.root_of[name] for name in self.inputs}
            peak = max(peak, sum(self.sizes[name] for name in alive))
        return peak

    def _add(self, name: str, length: int, *, view_of: str = "", element: int = 4) -> None:
        self.sizes[name] = length * element
        self.root_of[name] = self.root_of[view_of] if view_of else name
        if element == 4:
            self._lengths[name] = length

    def _grow(self, data: st.DataObject) -> None:
        names = st.sampled_from(sorted(self._lengths))
        kind = data.draw(st.sampled_from(("Relu", "Concat", "TopK", "Identity", "Reshape")))
        at = len(self.nodes)
        made = [f"t{at}"]
        reads = [data.draw(names)]
        length = self._lengths[reads[0]]
        attributes: dict[str, Any] = {}
        if kind == "Concat":
            reads.append(data.draw(names))
            attributes = {"axis": 0}
            length += self._lengths[reads[1]]
        extra = []
        if kind in ("TopK", "Reshape"):
            length = data.draw(st.integers(1, length)) if kind == "TopK" else length
            extra = [f"w{at}"]
            self.weights.append(onnx.numpy_helper.from_array(np.array([length]), extra[0]))
        self._add(made[0], length, view_of=reads[0] if kind in VIEWS else "")
        if kind == "TopK":
            made.append(f"i{at}")
            self._add(made[1], length, element=8)  # its second output is int64
        self.nodes.append(oh.make_node(kind, [*reads, *extra], made, **attributes))
        self.roots.append(
            ([self.root_of[name] for name in reads], [self.root_of[name] for name in made])
        )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_graph_is_counted_as_a_plain_simulation_counts_it(data: st.DataObject) -> None:
    graph = RandomGraph(data)
    memory = memory_of_onnx(graph.model())
    assert memory.peak_activation_bytes == graph.peak_bytes()
    assert memory.weights_bytes == 8 * len(graph.weights)


@pytest.fixture(scope="module")
def space() -> ChannelSpace:
    return ChannelSpace(CHANNEL_SPACES["rnas-cl-xs"], batch=2)


def as_trained(module: nn.Module) -> nn.Module:
    """Move batch normalization off its initial state: the exporter drops biases that are zero."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, 0.5, 1.0)  # type: ignore[arg-type]
    return module.eval()


@pytest.mark.parametrize(("seed", "dynamic_batch"), [(0, False), (1, True)])
def test_a_chain_s_peak_is_the_greatest_of_its_operators_and_its_weights_their_sum(
    space: ChannelSpace, seed: int, *, dynamic_batch: bool
) -> None:
    torch.manual_seed(seed)
    genotype = space.random_genotype(np.random.default_rng(seed))
    keys = space.operators_of(genotype)
    built = {operator.key: operator.build for operator in space.operators()}
    operators = onnx_from_modules(
        [as_trained(built[key]()) for key in keys], [(key.batch, *key.in_shape) for key in keys]
    )
    parts = [memory_of_onnx(model) for model in operators]
    network = as_trained(space.network(genotype))
    model = onnx_from_module(
        network, (space.batch, *space.spec.image_shape), dynamic_batch=dynamic_batch
    )
    whole = memory_of_onnx(model, batch=space.batch)
    assert whole.peak_activation_bytes == max(part.peak_activation_bytes for part in parts)
    assert whole.weights_bytes == sum(part.weights_bytes for part in parts)
    # The hidden channels of the first block, at full resolution, before and behind h-swish.
    hidden = keys[1].hidden
    assert whole.peak_activation_bytes >= 2 * 2 * hidden * 16 * 16 * 4


def test_counting_grows_linearly_with_the_graph() -> None:
    def chain(length: int) -> onnx.ModelProto:
        names = ["x", *(f"t{index}" for index in range(length))]
        ends = [
            oh.make_tensor_value_info(name, TensorProto.FLOAT, [8])
            for name in (names[0], names[-1])
        ]
        nodes = [oh.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
        graph = oh.make_graph(nodes, "chain", ends[:1], ends[1:])
        return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10)

    # A count that looked through all other nodes at each would take minutes for so many.
    assert memory_of_onnx(chain(20_000)).peak_activation_bytes == 64
