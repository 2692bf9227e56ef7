"""The runner's dealings with TensorRT, pycuda and the driver, without any of them.

A fake GPU stands in for all three. It knows nothing of speed, and nothing here says that the runner
has run on hardware. But it is strict: it computes only when it is waited for, from and to the
addresses that it was given, and stops at any use that NVIDIA's documentation forbids.
"""

from __future__ import annotations

import logging
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from torch import nn

from hwnas.core.artifacts import sha256_of
from hwnas.core.errors import (
    ArtifactError,
    DataError,
    ExportError,
    HwnasError,
    MissingDependencyError,
    TargetError,
)
from hwnas_export import cuda_driver as cuda_driver_module
from hwnas_export import device_buffers, tensorrt_runner
from hwnas_export.cuda_driver import CudaDriver, CudaGraph
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.precision import onnx_in_precision
from hwnas_export.tensorrt_engine import EngineSettings, engine_from_onnx
from hwnas_export.tensorrt_plan import GivenPlan
from hwnas_export.tensorrt_runner import TensorRTRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from hwnas_export.runner import Runner

Array = NDArray[np.float32]

COMPUTE_US, COPY_US = 3.0, 100.0  # of the fake GPU's own clock


class FakeGpu:
    """Memory by address, one queue, one clock, and a log of what was asked of it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.memory: dict[int, Array] = {}
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.graphs_made = 0
        self.clock_us = 0.0
        self.contexts = 0
        self.count = 1
        self.next_address = 4096
        self.capturable = True
        self.takes_plans = True

    def enqueue(self, work: Callable[[], None]) -> None:
        assert self.contexts, "no context is current"
        (self.queue if self.captured is None else self.captured).append(work)

    def keep(self, graph: list[Callable[[], None]]) -> int:
        self.graphs_made += 1
        self.graphs[self.graphs_made] = graph
        return self.graphs_made

    def synchronize(self) -> None:
        assert self.captured is None, "waiting is forbidden during a capture"
        while self.queue:
            self.queue.pop(0)()


def pycuda_on(gpu: FakeGpu) -> types.ModuleType:
    """Return what `pycuda.driver` is to the runner."""

    class Error(Exception):
        pass

    class OutOfMemory(Error):
        pass

    class Context:
        def push(self) -> None:
            gpu.contexts += 1
            gpu.log.append("push")

        def pop(self) -> None:
            gpu.contexts -= 1
            assert gpu.contexts or not gpu.memory, "memory is still held"
            assert not gpu.queue, "work is still queued"
            gpu.log.append("pop")

    class Device:
        def __init__(self, ordinal: int) -> None:
            assert ordinal == 0

        def retain_primary_context(self) -> Context:
            gpu.log.append("retain primary context")
            return Context()

    class Stream:
        handle = 77

        def synchronize(self) -> None:
            gpu.synchronize()

    class Event:
        time_us: float | None = None

        def record(self, stream: Stream) -> None:
            def note() -> None:
                self.time_us = gpu.clock_us

            self.time_us = None
            gpu.enqueue(note)

        def synchronize(self) -> None:
            gpu.synchronize()

        def time_since(self, earlier: Event) -> float:
            assert self.time_us is not None
            assert earlier.time_us is not None
            return (self.time_us - earlier.time_us) / 1e3  # milliseconds

    class Memory:
        def __init__(self, nbytes: int) -> None:
            if nbytes > 2**20:
                raise OutOfMemory("out of memory")
            self.address = gpu.next_address
            gpu.next_address += nbytes + 512
            gpu.memory[self.address] = np.full(nbytes // 4, np.nan, np.float32)

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            assert not gpu.queue, "memory is given back while work is queued"
            del gpu.memory[self.address]

    def copy(work: Callable[[], None]) -> None:
        assert gpu.captured is None, "the runner captures no copies"

        def timed() -> None:
            gpu.clock_us += COPY_US
            work()

        gpu.enqueue(timed)

    def htod(address: int, host: Array, stream: Stream) -> None:
        copy(lambda: gpu.memory[address].__setitem__(slice(None), host.ravel()))

    def dtoh(host: Array, address: int, stream: Stream) -> None:
        copy(lambda: host.__setitem__(..., gpu.memory[address].reshape(host.shape)))

    module = types.ModuleType("pycuda.driver")
    module.__dict__.update(
        Error=Error,
        MemoryError=OutOfMemory,
        Device=Device,
        Stream=Stream,
        Event=Event,
        init=lambda: gpu.log.append("init"),
        mem_alloc=Memory,
        pagelocked_empty=lambda shape, dtype: np.full(shape, np.nan, dtype),
        memcpy_htod_async=htod,
        memcpy_dtoh_async=dtoh,
    )
    return module


def driver_on(gpu: FakeGpu) -> types.SimpleNamespace:
    """Return what `libcuda` is to ctypes."""

    def give(pointer: Any, value: object) -> int:
        pointer._obj.value = value
        return 0

    def name(buffer: Any, size: int, device: object) -> int:
        buffer.value = b"Fake GPU"
        return 0

    def begin(stream: int, mode: int) -> int:
        assert gpu.captured is None
        assert (stream, mode) == (77, 1)
        assert not gpu.queue, "the stream must be idle before a capture"
        gpu.captured = []
        gpu.log.append("begin capture")
        return 0

    def end(stream: int, graph: Any) -> int:
        captured, gpu.captured = gpu.captured, None
        gpu.log.append("end capture")
        if captured is None or not gpu.capturable:
            return 901
        return give(graph, gpu.keep(captured))

    def instantiate(executable: Any, graph: Any, flags: int) -> int:
        return give(executable, gpu.keep(gpu.graphs[graph.value]))

    def launch(executable: Any, stream: int) -> int:
        for work in gpu.graphs[executable.value]:
            gpu.enqueue(work)
        gpu.log.append(f"launch {len(gpu.graphs[executable.value])} calls")
        return 0

    def destroy(graph: Any) -> int:
        del gpu.graphs[graph.value]
        return 0

    functions: dict[str, Callable[..., int]] = {
        "cuInit": lambda flags: 0,
        "cuGetErrorString": lambda code, text: give(text, b"capture was invalidated"),
        "cuDriverGetVersion": lambda version: give(version, 13_000),
        "cuDeviceGetCount": lambda count: give(count, gpu.count),
        "cuDeviceGet": lambda device, ordinal: give(device, 0),
        "cuDeviceGetName": name,
        "cuDeviceGetAttribute": lambda value, which, device: give(value, {75: 9, 76: 0}[which]),
        "cuStreamBeginCapture_v2": begin,
        "cuStreamEndCapture": end,
        "cuGraphInstantiateWithFlags": instantiate,
        "cuGraphLaunch": launch,
        "cuGraphExecDestroy": destroy,
        "cuGraphDestroy": destroy,
    }

    class Function:
        argtypes: tuple[Any, ...] = ()

        def __init__(self, function: Callable[..., int]) -> None:
            self.function = function

        def __call__(self, *arguments: Any) -> int:
            assert len(arguments) == len(self.argtypes)
            return self.function(*arguments)

    return types.SimpleNamespace(
        **{name: Function(function) for name, function in functions.items()}
    )


def tensorrt_on(gpu: FakeGpu) -> types.ModuleType:
    """Return what `tensorrt` is to the runner: a plan is the ONNX model itself."""

    class Logger:
        Severity = types.SimpleNamespace(ERROR=1)

    class Config:
        def __init__(self) -> None:
            self.cache: bytes | None = None
            self.cleared: list[str] = []
            self.profiles: list[Any] = []

        def clear_flag(self, flag: str) -> None:
            self.cleared.append(flag)

        def create_timing_cache(self, content: bytes) -> Cache | None:
            return Cache(content)

        def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
            assert ignore_mismatch is False
            if cache.content == b"of another driver":
                return False
            gpu.log.append(f"timing cache {cache.content!r}")
            self.cache = cache.content
            return True

        def get_timing_cache(self) -> Cache:
            assert self.cache is not None
            return Cache(self.cache + b"+timed")

        def add_optimization_profile(self, profile: Any) -> int:
            self.profiles.append(profile)
            return 0

    class Cache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def serialize(self) -> bytes:
            return self.content

        def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
            self.content += b"+" + other.content
            return True

    class Profile:
        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            self.shapes = shapes

    class Network:
        model: onnx.ModelProto
        num_inputs = 1

        def get_input(self, index: int) -> types.SimpleNamespace:
            return types.SimpleNamespace(name="images", shape=shape_of(self.model.graph.input[0]))

    class Parser:
        num_errors = 0

        def __init__(self, network: Network, log: Any) -> None:
            self.network = network

        def parse(self, model: bytes) -> bool:
            self.network.model = onnx.load_model_from_string(model)
            return True

    class Builder:
        def __init__(self, log: Any) -> None:
            assert gpu.count, "TensorRT is not let near a machine without a GPU"

        def create_network(self, flags: int) -> Network:
            assert flags == 1 << 1
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes:
            assert config.cleared == ["tf32"]
            assert config.__dict__["builder_optimization_level"] == 3
            gpu.log.append("build")
            for profile in config.profiles:
                network.model.metadata_props.add(
                    key="batches", value=",".join(str(shape[0]) for shape in profile.shapes)
                )
            return bytes(network.model.SerializeToString())

    class ExecutionContext:
        shape: tuple[int, ...]
        ran: bool
        frozen: bool

        def __init__(self, engine: Engine) -> None:
            self.engine = engine
            self.addresses: dict[str, int] = {}
            self.shape = ()
            self.ran = False
            self.frozen = False

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            assert not self.frozen, "a captured context must not be changed"
            smallest, _, largest = self.engine.batches
            self.shape = shape
            return name == "images" and smallest <= shape[0] <= largest

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            assert name == "logits"
            return (self.shape[0], *self.engine.get_tensor_shape(name)[1:])

        def set_tensor_address(self, name: str, address: int) -> bool:
            assert not self.frozen, "a captured context must not be changed"
            assert address in gpu.memory
            self.addresses[name] = address
            return True

        def execute_async_v3(self, handle: int) -> bool:
            assert handle == 77
            assert set(self.addresses) == {"images", "logits"}
            if gpu.captured is not None:
                assert self.ran, "a first call must come before a capture"
                self.frozen = True
            self.ran = True
            source, result = self.addresses["images"], self.addresses["logits"]

            def work() -> None:
                gpu.clock_us += COMPUTE_US
                images = gpu.memory[source].reshape(self.shape)
                assert np.isfinite(images).all(), "computed from memory that nobody wrote"
                gpu.memory[result][:] = self.engine.compute(images).ravel()

            gpu.enqueue(work)
            return True

    class Engine:
        num_io_tensors = 2

        def __init__(self, plan: bytes) -> None:
            self.model = onnx.load_model_from_string(plan)
            marks = {entry.key: entry.value for entry in self.model.metadata_props}
            fixed = 3 * (self.get_tensor_shape("images")[0],)
            batches = marks.get("batches")
            self.batches = tuple(map(int, batches.split(","))) if batches else fixed
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = ort.InferenceSession(plan, options)

        def compute(self, images: Array) -> Array:
            return np.asarray(self.session.run(None, {"images": images})[0])

        def get_tensor_name(self, index: int) -> str:
            return ("images", "logits")[index]

        def get_tensor_mode(self, name: str) -> str:
            return {"images": "input", "logits": "output"}[name]

        def get_tensor_dtype(self, name: str) -> str:
            return "float"

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            graph = self.model.graph
            return shape_of({"images": graph.input, "logits": graph.output}[name][0])

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            return [(batch,) for batch in self.batches]

        def create_execution_context(self) -> ExecutionContext:
            gpu.log.append("context")
            return ExecutionContext(self)

    class Runtime:
        engine_host_code_allowed: bool | None = None

        def __init__(self, log: Any) -> None:
            self.errors = log.errors

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            assert self.engine_host_code_allowed is False
            assert gpu.contexts
            gpu.log.append("deserialize")
            if not gpu.takes_plans:
                self.errors.append("the plan has a wrong magic number")
                return None
            return Engine(plan)

    module = types.ModuleType("tensorrt")
    module.__dict__.update(
        __version__="10.16.1",
        Builder=Builder,
        BuilderFlag=types.SimpleNamespace(TF32="tf32"),
        DataType=types.SimpleNamespace(FLOAT="float"),
        ILogger=Logger,
        NetworkDefinitionCreationFlag=types.SimpleNamespace(STRONGLY_TYPED=1),
        OnnxParser=Parser,
        Runtime=Runtime,
        TensorIOMode=types.SimpleNamespace(INPUT="input"),
    )
    return module


def shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    sizes = value.type.tensor_type.shape.dim
    return tuple(-1 if size.dim_param else size.dim_value for size in sizes)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """A machine on which the fake GPU is all there is."""
    fake = FakeGpu()
    pycuda = types.ModuleType("pycuda")
    pycuda.__path__ = []
    monkeypatch.setitem(sys.modules, "pycuda", pycuda)
    monkeypatch.setitem(sys.modules, "pycuda.driver", pycuda_on(fake))
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_on(fake))
    monkeypatch.setattr(cuda_driver_module, "CDLL", lambda name: driver_on(fake))
    cuda_driver_module.cuda_driver.cache_clear()
    device_buffers._primary_context.cache_clear()
    yield fake
    cuda_driver_module.cuda_driver.cache_clear()
    device_buffers._primary_context.cache_clear()
    assert fake.contexts == 0, "a context was left pushed"
    assert not fake.graphs, "a graph was left"
    assert not fake.memory, "memory was left"


def module() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx_from_module(module(), (2, 3, 8, 8))


@pytest.fixture(scope="module")
def free_model() -> onnx.ModelProto:
    return onnx_from_module(module(), (2, 3, 8, 8), dynamic_batch=True)


def images_of(batch: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((batch, 3, 8, 8), dtype=np.float32)


def expected(model: onnx.ModelProto, images: Array) -> Array:
    session = ort.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {"images": images})[0])


def close_to(runner: Runner, model: onnx.ModelProto, images: Array) -> None:
    outputs = runner.infer(images)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected(model, images), atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.usefixtures("gpu")
def test_it_carries_inputs_and_outputs(model: onnx.ModelProto, precision: str) -> None:
    converted = onnx_in_precision(model, precision, symmetric=True)
    runner = TensorRTRunner(converted.SerializeToString(), precision=precision, threads=8)
    assert runner.name == f"tensorrt-{precision}"
    with runner:
        assert runner.input_shape == (2, 3, 8, 8)
        for seed in range(3):
            close_to(runner, converted, images_of(2, seed))
        first = runner.infer(images_of(2, 0))
        runner.infer(images_of(2, 1))
        np.testing.assert_allclose(first, expected(converted, images_of(2, 0)), atol=1e-5)


@pytest.mark.usefixtures("gpu")
def test_a_free_batch_takes_any_of_the_profile(free_model: onnx.ModelProto) -> None:
    settings = EngineSettings(batches=(1, 2, 4))
    with TensorRTRunner(free_model.SerializeToString(), settings=settings) as runner:
        assert runner.input_shape == (None, 3, 8, 8)
        for batch in (1, 4, 2, 4, 1):
            close_to(runner, free_model, images_of(batch, batch))
        with pytest.raises(DataError, match="takes batches of 1 to 4, not 5"):
            runner.infer(images_of(5))


@pytest.mark.usefixtures("gpu")
def test_each_call_keeps_its_own_input(free_model: onnx.ModelProto) -> None:
    with TensorRTRunner(free_model.SerializeToString()) as runner:
        one, other, wide = images_of(2, 1), images_of(2, 2), images_of(3, 3)
        calls = [(runner.call_on(images), images) for images in (one, other, wide)]
        sample = runner.sampler_on(one)
        for call, images in (*calls, *reversed(calls)):
            close_to(runner, free_model, images_of(2, 4))
            sample(2)
            np.testing.assert_allclose(np.asarray(call()), expected(free_model, images), atol=1e-5)


def test_a_sample_is_the_gpus_own_time_of_replayed_graphs(
    gpu: FakeGpu, model: onnx.ModelProto
) -> None:
    with TensorRTRunner(model.SerializeToString()) as runner:
        sample = runner.sampler_on(images_of(2))
        for calls in (1, 2, 50, 600):
            gpu.log.clear()
            # Neither a copy, nor a call that goes ahead, is in it.
            assert sample(calls) == pytest.approx(calls * COMPUTE_US * 1e3)
            captures = {"begin capture", "end capture"}
            launches = [line for line in gpu.log if line not in captures]
            assert all(line.startswith("launch ") for line in launches)
            assert sum(int(line.split()[1]) for line in launches[1:]) == calls
            assert gpu.queue == []  # it returns when all is done
        assert len(gpu.graphs) <= 4


def test_what_cannot_be_captured_is_queued_and_said(
    gpu: FakeGpu, model: onnx.ModelProto, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.capturable = False
    with TensorRTRunner(model.SerializeToString()) as runner:
        with caplog.at_level(logging.WARNING):
            sample = runner.sampler_on(images_of(2))
        assert "cannot be captured" in caplog.text
        assert "capture was invalidated (cuStreamEndCapture: 901)" in caplog.text
        assert gpu.captured is None
        gpu.log.clear()
        assert sample(7) == pytest.approx(7 * COMPUTE_US * 1e3)
        assert gpu.log == []
        close_to(runner, model, images_of(2, 5))


def test_an_engine_that_knows_it_cannot_be_captured_is_not_tried(
    gpu: FakeGpu, model: onnx.ModelProto, caplog: pytest.LogCaptureFixture
) -> None:
    with TensorRTRunner(model.SerializeToString()) as runner:
        kind = type(runner._engine.create_execution_context())
        kind.is_stream_capturable = lambda context, handle: False
        sample = runner.sampler_on(images_of(2))
        assert "begin capture" not in gpu.log
        assert sample(3) == pytest.approx(3 * COMPUTE_US * 1e3)
    assert "TensorRT says" in caplog.text


def test_everything_is_taken_and_given_back_in_order(gpu: FakeGpu, model: onnx.ModelProto) -> None:
    runner = TensorRTRunner(model.SerializeToString())
    assert gpu.log == []  # nothing is touched before it is active
    runner.activate()
    assert gpu.log == ["build", "init", "retain primary context", "push", "deserialize"]
    runner.infer(images_of(2))
    runner.sampler_on(images_of(2))(3)
    gpu.log.clear()
    runner.close()
    assert gpu.log == ["pop"]
    assert gpu.graphs == {}
    runner.activate()  # and may be active again, on the same context
    assert "retain primary context" not in gpu.log
    close_to(runner, model, images_of(2))
    runner.close()


def test_an_interrupted_sample_leaves_nothing_queued(
    gpu: FakeGpu, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TensorRTRunner(model.SerializeToString()) as runner:
        sample = runner.sampler_on(images_of(2))
        replay = CudaGraph.replay
        replays = iter([replay, replay])

        def interrupted(graph: CudaGraph) -> None:
            again = next(replays, None)
            if again is None:
                raise KeyboardInterrupt
            again(graph)

        monkeypatch.setattr(CudaGraph, "replay", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sample(600)
        assert gpu.queue
    assert gpu.log[-1] == "pop"


def test_two_runners_share_the_context(gpu: FakeGpu, model: onnx.ModelProto) -> None:
    first, second = (TensorRTRunner(model.SerializeToString()) for _ in range(2))
    first.activate()
    second.activate()
    assert gpu.log.count("retain primary context") == 1
    close_to(first, model, images_of(2, 1))
    second.close()
    close_to(first, model, images_of(2, 2))
    first.close()


def test_a_failed_activation_leaves_nothing(gpu: FakeGpu, model: onnx.ModelProto) -> None:
    gpu.takes_plans = False
    runner = TensorRTRunner(model.SerializeToString())
    with pytest.raises(ExportError, match="wrong magic number"):
        runner.activate()
    assert gpu.log[-2:] == ["deserialize", "pop"]
    gpu.takes_plans = True
    with runner:
        close_to(runner, model, images_of(2))


@pytest.mark.usefixtures("gpu")
def test_too_little_memory_is_said_and_leaves_nothing(free_model: onnx.ModelProto) -> None:
    settings = EngineSettings(batches=(1, 1, 4096))
    with TensorRTRunner(free_model.SerializeToString(), settings=settings) as runner:
        with pytest.raises(TargetError, match=r"no memory is left for 4096x3x8x8 .*out of memory"):
            runner.infer(images_of(4096))
        close_to(runner, free_model, images_of(2))


def test_a_failing_capture_ends_it(gpu: FakeGpu) -> None:
    driver = CudaDriver(driver_on(gpu))
    gpu.contexts = 1

    def work() -> None:
        gpu.enqueue(lambda: None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        driver.capture(77, work)
    assert gpu.captured is None
    assert gpu.graphs == {}
    gpu.contexts = 0


def test_the_driver_describes_the_gpu(gpu: FakeGpu) -> None:
    device = CudaDriver(driver_on(gpu)).device()
    assert device.name == "Fake GPU"
    assert device.compute_capability == (9, 0)
    assert device.driver_cuda == "13.0"


# Refusals


@pytest.mark.parametrize(("own", "asked"), [("fp32", "fp16"), ("fp16", "fp32"), ("fp16", "int8")])
def test_a_model_of_another_precision_is_refused(
    gpu: FakeGpu, model: onnx.ModelProto, own: str, asked: str
) -> None:
    converted = onnx_in_precision(model, own).SerializeToString()
    with pytest.raises(ExportError, match=f"the model is in {own}, not in {asked}") as caught:
        TensorRTRunner(converted, precision=asked).activate()
    assert "onnx_in_precision" in caught.value.hint
    assert gpu.log == []


def test_unsigned_activations_are_refused(gpu: FakeGpu, model: onnx.ModelProto) -> None:
    converted = onnx_in_precision(model, "int8").SerializeToString()
    with pytest.raises(ExportError, match="zero points, which TensorRT refuses") as caught:
        TensorRTRunner(converted, precision="int8").activate()
    assert "symmetric=True" in caught.value.hint
    assert gpu.log == []


@pytest.mark.usefixtures("gpu")
def test_an_unknown_precision_and_junk_are_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(TargetError, match="no target tensorrt-bf16") as caught:
        TensorRTRunner(model.SerializeToString(), precision="bf16")
    assert "tensorrt-fp16" in caught.value.hint
    with pytest.raises(ExportError, match="cannot parse the model"):
        TensorRTRunner(b"junk").activate()


@pytest.mark.parametrize("flavor", ["tensorrt", "tensorrt_rtx"])
def test_no_gpu_is_said_before_tensorrt_is_touched(
    gpu: FakeGpu, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, flavor: str
) -> None:
    fake = types.ModuleType(flavor)
    fake.__dict__.update(vars(sys.modules["tensorrt"]), __name__=flavor)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, flavor, fake)
    gpu.count = 0
    with pytest.raises(TargetError, match="the NVIDIA driver sees no GPU") as caught:
        TensorRTRunner(model.SerializeToString()).activate()
    assert "NVIDIA GPU" in caught.value.hint
    assert gpu.log == []


def test_no_driver_is_said_before_tensorrt_is_touched(
    gpu: FakeGpu, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_driver_module, "CDLL", missing)
    with pytest.raises(TargetError, match="no NVIDIA driver here"):
        TensorRTRunner(model.SerializeToString()).activate()
    assert gpu.log == []


@pytest.mark.parametrize("package", ["tensorrt", "pycuda"])
def test_a_missing_package_names_the_line_that_installs_it(
    gpu: FakeGpu, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    names = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "pycuda", "pycuda.driver")
    for name in names:
        if name.startswith(package):
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r'pip install "hwnas\[tensorrt\]"'):
        TensorRTRunner(model.SerializeToString()).activate()
    assert gpu.log == []


def test_a_pycuda_that_cannot_be_loaded_says_why(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(TargetError, match="pycuda is installed, but cannot be loaded"):
        device_buffers.open_stream()
    assert gpu.log == []


# Engines that were built before: kept ones, and given ones


@pytest.fixture
def plan(gpu: FakeGpu, model: onnx.ModelProto) -> bytes:
    """What the fake builds from the model."""
    built = bytes(engine_from_onnx(model.SerializeToString()))
    gpu.log.clear()
    return built


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """A process of its own would not have the fake: test_tensorrt_plan.py has real ones."""
    plans: list[bytes] = []
    monkeypatch.setattr(tensorrt_runner, "probe_plan", plans.append)
    return plans


def test_a_kept_engine_is_run_in_place_of_a_new_one(
    gpu: FakeGpu, model: onnx.ModelProto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        with TensorRTRunner(model.SerializeToString(), cache=tmp_path) as runner:
            close_to(runner, model, images_of(2))
    assert gpu.log.count("build") == 1
    assert gpu.log.count("deserialize") == 2
    (kept,) = tmp_path.glob("*.plan")
    kept.write_bytes(b"junk")
    with TensorRTRunner(model.SerializeToString(), cache=tmp_path) as runner:
        close_to(runner, model, images_of(2))
    assert gpu.log.count("build") == 2
    assert "not what its sidecar describes" in caplog.text


def test_a_given_plan_is_probed_and_run(
    gpu: FakeGpu, model: onnx.ModelProto, plan: bytes, probed: list[bytes]
) -> None:
    given = GivenPlan(content=plan, sha256=sha256_of(plan), compute_capabilities=("8.9", "9.0"))
    with TensorRTRunner(model.SerializeToString(), plan=given) as runner:
        close_to(runner, model, images_of(2))
    assert "build" not in gpu.log
    assert probed == [plan]


@pytest.mark.parametrize(
    ("digest", "capabilities", "kind", "words"),
    [
        ("0" * 64, ("9.0",), ArtifactError, "its SHA-256 differs"),
        ("", ("8.6", "8.9"), TargetError, "for GPUs of .* 8.6, 8.9, and Fake GPU has 9.0"),
    ],
    ids=["swapped", "for another GPU"],
)
def test_another_plan_is_refused_before_it_is_deserialized(
    gpu: FakeGpu,
    model: onnx.ModelProto,
    plan: bytes,
    probed: list[bytes],
    digest: str,
    capabilities: tuple[str, ...],
    kind: type[HwnasError],
    words: str,
) -> None:
    given = GivenPlan(
        content=plan, sha256=digest or sha256_of(plan), compute_capabilities=capabilities
    )
    with pytest.raises(kind, match=words) as caught:
        TensorRTRunner(model.SerializeToString(), plan=given).activate()
    assert "hwnas rebuild" in caught.value.hint
    assert gpu.log == []
    assert probed == []


# The timing cache, which TensorRT for RTX does not use: so by the fake


def build(model: onnx.ModelProto, path: Path) -> None:
    with TensorRTRunner(model.SerializeToString(), timing_cache=path):
        pass


def test_engines_share_their_timings(gpu: FakeGpu, model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "made" / "timing.cache"
    build(model, path)
    build(model, path)
    caches = [line for line in gpu.log if line.startswith("timing cache")]
    assert caches == ["timing cache b''", "timing cache b'+timed'"]
    assert path.read_bytes().endswith(b"\n+timed+timed")
    assert [each.name for each in path.parent.iterdir()] == ["timing.cache"]


def test_what_others_timed_meanwhile_is_kept(
    gpu: FakeGpu, model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwnas_export.tensorrt_engine import timing_cache_owner
    from hwnas_export.tensorrt_timing_cache import write_timing_cache

    path = tmp_path / "timing.cache"
    builder = sys.modules["tensorrt"].__dict__["Builder"]
    build_plan = builder.build_serialized_network

    def while_another_writes(*arguments: Any) -> bytes:
        write_timing_cache(path, timing_cache_owner("10.16.1"), b"theirs")
        return bytes(build_plan(*arguments))

    monkeypatch.setattr(builder, "build_serialized_network", while_another_writes)
    build(model, path)
    assert path.read_bytes().endswith(b"\n+timed+theirs")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"junk", "is not a timing cache of hwnas"),
        (b"", "is not a timing cache of hwnas"),
        (b'{"owner": "TensorRT 10.3.0 on another GPU", "sha256": "HASH"}\nold', "belongs to"),
        (b'{"owner": "OWNER", "sha256": "HASH"}\nold, and edited', "is broken"),
        (b'{"owner": "OWNER", "sha256": "OTHER"}\nof another driver', "does not take"),
    ],
    ids=["junk", "empty", "another device", "broken", "refused"],
)
def test_a_timing_cache_of_no_use_is_passed_over_with_a_warning(
    gpu: FakeGpu,
    model: onnx.ModelProto,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    content: bytes,
    reason: str,
) -> None:
    import hashlib

    owner = b"TensorRT 10.16.1 on Fake GPU (compute capability 9.0)"
    content = content.replace(b"OWNER", owner)
    content = content.replace(b"HASH", hashlib.sha256(b"old").hexdigest().encode())
    content = content.replace(b"OTHER", hashlib.sha256(b"of another driver").hexdigest().encode())
    path = tmp_path / "timing.cache"
    path.write_bytes(content)
    build(model, path)
    assert reason in caplog.text
    assert "timing cache b''" in gpu.log
    assert path.read_bytes().endswith(b"\n+timed")
    caplog.clear()
    build(model, path)  # it has been put right
    assert caplog.text == ""


def test_the_source_says_that_it_has_not_run_on_hardware() -> None:
    assert "Not yet run on hardware" in str(tensorrt_runner.__doc__)
