from __future__ import annotations

import ast
import base64
import ctypes
import errno
import fcntl
import gc
import hashlib
import io
import json
import os
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
from hwnas_profilers.remote_packing import packed

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
    open_, packages, _ = agent._onnxruntime(threads)
    open_(model, None)
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


def test_images_are_answered_with_what_the_model_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = onnx_from_module(nn.Conv2d(3, 4, 1).eval(), IMAGES.shape, dynamic_batch=True)
    model = exported.SerializeToString()
    images = np.random.default_rng(0).random((5, 3, 4, 4), dtype=np.float32)
    packing, payload = packed(images)
    commands: list[tuple[dict[str, Any], bytes]] = [
        load(0, model),
        ({"do": "infer", "id": 0, **packing}, payload),
        ({"do": "bind", "id": 0, "as": 7, **packing}, payload),
        ({"do": "call", "id": 7, "calls": 3}, b""),
        ({"do": "forget"}, b""),
        ({"do": "infer", "id": 0, **packing}, payload),
    ]
    answers, _ = served(monkeypatch, commands)
    greeting, _, inferred, bound, called, forgotten, unknown = answers
    assert greeting["wire"] == agent.WIRE
    with OnnxRuntimeRunner(model) as runner:
        expected = runner.infer(images)
    given = np.frombuffer(base64.b64decode(inferred["values"]), "<f4").reshape(inferred["shape"])
    assert np.array_equal(given, expected)
    assert bound == {"id": 7, "rejected": ""}
    assert called["elapsed_ns"] > 0
    assert forgotten == {"held": 0}
    assert unknown == {"error": "KeyError: 0"}


def kept(folder: Path, **files: bytes) -> None:
    listed = [[name, len(each), hashlib.sha256(each).hexdigest()] for name, each in files.items()]
    agent.keep_files(folder, listed, b"".join(files.values()))


def test_what_is_kept_replaces_what_was_kept_before(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    abandoned = tmp_path / ".engine.killed.part"
    abandoned.mkdir()
    kept(folder, **{"SHA256SUMS": b"0  a/model\n", "a/model": b"one"})
    agent.check_room(folder, 10)
    kept(folder, SHA256SUMS=b"0  other\n", other=b"two")
    assert sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")) == [
        "engine", "engine/SHA256SUMS", "engine/other",
    ]  # fmt: skip


def test_an_agent_that_still_writes_is_let_be(tmp_path: Path) -> None:
    writing = tmp_path / ".engine.busy.part"
    writing.mkdir()
    held = os.open(writing, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        kept(tmp_path / "engine", SHA256SUMS=b"")
    finally:
        os.close(held)
    assert writing.is_dir()


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("users' files", "did not put there: notes"),
        ("a file", "a file stands"),
        ("no parent", "there is no folder"),
        ("too much", "bytes are needed"),
    ],
)
def test_a_place_where_nothing_can_be_kept_is_told(what: str, told: str, tmp_path: Path) -> None:
    folder, needed = tmp_path / "engine", 1
    if what == "users' files":
        folder.mkdir()
        (folder / "notes").write_text("mine")
    elif what == "a file":
        folder.write_text("mine")
    elif what == "no parent":
        folder = tmp_path / "nowhere" / "engine"
    else:
        needed = 2**62
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=told):
        agent.check_room(folder, needed)
    if what != "too much":
        with pytest.raises(OSError, match=told):
            kept(folder, SHA256SUMS=b"")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("fails", ["a hash", "a full disk", "the last rename"])
def test_files_are_kept_whole_or_not_at_all(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "engine"
    kept(folder, SHA256SUMS=b"0  model\n", model=b"one")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"another|No space"):  # noqa: PT012
        if fails == "a hash":
            agent.keep_files(folder, [["SHA256SUMS", 1, "0"]], b"x")
        elif fails == "a full disk":
            patch.setattr(os, "fsync", full)
        else:
            rename = Path.rename
            patch.setattr(
                Path, "rename", lambda a, b: full() if a.suffix == ".part" else rename(a, b)
            )
        kept(folder, SHA256SUMS=b"0  model\n", model=b"two")
    assert (folder / "model").read_bytes() == b"one"
    assert [each.name for each in tmp_path.iterdir()] == ["engine"]


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
            set_input_shape=lambda name, shape: shapes.update(
                images=tuple(shape), logits=(shape[0], 10)
            ),
            get_tensor_shape=shapes.__getitem__,
            set_tensor_address=lambda name, address: asked.append((name, address)),
            execute_async_v3=execute,
        )
        engine = SimpleNamespace(
            create_execution_context=lambda: context,
            num_io_tensors=2,
            get_tensor_name=list(shapes).__getitem__,
            get_tensor_mode=lambda name: name == "images",
        )
        profile = SimpleNamespace(
            set_shape=lambda name, *shapes: asked.append(("profile", name, *shapes))
        )
        config = SimpleNamespace(
            add_optimization_profile=lambda added: asked.append(("added", added is profile)),
            clear_flag=lambda flag: asked.append(("clear", flag)),
            create_timing_cache=lambda content: content,
            set_timing_cache=lambda cache, ignore: asked.append(("timings", cache)),
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: bytearray(b"timings")),
        )
        network = SimpleNamespace(
            get_input=lambda index: SimpleNamespace(name="images", shape=(-1, 3, 4, 4))
        )

        def create_network(flags: int) -> Any:
            asked.append(("network", flags))
            return network

        builder = SimpleNamespace(
            create_network=create_network,
            create_optimization_profile=lambda: profile,
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
    open_, packages, device = agent._tensorrt(1)
    assert packages["tensorrt"] == "10.3.0"
    assert device["name"] == "Some GPU"
    assert device["driver"]
    sample = open_(b"model", None).sampler(IMAGES)
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


def test_tensorrt_is_fed_by_batches_of_a_profile(gpu: tuple[FakeTensorRT, FakeCuda]) -> None:
    trt, cuda = gpu
    open_, _, _ = agent._tensorrt(1)
    network = open_(b"model", [1, 8, 64])
    assert ("profile", "images", (1, 3, 4, 4), (8, 3, 4, 4), (64, 3, 4, 4)) in trt.asked
    assert ("added", True) in trt.asked
    cuda.calls.clear()
    assert network.infer(np.repeat(IMAGES, 5, axis=0)).shape == (5, 10)
    order = [call for call in cuda.calls if call in ("cuStreamSynchronize", "cuMemcpyDtoH_v2")]
    assert order == ["cuStreamSynchronize", "cuMemcpyDtoH_v2"]  # not before the work is done
    assert cuda.calls.count("cuMemAlloc_v2") == cuda.calls.count("cuMemFree_v2") == 2


def test_tensorrt_shares_timings_and_says_why_it_refuses(
    gpu: tuple[FakeTensorRT, FakeCuda],
) -> None:
    trt, _ = gpu
    open_, _, _ = agent._tensorrt(1)
    held = [open_(b"model", None).sampler(IMAGES) for _ in range(2)]
    caches = [entry[1] for entry in trt.asked if entry[0] == "timings"]
    assert caches == [b"", b"timings"]
    assert len(held) == 2
    with pytest.raises(ValueError, match="no kernel for Frobnicate"):
        open_(b"bad", None)


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
