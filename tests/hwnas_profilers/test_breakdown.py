"""Where a model's time goes: made-up inputs, profiles of runtimes, shares that add up."""

from __future__ import annotations

import importlib.util
import io
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch
from onnx import TensorProto
from torch import nn

from hwnas.core.errors import ConfigError, ExportError, InputFileError, TargetError
from hwnas_export.onnx_export import onnx_from_module
from hwnas_profilers.breakdown.graph import RuntimeGraph
from hwnas_profilers.breakdown.inputs import ModelInput, fix_shapes, inputs_of, random_feed
from hwnas_profilers.breakdown.measure import (
    breakdown_from_profile,
    measure_breakdown,
    profiled_calls,
    require_breakdown_target,
)
from hwnas_profilers.breakdown.model import model_source
from hwnas_profilers.breakdown.values import NodeTiming, ProfiledModel
from hwnas_profilers.breakdown.with_onnxruntime import median_of_truncated
from hwnas_profilers.timing import TimingSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas_profilers.breakdown.values import Breakdown

NET = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU())
        self.narrow = nn.Conv2d(32, 16, 1)
    def forward(self, x):
        return x + self.narrow(self.deep(self.wide(x)))

def make():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Block(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )

def other():
    return 3

number = 4

def broken():
    raise ValueError("no weights here")
"""
SHAPE = (1, 3, 24, 24)
# Of the convolutions and the last layer, in order; channels are whole blocks already.
MACS = [576 * 16 * 27, 576 * 32 * 16, 576 * 32 * 9, 576 * 16 * 32, 160]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.py"
    path.write_text(NET)
    return path


@pytest.fixture(scope="module")
def onnx_file(net: Path) -> Path:
    source = model_source(Path(f"{net}:make"))
    assert source.module is not None
    path = net.with_name("net.onnx")
    onnx.save(onnx_from_module(source.module, SHAPE, dynamic_batch=True), path)
    return path


def measure(
    model: Path, quick: TimingSettings, target: str = "onnxruntime-cpu", **options: Any
) -> Breakdown:
    return measure_breakdown(model_source(model), target, settings=quick, **options)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    initializers: Sequence[onnx.TensorProto] = (),
    **options: Any,
) -> Path:
    graph = oh.make_graph(nodes, "g", inputs, outputs, initializers)
    options.setdefault("opset_imports", [oh.make_opsetid("", 17)])
    onnx.save(oh.make_model(graph, ir_version=8, **options), path)
    return path


def tensor(
    name: str, shape: Sequence[int | str | None], kind: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return oh.make_tensor_value_info(name, kind, shape)


class TestBreakdown:
    def test_fused_nodes_share_the_whole_latency(
        self, onnx_file: Path, quick: TimingSettings
    ) -> None:
        found = measure(onnx_file, quick)
        assert found.low_us <= found.latency_us <= found.high_us
        assert sum(row.latency_us for row in found.nodes) == pytest.approx(found.latency_us)
        assert found.nodes[-1].cumulative_percent == pytest.approx(100)
        assert [row.index for row in found.nodes] == list(range(len(found.nodes)))
        assert sum(row.latency_us for row in found.by_type) == pytest.approx(found.latency_us)
        assert sum(row.nodes for row in found.by_type) == len(found.nodes)
        slow = [row.latency_us for row in found.slowest]
        assert slow == sorted((row.latency_us for row in found.nodes), reverse=True)[:10]
        assert found.profiled_call_us is not None
        assert found.profiled_calls == 20  # the least, as `quick` takes fewer samples
        # Activations are inside of convolutions: the runtime fused them.
        assert not {"Relu", "BatchNormalization"} & {row.node.op_type for row in found.nodes}
        convolutions = [row.node for row in found.nodes if "Conv" in row.node.op_type]
        assert [node.fused for node in convolutions][:3] == ["Relu"] * 3
        if "pads channels" in found.remark:  # a processor that it has such convolutions for
            assert convolutions[3].fused == "Add"
            assert "Add" not in {row.node.op_type for row in found.nodes}
        assert [row.node.macs for row in found.nodes if row.node.macs] == MACS
        assert found.macs == sum(MACS)
        assert convolutions[1].weights_bytes == 4 * (32 * 16 + 32)
        assert {"3x3 depthwise" in node.kind for node in convolutions} == {True, False}

    def test_the_biggest_operator_of_a_lopsided_model_is_the_slowest(
        self, tmp_path: Path, quick: TimingSettings
    ) -> None:
        rng = np.random.default_rng(0)
        weights = [rng.random(shape, dtype=np.float32) for shape in ((8, 8), (8, 600), (600, 600))]
        constants = [onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
        nodes = [
            oh.make_node("MatMul", ["x", "w0"], ["a"], "tiny"),
            oh.make_node("MatMul", ["a", "w1"], ["b"], "wide"),
            oh.make_node("MatMul", ["b", "w2"], ["y"], "huge"),
        ]
        path = save(
            tmp_path / "m.onnx", nodes, [tensor("x", [64, 8])], [tensor("y", [64, 600])], constants
        )
        found = measure(path, quick)
        assert found.slowest[0].name == "huge"
        assert found.slowest[0].share_percent > 50
        assert [row.node.macs for row in found.nodes] == [64 * 8 * 8, 64 * 8 * 600, 64 * 600 * 600]
        assert found.nodes[2].node.weights_bytes == 4 * 600 * 600

    def test_several_inputs_of_any_type_and_open_sizes(
        self, tmp_path: Path, quick: TimingSettings
    ) -> None:
        table = onnx.numpy_helper.from_array(np.ones((5, 4), np.float32), "table")
        nodes = [
            oh.make_node("Gather", ["table", "ids"], ["words"]),
            oh.make_node("Cast", ["mask"], ["kept"], to=TensorProto.FLOAT),
            oh.make_node("Mul", ["words", "kept"], ["some"]),
            oh.make_node("Add", ["some", "bias"], ["y"]),
        ]
        path = save(
            tmp_path / "m.onnx", nodes,
            [tensor("ids", ["batch", "words"], TensorProto.INT64), tensor("bias", [4]),
             tensor("mask", ["batch", "words", 1], TensorProto.BOOL)],
            [tensor("y", ["batch", "words", 4])], [table],
        )  # fmt: skip
        with pytest.raises(ConfigError, match="`ids` leaves a size open: axis 1, `words`") as error:
            measure(path, quick)
        assert "--input-shape 1,224" in error.value.hint
        found = measure(path, quick, input_shape=(2, 7))
        assert "ids int64 2x7 (random 0 or 1)" in found.inputs
        assert "mask bool 2x7x1" in found.inputs
        assert "bias float32 4 (random in [0, 1))" in found.inputs
        gather = next(row.node for row in found.nodes if row.node.op_type == "Gather")
        assert gather.shape_out == "2x7x4"
        assert gather.weights_bytes == 80
        assert gather.macs is None

    def test_nodes_inside_of_a_branch_are_not_counted_twice(
        self, tmp_path: Path, quick: TimingSettings
    ) -> None:
        constant = onnx.numpy_helper.from_array(np.ones((300, 300), np.float32), "w")

        def branch(name: str, op_type: str) -> onnx.GraphProto:
            node = oh.make_node(op_type, ["x", "w"], [name], f"inner {op_type}")
            return oh.make_graph([node], name, [], [tensor(name, [300, 300])])

        nodes = [
            oh.make_node("ReduceMax", ["x"], ["top"], "before", keepdims=0),
            oh.make_node("Cast", ["top"], ["is_on"], to=TensorProto.BOOL),
            oh.make_node("If", ["is_on"], ["y"], "branch",
                         then_branch=branch("a", "MatMul"), else_branch=branch("b", "Add")),
        ]  # fmt: skip
        path = save(
            tmp_path / "m.onnx",
            nodes,
            [tensor("x", [300, 300])],
            [tensor("y", [300, 300])],
            [constant],
        )
        found = measure(path, quick)
        assert "inner MatMul" not in {row.node.name for row in found.nodes}
        assert found.slowest[0].kind == "If"
        assert {"before", "branch"} <= {row.node.name for row in found.nodes}

    def test_nodes_without_names(self, tmp_path: Path, quick: TimingSettings) -> None:
        constant = onnx.numpy_helper.from_array(np.ones((16, 16), np.float32), "w")
        nodes = [oh.make_node("MatMul", [a, "w"], [b]) for a, b in ("xa", "ab", "bc")]
        path = save(
            tmp_path / "m.onnx", nodes, [tensor("x", [4, 16])], [tensor("c", [4, 16])], [constant]
        )
        found = measure(path, quick)
        assert [row.node.macs for row in found.nodes] == [4 * 16 * 16] * 3
        assert len({row.node.name for row in found.nodes}) == 3

    def test_weights_in_a_file_beside_the_model(
        self, tmp_path: Path, quick: TimingSettings
    ) -> None:
        weights = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
        node = oh.make_node("MatMul", ["x", "w"], ["y"])
        path = save(
            tmp_path / "m.onnx", [node], [tensor("x", [1, 64])], [tensor("y", [1, 64])], [weights]
        )
        onnx.save(
            onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0
        )
        source = model_source(path)
        assert set(source.digests) == {"model", "m.data"}
        assert measure(path, quick).nodes[0].node.weights_bytes == 64 * 64 * 4
        (tmp_path / "m.data").unlink()
        with pytest.raises(
            InputFileError, match=r"weights of .* are missing: `w` lies in .*m\.data"
        ):
            model_source(path)

    def test_leaves_no_file_behind(
        self,
        onnx_file: Path,
        quick: TimingSettings,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        measure(onnx_file, quick)
        assert not list(tmp_path.iterdir())

    def test_batch_is_run_as_asked(self, onnx_file: Path, quick: TimingSettings) -> None:
        found = measure(onnx_file, quick, batch=4)
        assert "4x3x24x24" in found.inputs
        assert found.macs == 4 * sum(MACS)

    def test_shares_of_a_made_up_profile(self) -> None:
        nodes = [
            NodeTiming(name="a", op_type="Conv", kind="Conv 1x1", macs=7, profiled_us=30.0),
            NodeTiming(name="b", op_type="Relu", kind="Relu", profiled_us=10.0),
        ]
        found = breakdown_from_profile(
            ProfiledModel(runtime="r", inputs="i", samples_us=np.full(9, 20.0), calls=5,
                          call_us=50.0, nodes=nodes),
            model="m", target="t", threads=1,
        )  # fmt: skip
        assert [row.latency_us for row in found.nodes] == [15.0, 5.0]
        assert [row.share_percent for row in found.nodes] == [75.0, 25.0]
        assert found.profiled_sum_us == 40.0
        assert found.latency_us == 20.0
        assert found.macs == 7

    def test_a_profile_without_time_is_refused(self) -> None:
        empty = ProfiledModel(
            runtime="r", inputs="", samples_us=np.ones(9), calls=5, call_us=1.0, nodes=[]
        )
        with pytest.raises(ExportError, match="tells no node's time"):
            breakdown_from_profile(empty, model="m", target="t", threads=1)


class TestProfile:
    def test_median_of_truncated_finds_the_median_that_was_cut_off(self) -> None:
        times = np.random.default_rng(0).normal(2.3, 0.8, 20_001).clip(0)
        cut = [int(time) for time in times]
        assert median_of_truncated(cut) == pytest.approx(float(np.median(times)), abs=0.05)
        assert float(np.median(cut)) == 2.0  # what it would read without

    def test_profiles_get_smaller_as_models_get_bigger(self) -> None:
        settings = TimingSettings.for_networks()
        assert profiled_calls(settings, nodes=50, latency_us=200) == settings.max_samples
        assert profiled_calls(settings, nodes=1_000, latency_us=200) == 100
        assert profiled_calls(settings, nodes=10, latency_us=1e5) == 100
        assert profiled_calls(settings, nodes=10**6, latency_us=1e8) == 20


class TestGraph:
    def test_a_transposed_product_and_convolution(self) -> None:
        weights = [
            onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
            for name, shape in {"up": (8, 4, 2, 2), "w": (5, 6), "q": (4, 2)}.items()
        ]
        weights[2] = oh.make_tensor("q", TensorProto.INT4, [3, 3], [1] * 9)
        nodes = [
            oh.make_node("ConvTranspose", ["x", "up"], ["y"]),
            oh.make_node("Gemm", ["a", "w"], ["b"], transA=1),
            oh.make_node("Dequant", ["q"], ["c"]),
        ]
        graph = RuntimeGraph(oh.make_model(oh.make_graph(nodes, "g", [], [], weights)))
        up = graph.facts(nodes[0], [(1, 8, 5, 5)], [(1, 4, 10, 10)])
        assert (up.kind, up.macs) == ("ConvTranspose 2x2", 8 * 25 * 4 * 4)
        product = graph.facts(nodes[1], [(5, 3)], [(3, 6)])
        assert (product.macs, product.weights_bytes) == (3 * 6 * 5, 120)
        assert graph.facts(nodes[2], [], []).weights_bytes == 5  # nine halves of a byte

    def test_a_convolution_whose_weights_are_computed(self) -> None:
        node = oh.make_node("Conv", ["x", "dequantized"], ["y"], group=6)
        graph = RuntimeGraph(oh.make_model(oh.make_graph([node], "g", [], [])))
        facts = graph.facts(node, [(1, 6, 9, 9), (6, 1, 5, 3)], [(1, 6, 9, 9)])
        assert (facts.kind, facts.macs) == ("Conv 5x3 depthwise", 6 * 81 * 15)
        assert facts.weights_bytes == 0

    def test_nodes_in_another_order_are_found_by_name(self) -> None:
        nodes = [
            oh.make_node("Relu", ["a"], ["b"], "one"),
            oh.make_node("Conv", ["b", "w"], ["c"], "two"),
            oh.make_node("Relu", ["c"], ["d"], "same"),
            oh.make_node("Relu", ["d"], ["e"], "same"),
        ]
        graph = RuntimeGraph(oh.make_model(oh.make_graph(nodes, "g", [], [])))
        found = graph.nodes_in_order([("two", "Conv"), ("one", "Relu"), ("same", "Relu")])
        assert [node.name if node else None for node in found] == ["two", "one", None]


class TestInputs:
    def test_what_fits_nothing_is_refused(self) -> None:
        images = ModelInput(name="images", dtype="float32", shape=("n", 3, None, None))
        assert fix_shapes([images], input_shape=(2, 3, 8, 8), batch=1) == [(2, 3, 8, 8)]
        with pytest.raises(ConfigError, match=r"1x1x8x8 fits no input .* images nx3x\?x\?"):
            fix_shapes([images], input_shape=(1, 1, 8, 8), batch=1)
        with pytest.raises(ConfigError, match="axis 2, without a name") as error:
            fix_shapes([images], input_shape=None, batch=1)
        assert "--input-shape 1,3,224,224" in error.value.hint
        with pytest.raises(ConfigError, match="batch is 4"):
            fix_shapes([images], input_shape=(2, 3, 8, 8), batch=4)

    def test_a_fixed_batch_cannot_be_changed(self) -> None:
        images = ModelInput(name="images", dtype="float32", shape=(1, 3, 8, 8))
        assert fix_shapes([images], input_shape=None, batch=1) == [(1, 3, 8, 8)]
        with pytest.raises(ConfigError, match="fixed"):
            fix_shapes([images], input_shape=None, batch=8)

    def test_values_by_type(self) -> None:
        kinds = ("float32", "float16", "int64", "uint8", "bool")
        inputs = [ModelInput(name=kind, dtype=kind, shape=(40,)) for kind in kinds]
        feed = random_feed(inputs, [(40,)] * len(kinds), seed=1)
        assert [array.dtype.name for array in feed.values()] == list(kinds)
        assert len(np.unique(feed["float32"])) == 40
        assert set(np.unique(feed["int64"])) == {0, 1}

    def test_strings_cannot_be_made_up(self) -> None:
        graph = oh.make_graph([], "g", [tensor("text", [1], TensorProto.STRING)], [])
        with pytest.raises(ConfigError, match="`text` cannot be made up"):
            inputs_of(oh.make_model(graph))


class TestTorch:
    def test_operations_by_module(self, net: Path, quick: TimingSettings) -> None:
        found = measure(Path(f"{net}:make"), quick, "torch-cpu", input_shape=SHAPE)
        assert [(row.node.name, row.node.kind) for row in found.nodes] == [
            ("0", "conv2d 3x3"), ("1", "relu"), ("2.wide.0", "conv2d 1x1"),
            ("2.wide.1", "batch_norm"), ("2.wide.2", "relu"), ("2.deep.0", "conv2d 3x3 depthwise"),
            ("2.deep.1", "relu"), ("2.narrow", "conv2d 1x1"), ("2", "add"),
            ("3", "adaptive_avg_pool2d"), ("4", "flatten"), ("5", "linear"),
        ]  # fmt: skip
        assert [row.node.macs for row in found.nodes if row.node.macs] == MACS
        assert sum(row.latency_us for row in found.nodes) == pytest.approx(found.latency_us)

    def test_no_word_reaches_the_terminal(
        self, net: Path, quick: TimingSettings, capfd: pytest.CaptureFixture[str]
    ) -> None:
        measure(Path(f"{net}:make"), quick, "torch-cpu", input_shape=SHAPE)
        assert capfd.readouterr() == ("", "")

    def test_an_onnx_model_is_no_module(self, onnx_file: Path, quick: TimingSettings) -> None:
        with pytest.raises(ConfigError, match="is an ONNX model") as error:
            measure(onnx_file, quick, "torch-cpu")
        assert "onnxruntime-cpu" in error.value.hint

    def test_an_input_that_does_not_fit(self, net: Path, quick: TimingSettings) -> None:
        with pytest.raises(ExportError, match="cannot run on an input of"):
            measure(Path(f"{net}:make"), quick, "torch-cpu", input_shape=(1, 4, 8, 8))


@pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)
class TestOpenVino:
    def test_nodes_share_the_latency(self, onnx_file: Path, quick: TimingSettings) -> None:
        found = measure(onnx_file, quick, "openvino-cpu", batch=2)
        assert found.runtime.startswith("openvino ")
        assert "2x3x24x24" in found.inputs
        assert sum(row.latency_us for row in found.nodes) == pytest.approx(found.latency_us)
        assert "Convolution" in {row.kind for row in found.by_type}
        assert "Constant" not in {row.kind for row in found.by_type}


class TestSource:
    @pytest.mark.parametrize("kind", ["file", "package"])
    def test_a_callable_gives_a_module(
        self, kind: str, net: Path, quick: TimingSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(net.parent)
        name = "net:make" if kind == "package" else f"{net}:make"
        found = measure(Path(name), quick, input_shape=SHAPE)
        assert found.model == name
        assert found.macs == sum(MACS)

    def test_an_exported_program_knows_its_shape(
        self, net: Path, quick: TimingSettings, tmp_path: Path
    ) -> None:
        module = model_source(Path(f"{net}:make")).module
        assert module is not None
        path = tmp_path / "net.pt2"
        torch.export.save(torch.export.export(module, (torch.zeros(SHAPE),)), path)
        assert measure(path, quick).macs == sum(MACS)

    def test_an_exported_program_runs_no_code(self, net: Path, tmp_path: Path) -> None:
        good, bad, trace = (tmp_path / name for name in ("good.pt2", "bad.pt2", "trace"))
        module = nn.Linear(2, 2)
        torch.export.save(torch.export.export(module, (torch.zeros(1, 2),)), good)

        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return exec, (f"open({str(trace)!r}, 'w').close()",)

        buffer = io.BytesIO()
        torch.save(Bomb(), buffer)
        hit = []
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
            for item in old.infolist():
                is_pickle = "sample_inputs" in item.filename
                hit += [item.filename] * is_pickle
                new.writestr(item, buffer.getvalue() if is_pickle else old.read(item))
        assert hit
        with pytest.raises(InputFileError, match="hwnas can open"):
            model_source(bad)
        assert not trace.exists()
        with pytest.raises(Exception, match=r"."):
            torch.export.load(bad)
        assert trace.exists()  # so the check above could have failed

    @pytest.mark.parametrize("name", ["model.pt", "model.pth", "weights.bin"])
    def test_a_pickle_is_not_opened(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / name
        torch.save(nn.Linear(2, 2), path)
        with pytest.raises(ConfigError, match="would run code") as error:
            model_source(path)
        assert "torch.onnx.export" in error.value.hint

    @pytest.mark.parametrize(
        ("spec", "reason"),
        [
            (":other", "gives int, not a torch.nn.Module"),
            (":number", "not a callable"),
            (":mak", "there is no `mak`\n  hint: did you mean `make`"),
            (":broken", "ValueError: no weights here"),
            ("", "which callable"),
        ],
    )
    def test_what_gives_no_module(self, spec: str, reason: str, net: Path) -> None:
        with pytest.raises(ConfigError) as error:
            model_source(Path(f"{net}{spec}"))
        assert reason in str(error.value)

    def test_a_module_needs_a_shape(self, net: Path, quick: TimingSettings) -> None:
        with pytest.raises(ConfigError, match=r"input shape .* not known") as error:
            measure(Path(f"{net}:make"), quick)
        assert "--input-shape" in error.value.hint

    def test_files_that_are_no_model(self, onnx_file: Path, tmp_path: Path) -> None:
        with pytest.raises(InputFileError, match="does not exist") as missing:
            model_source(onnx_file.with_name("nett.onnx"))
        assert "net.onnx" in missing.value.hint
        with pytest.raises(InputFileError, match="is a folder"):
            model_source(tmp_path)
        contents = {"text": b"weights: none", "empty": b"", "pickle": pickle.dumps([1]),
                    "cut": onnx_file.read_bytes()[:-50]}  # fmt: skip
        for name, data in contents.items():
            path = tmp_path / f"{name}.onnx"
            path.write_bytes(data)
            with pytest.raises(InputFileError, match="no ONNX model"):
                model_source(path)

    @pytest.mark.parametrize(
        ("op_type", "domain", "opset", "words"),
        [("Relu", "", 99, "opset 99"), ("Magic", "com.acme", 17, "Magic")],
    )
    def test_a_model_that_the_runtime_rejects(
        self, op_type: str, domain: str, opset: int, words: str, tmp_path: Path,
        quick: TimingSettings, capfd: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        imports = [oh.make_opsetid("", opset)] + ([oh.make_opsetid(domain, 1)] if domain else [])
        node = oh.make_node(op_type, ["x"], ["y"], domain=domain)
        path = save(
            tmp_path / "m.onnx",
            [node],
            [tensor("x", [1])],
            [tensor("y", [1])],
            opset_imports=imports,
        )
        with pytest.raises(ExportError, match=f"(?i)ONNX Runtime rejects .*{words}"):
            measure(path, quick)
        assert capfd.readouterr() == ("", "")

    def test_a_model_that_cannot_run_on_made_up_inputs(
        self, tmp_path: Path, quick: TimingSettings, capfd: pytest.CaptureFixture[str]
    ) -> None:
        node = oh.make_node("Reshape", ["x", "shape"], ["y"])
        path = save(
            tmp_path / "m.onnx", [node],
            [tensor("x", [6]), tensor("shape", [2], TensorProto.INT64)],
            [tensor("y", [None, None])],
        )  # fmt: skip
        with pytest.raises(ExportError, match=r"cannot run .* on made-up inputs"):
            measure(path, quick)
        assert capfd.readouterr() == ("", "")


class TestTargets:
    @pytest.mark.parametrize(
        ("target", "reason"),
        [
            ("onnxruntime-cuda", "launched"),
            ("onnxruntime-cpu-int8", "quantizing it is a step of its own"),
            ("tensorrt-fp16", "layers are not read"),
            ("torch-cpu-bf16", "converting it"),
            ("onnxruntime-cpuu", "no target"),
            ("ssh://pi@board/onnxruntime-cpu", "on the machine that runs hwnas|ssh` is not"),
        ],
    )
    def test_refusals_give_the_reason_and_a_way_out(self, target: str, reason: str) -> None:
        with pytest.raises(TargetError, match=reason) as error:
            require_breakdown_target(target)
        assert error.value.hint
