from __future__ import annotations

import ast
import ctypes
import gc
import hashlib
import io
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from torch import nn

from hwnas.core.environment import this_device
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.tensorrt_api import TRT_NAMES
from hwnas_profilers import agent

SOURCE = Path(agent.__file__).read_text()
IMAGES = np.ones((1, 3, 4, 4), dtype=np.float32)


def test_the_program_is_python_3_8_and_needs_only_what_boards_have() -> None:
    tree = ast.parse(SOURCE, feature_version=(3, 8))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            imported.add(ast.literal_eval(node.args[0]))
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime", "tensorrt"}


def test_newer_names_of_the_standard_library_are_not_used() -> None:
    newer = {"removeprefix", "removesuffix", "cache", "pairwise", "strict", "slots", "kw_only"}
    used = {
        getattr(node, "attr", None) or getattr(node, "arg", None)
        for node in ast.walk(ast.parse(SOURCE))
    }
    assert not newer & used


def test_a_board_describes_itself_as_this_machine_would() -> None:
    board, device = agent._board({}), this_device()
    for name in ("name", "machine", "cores", "memory_mib", "system", "governor"):
        assert board[name] == getattr(device, name), name


@pytest.mark.parametrize("threads", [1, 2])
def test_onnxruntime_is_set_up_on_a_board_as_it_is_here(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx_from_module(nn.Conv2d(3, 4, 1).eval(), IMAGES.shape).SerializeToString()
    real, seen = ort.InferenceSession, []

    def session(model: bytes, options: Any, **others: Any) -> Any:
        fields = [name for name in dir(options) if not name.startswith("_")]
        values = {name: getattr(options, name) for name in fields}
        seen.append({name: value for name, value in values.items() if not callable(value)})
        opened = real(model, options, **others)
        seen[-1]["opened with"] = opened.get_providers()
        return opened

    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "")  # the agent sets it: to be undone
    compile_, packages, _ = agent._onnxruntime(threads)
    compile_(model, IMAGES)
    with OnnxRuntimeRunner(model, threads=threads):
        pass
    on_board, here = seen
    assert on_board == here
    assert on_board["intra_op_num_threads"] == threads
    assert packages == {"numpy": np.__version__, "onnxruntime": ort.__version__}


def served(
    monkeypatch: pytest.MonkeyPatch, commands: list[tuple[dict[str, Any], bytes]], **setup: Any
) -> tuple[list[dict[str, Any]], list[int]]:
    """Return what an agent answers, and the alarms that it set."""
    alarms: list[int] = []
    monkeypatch.setattr(signal, "alarm", alarms.append)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "")  # the agent sets it: to be undone
    setup = {"runtime": "onnxruntime", "threads": 1, **setup}
    lines = json.dumps(setup).encode() + b"\n"
    for command, payload in commands:
        fields = {**command, "bytes": len(payload), "limit_s": 60}
        lines += json.dumps(fields).encode() + b"\n" + payload
    answers = io.BytesIO()
    agent.main(io.BytesIO(lines), answers)
    greeting, *others = answers.getvalue().decode().splitlines()[1:]
    assert greeting.startswith(agent.GREETING)
    return [json.loads(each) for each in (greeting[len(agent.GREETING) :], *others)], alarms


def load(number: int, model: bytes, **changed: Any) -> tuple[dict[str, Any], bytes]:
    command = {
        "do": "load",
        "id": number,
        "sha256": hashlib.sha256(model).hexdigest(),
        "shape": IMAGES.shape,
        "seed": [0, number],
    }
    return {**command, **changed}, model


def test_commands_are_answered_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx_from_module(nn.Conv2d(3, 4, 1).eval(), IMAGES.shape).SerializeToString()
    commands: list[tuple[dict[str, Any], bytes]] = [
        load(0, model),
        load(1, b"junk"),
        load(2, model, sha256="of something else"),
        load(3, model, shape=[1, 5, 4, 4]),
        ({"do": "prepare", "ids": [0], "warmup_calls": 1, "min_sample_us": 50}, b""),
        ({"do": "visit", "order": [[0, 3, 2], [0, 2, 1]]}, b""),
        ({"do": "state"}, b""),
        ({"do": "forget"}, b""),
        ({"do": "visit", "order": [[0, 1, 1]]}, b""),
    ]
    answers, alarms = served(monkeypatch, commands)
    greeting, good, junk, changed, misfit, prepared, visited, state, forgotten, unknown = answers
    assert greeting["packages"]["onnxruntime"] == ort.__version__
    assert good == {"id": 0, "rejected": ""}
    assert junk["rejected"]
    assert "its hash is another" in changed["error"]
    assert "dimension" in misfit["rejected"]  # it compiles, but its first call fails
    assert prepared["sample_us"] > 0
    assert prepared["span"] >= 1
    assert [len(samples) for samples in visited["samples_us"]] == [3, 2]
    assert min(min(samples) for samples in visited["samples_us"]) > 0
    assert visited["state"].keys() == state["state"].keys() == agent.machine_state().keys()
    assert forgotten == {"held": 0}
    assert unknown == {"error": "KeyError: 0"}
    assert alarms.count(60 + agent._GRACE_S) == len(commands)
    assert alarms[-1] == 0  # none is left behind


def test_a_runtime_that_is_not_there_is_the_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    answers, _ = served(monkeypatch, [], runtime="tensorrt")
    assert [each["missing"] for each in answers] == ["tensorrt"]


class FakeCuda:
    """Stands in for NVIDIA's library: counts up handles, and keeps an account of calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.handles = 100

    def __getattr__(self, function: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(function)
            first = getattr(arguments[0], "_obj", None) if arguments else None
            if function == "cuEventElapsedTime":
                arguments[0]._obj.value = 2.5
            elif function == "cuDeviceGetName":
                arguments[0].value = b"Some GPU"
            elif function == "cuDriverGetVersion":
                arguments[0]._obj.value = 12_060
            elif isinstance(first, ctypes.c_void_p):
                self.handles += 1
                first.value = self.handles
            elif function == "cuStreamEndCapture":
                arguments[1]._obj.value = 7
            return 0

        return call


class FakeTensorRT(SimpleNamespace):
    """As much of TensorRT as the agent uses, which writes down what it is asked."""

    def __init__(self) -> None:
        asked: list[Any] = []
        shapes = {"images": (1, 3, 4, 4), "logits": (1, 10)}

        class Logger:
            Severity = SimpleNamespace(ERROR=1)

        class Parser:
            num_errors = 1

            def __init__(self, network: Any, log: Any) -> None:
                pass

            def parse(self, model: bytes) -> bool:
                return model != b"bad"

            def get_error(self, index: int) -> str:
                return "no kernel for Frobnicate"

        def execute(stream: int) -> bool:
            asked.append("execute")
            return True

        context = SimpleNamespace(
            set_tensor_address=lambda name, address: asked.append((name, address)),
            execute_async_v3=execute,
        )
        engine = SimpleNamespace(
            create_execution_context=lambda: context,
            num_io_tensors=2,
            get_tensor_name=list(shapes).__getitem__,
            get_tensor_mode=lambda name: name == "images",
            get_tensor_shape=shapes.__getitem__,
        )
        config = SimpleNamespace(
            clear_flag=lambda flag: asked.append(("clear", flag)),
            create_timing_cache=lambda content: content,
            set_timing_cache=lambda cache, ignore: asked.append(("timings", cache)),
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: bytearray(b"timings")),
        )
        builder = SimpleNamespace(
            create_network=lambda flags: asked.append(("network", flags)),
            create_builder_config=lambda: config,
            build_serialized_network=lambda network, config: b"plan",
        )
        super().__init__(
            asked=asked,
            ILogger=Logger,
            Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
            Builder=lambda log: builder,
            OnnxParser=Parser,
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=3),
            BuilderFlag=SimpleNamespace(TF32="TF32"),
            TensorIOMode=SimpleNamespace(INPUT=True),
            __version__="10.3.0",
        )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeTensorRT, FakeCuda]:
    trt, cuda = FakeTensorRT(), FakeCuda()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: cuda)
    monkeypatch.setenv("CUDA_CACHE_DISABLE", "")  # the agent sets it: to be undone
    return trt, cuda


def test_tensorrt_replays_a_graph_between_events(gpu: tuple[FakeTensorRT, FakeCuda]) -> None:
    trt, cuda = gpu
    compile_, packages, device = agent._tensorrt(1)
    assert packages["tensorrt"] == "10.3.0"
    assert device["name"] == "Some GPU"
    assert device["driver"]
    sample = compile_(b"model", IMAGES)
    assert ("network", 1 << 3) in trt.asked  # strongly typed
    assert ("clear", "TF32") in trt.asked
    assert trt.asked.count("execute") == 2  # once before, once within the capture
    assert cuda.calls.count("cuStreamBeginCapture_v2") == 1

    cuda.calls.clear()
    assert sample(3) == 2.5e6
    record, launch = "cuEventRecord", "cuGraphLaunch"
    assert [call for call in cuda.calls if call in (record, launch)] == [
        launch, record, launch, launch, launch, record,
    ]  # fmt: skip

    cuda.calls.clear()
    del sample
    gc.collect()
    assert cuda.calls.count("cuMemFree_v2") == 2
    assert {"cuGraphExecDestroy", "cuEventDestroy_v2"} <= set(cuda.calls)


def test_tensorrt_shares_timings_and_says_why_it_refuses(
    gpu: tuple[FakeTensorRT, FakeCuda],
) -> None:
    trt, _ = gpu
    compile_, _, _ = agent._tensorrt(1)
    held = [compile_(b"model", IMAGES) for _ in range(2)]
    caches = [entry[1] for entry in trt.asked if entry[0] == "timings"]
    assert caches == [b"", b"timings"]
    assert len(held) == 2
    with pytest.raises(ValueError, match="no kernel for Frobnicate"):
        compile_(b"bad", IMAGES)


def test_tensorrt_is_used_by_the_names_that_all_its_versions_have() -> None:
    used = {
        ast.unparse(node).removeprefix("trt.")
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("trt.")
    }
    known = {name.rpartition(".")[0] for name in TRT_NAMES} | set(TRT_NAMES)
    parents = {name.rpartition(".")[0] for name in known}
    assert {"Builder", "BuilderFlag.TF32"} <= used
    assert used - {"ILogger.__init__"} <= known | parents


def test_no_driver_is_told_as_something_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT())
    monkeypatch.setenv("CUDA_CACHE_DISABLE", "")  # the agent sets it: to be undone
    with pytest.raises(ImportError, match="cannot open") as caught:
        agent._tensorrt(1)
    assert caught.value.name == "libcuda.so.1"
