"""What runs on the machine that is measured: visits of compiled models, and that machine's state.

This file is two things. `hwnas_profilers` imports it to measure on the machine that it runs on; and
`hwnas_profilers.remote` sends its text over ssh to a board, where it is the whole program. So it is
written for Python 3.8 and needs numpy and a runtime only, and both ways measure with the same code.
Which model is visited when, and when to stop, is decided by `hwnas_profilers.timing`, on the host.

As a program it reads JSON lines from stdin, a model's bytes after the line that announces them, and
writes JSON lines to stdout, beginning with a greeting. It writes no file but where `keep` names a
folder, ends at the end of stdin, and is ended by the system where a command takes far longer than
the host would wait. The TensorRT part is written for TensorRT 10.3 to 11, and has not yet run on
hardware.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import functools
import gc
import glob
import hashlib
import importlib
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
import zlib
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, BinaryIO, Protocol

    Sampler = Callable[[int], float]

    class Network(Protocol):
        """A compiled model: timed on an input that it holds, or fed."""

        def sampler(self, images: Any) -> Sampler:
            """Bind images, and return what times calls on them."""

        def infer(self, images: Any) -> Any:
            """Compute the outputs of images."""

    Open = Callable[[bytes, Any], Network]

MAX_CALLS_PER_SAMPLE = 1_000_000
LEAD_IN_SAMPLES = 3
LEAD_IN_NS = 10_000_000
_PILOT = b"\0" * 16384
_PILOT_TRIES = 3
_SCANS = 20
_MEMORY_BYTES = 4 * 2**20  # more than a core's own cache, less than what cores share
# The Raspberry Pi is the one board that tells everybody of throttling, and here.
_THROTTLE_FILE = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")


def calls_per_sample(
    sample: Callable[[int], float], warmup_calls: int, min_sample_us: float
) -> int:
    """Warm a call up and find how many of them last as long as a sample must.

    Args:
        sample: Makes that many calls and returns the nanoseconds that they took.
        warmup_calls: Calls made before anything is timed.
        min_sample_us: How long a sample must last.
    """
    if warmup_calls:
        sample(warmup_calls)
    count = 1
    while count < MAX_CALLS_PER_SAMPLE:
        elapsed_us = sample(count) / 1000
        if elapsed_us >= min_sample_us:
            # An interrupt makes one try look long enough; two in a row are the call's own time.
            elapsed_us = min(elapsed_us, sample(count) / 1000)
            if elapsed_us >= min_sample_us:
                break
        # At least doubled, so that it ends; at most tenfold, as one short try says little.
        growth = min_sample_us / elapsed_us if elapsed_us > 0 else 10.0
        count = min(math.ceil(count * min(max(growth, 2.0), 10.0)), MAX_CALLS_PER_SAMPLE)
    return count


def take_samples(sample: Callable[[int], float], samples: int, span: int) -> list[float]:
    """Take one visit's samples; returns microseconds per call of each.

    Args:
        sample: Makes that many calls and returns the nanoseconds that they took.
        samples: How many to take.
        span: Calls per sample.
    """
    # Filled beforehand, so that nothing grows between the samples.
    elapsed_ns = [0.0] * samples
    # Another workload ran just before: its data is in the caches, and whole networks were seen to
    # need three samples to get it out again. What is long does not notice.
    lead_in_ns = 0.0
    for _ in range(LEAD_IN_SAMPLES):
        lead_in_ns += sample(span)
        if lead_in_ns >= LEAD_IN_NS:
            break
    collects = gc.isenabled()
    gc.disable()  # Python's cyclic collector stays out of the samples
    try:
        for index in range(samples):
            elapsed_ns[index] = sample(span)
    finally:
        if collects:
            gc.enable()
    return [elapsed / (1000 * span) for elapsed in elapsed_ns]


def take_visit(
    sample: Callable[[int], float], samples: int, span: int
) -> tuple[list[float], float]:
    """Take one visit's samples, and tell how much of its core the process had.

    Returns:
        Microseconds per call of each sample, and the slower of two readings of `core_ns`, before
        and after.
    """
    before_ns = core_ns()
    taken = take_samples(sample, samples, span)
    return taken, max(before_ns, core_ns())


def core_ns() -> float:
    """Time a fixed computation that uses all of a core: fastest of a few runs.

    Where another program, or another machine of the same host, runs on the core's other thread,
    this takes half as long again, as operators do. Neither load nor clock shows it.
    """
    find = _PILOT.find
    fastest = math.inf
    for _ in range(_PILOT_TRIES):
        begin = time.perf_counter_ns()
        for _ in repeat(None, _SCANS):
            find(b"\1")
        fastest = min(fastest, time.perf_counter_ns() - begin)
    return fastest


def machine_state() -> dict[str, Any]:
    """Read the state of this machine's processors; what cannot be read is None.

    Returns:
        at_ns: Time of the reading.
        cores: Cores that the counters below speak of.
        own_ns: Processor time of this process so far.
        busy_ns: Processor time of everything, stolen time of a virtual machine included.
        tick_ns: What `busy_ns` is exact to, over all cores.
        pilot_ns: Fastest of a few runs of one fixed computation: it follows the clock alone.
        memory_ns: Fastest of a few reads of some MiB: it follows what other programs, on other
            machines of the same host too, leave of the shared cache and the memory.
        temperature_c: Hottest thermal zone.
        clock_mhz: Mean frequency that the system reports.
        throttled: Throttling flags as the board words them; empty where it has none.
    """
    busy_ns, tick_ns, cores = _busy()
    return {
        "at_ns": time.perf_counter_ns(),
        "cores": cores,
        "own_ns": time.process_time_ns(),
        "busy_ns": busy_ns,
        "tick_ns": tick_ns,
        "pilot_ns": _pilot_ns(),
        "memory_ns": _memory_ns(),
        "temperature_c": _temperature_c(),
        "clock_mhz": _clock_mhz(),
        "throttled": _text(_THROTTLE_FILE),
    }


def _busy() -> tuple[int | None, int | None, int]:
    """Return the processor time used by all, what it is exact to, and the cores; None unread."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None, None, os.cpu_count() or 1
    cores = sum(line.startswith("cpu") for line in lines) - 1
    # user nice system idle iowait irq softirq steal
    fields = [int(field) for field in lines[0].split()[1:9]]
    fields += [0] * (8 - len(fields))
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    busy = sum(fields[:3]) + sum(fields[5:8])
    return busy * tick_ns, cores * tick_ns, cores


def _pilot_ns() -> float:
    fastest = math.inf
    for _ in range(_PILOT_TRIES):
        begin = time.perf_counter_ns()
        hashlib.sha256(_PILOT).digest()
        fastest = min(fastest, time.perf_counter_ns() - begin)
    return fastest


@functools.lru_cache(maxsize=None)  # noqa: UP033 (Python 3.8 has no `cache`)
def _paths(pattern: str) -> list[Path]:
    return list(Path("/sys").glob(pattern))


@functools.lru_cache(maxsize=None)  # noqa: UP033 (Python 3.8 has no `cache`)
def _memory() -> bytearray:
    # Of ones, as zeros may be one page of memory, mapped everywhere.
    return bytearray(b"\1") * _MEMORY_BYTES


def _memory_ns() -> float:
    memory = _memory()
    fastest = math.inf
    for _ in range(_PILOT_TRIES):
        begin = time.perf_counter_ns()
        memory.find(b"\0")
        fastest = min(fastest, time.perf_counter_ns() - begin)
    return fastest


def _temperature_c() -> float | None:
    readings = []
    for path in _paths("class/thermal/thermal_zone*/temp"):
        try:
            readings.append(int(_text(path)) / 1000)
        except ValueError:  # a zone that is switched off reads as nothing
            continue
    return max(readings) if readings else None


def _clock_mhz() -> float | None:
    readings = []
    for path in _paths("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"):
        try:
            readings.append(int(_text(path)) / 1000)
        except ValueError:
            continue
    return sum(readings) / len(readings) if readings else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip().rstrip("\0")
    except (OSError, UnicodeDecodeError):
        return ""


GREETING = "hwnas-agent "
"""What the first line begins with; a login shell may have written others before it."""

WIRE = 2
"""Version of what host and agent say to each other. The second infers, and keeps files."""

_IDLE_S = 3600  # it ends when the host says nothing for so long; the host would start another
_GRACE_S = 30  # the host gives up on a command first
_REASON_CHARACTERS = 2000


def main(commands: BinaryIO, answers: BinaryIO) -> None:
    """Serve a host until it has no more commands.

    Args:
        commands: Where they come from; the first line says what to measure with.
        answers: Where answers go, and nothing else does.
    """

    def answer(fields: dict[str, Any], mark: str = "") -> None:
        answers.write((mark + json.dumps(fields) + "\n").encode())
        answers.flush()

    setup = json.loads(commands.readline())
    try:
        open_, packages, device = _RUNTIMES[setup["runtime"]](setup["threads"])
    except ImportError as error:
        python = platform.python_version()
        missing = {"python": python, "machine": platform.machine(), "words": str(error)}
        answer({"missing": error.name or "", **missing}, "\n" + GREETING)
        return
    answer({**_board(device), "packages": packages, "wire": WIRE}, "\n" + GREETING)
    serve = _Server(open_)
    while True:
        signal.alarm(_IDLE_S)
        line = commands.readline()
        if not line:
            signal.alarm(0)
            return
        command = json.loads(line)
        signal.alarm(command["limit_s"] + _GRACE_S)
        payload = commands.read(command.get("bytes", 0))
        try:
            for found in getattr(serve, command["do"])(command, payload):
                answer(found)
        except Exception as error:  # the host raises it as its own
            answer({"error": f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS]})


class _Server:
    """Compiled models, and what can be done with them; a method per command."""

    def __init__(self, open_: Open) -> None:
        self._open = open_
        self._networks: dict[int, Network] = {}
        self._samplers: dict[int, Sampler] = {}

    def load(self, command: dict[str, Any], payload: bytes) -> Iterator[dict[str, Any]]:
        """Compile a model, or take one that was compiled, and call it once on drawn images."""
        import numpy as np

        if hashlib.sha256(payload).hexdigest() != command["sha256"]:
            raise ValueError("a model arrived changed: its hash is another")
        # As normal as activations are: zeros or denormals may run at another speed.
        generator = np.random.default_rng(command["seed"])
        images = generator.standard_normal(command["shape"], dtype=np.float32)
        rejected = ""
        try:
            if command.get("of") is None:
                network = self._open(payload, command.get("batches"))
            else:
                network = self._networks[command["of"]]
            sampler = network.sampler(images)
            sampler(1)
            self._networks[command["id"]] = network
            self._samplers[command["id"]] = sampler
        except MemoryError:
            raise
        except Exception as error:  # each runtime has classes of its own
            rejected = (str(error) or type(error).__name__)[:_REASON_CHARACTERS]
        yield {"id": command["id"], "rejected": rejected}

    def prepare(self, command: dict[str, Any], _: bytes) -> Iterator[dict[str, Any]]:
        """Warm models up, and find how many calls of each a sample takes."""
        for number in command["ids"]:
            sampler = self._samplers[number]
            span = calls_per_sample(sampler, command["warmup_calls"], command["min_sample_us"])
            yield {"id": number, "span": span, "sample_us": sampler(span) / 1000}

    def visit(self, command: dict[str, Any], _: bytes) -> Iterator[dict[str, Any]]:
        """Visit models in the order asked for. The answer waits for the end, lest it disturb."""
        visits = [
            take_visit(self._samplers[number], samples, span)
            for number, samples, span in command["order"]
        ]
        yield {
            "samples_us": [samples_us for samples_us, _ in visits],
            "cores_ns": [core_ns for _, core_ns in visits],
            "state": machine_state(),
        }

    def state(self, _: dict[str, Any], __: bytes) -> Iterator[dict[str, Any]]:
        """Read the machine's state."""
        yield {"state": machine_state(), "facts": _changing_facts()}

    def forget(self, _: dict[str, Any], __: bytes) -> Iterator[dict[str, Any]]:
        """Drop all models."""
        self._samplers.clear()
        self._networks.clear()
        gc.collect()
        yield {"held": len(self._samplers)}

    def infer(self, command: dict[str, Any], payload: bytes) -> Iterator[dict[str, Any]]:
        """Compute a model's outputs for images that come packed."""
        images = unpacked(command, payload)
        outputs = self._networks[command["id"]].infer(images)
        values = base64.b64encode(outputs.astype("<f4").tobytes()).decode()
        yield {"id": command["id"], "shape": list(outputs.shape), "values": values}

    def bind(self, command: dict[str, Any], payload: bytes) -> Iterator[dict[str, Any]]:
        """Bind images to a model, to be called under a number of their own."""
        self._samplers[command["as"]] = self._networks[command["id"]].sampler(
            unpacked(command, payload)
        )
        yield {"id": command["as"], "rejected": ""}

    def call(self, command: dict[str, Any], _: bytes) -> Iterator[dict[str, Any]]:
        """Make calls in a row."""
        elapsed_ns = self._samplers[command["id"]](command["calls"])
        yield {"id": command["id"], "elapsed_ns": elapsed_ns}

    def keep(self, command: dict[str, Any], payload: bytes) -> Iterator[dict[str, Any]]:
        """Write files into a folder, or only try whether that can be done."""
        folder = Path(os.path.expanduser(command["folder"])).absolute()  # noqa: PTH111 (`~nobody`)
        refused = ""
        try:
            if command["files"]:
                keep_files(folder, command["files"], payload)
            else:
                check_room(folder, command["needed"])
        except OSError as error:
            refused = error.strerror or str(error)
        yield {"folder": str(folder), "refused": refused}


def unpacked(packing: dict[str, Any], payload: bytes) -> Any:
    """Unpack an array: float32, and of the shape that is named.

    Args:
        packing: `shape`; `deflated`, whether the payload is; `palette`, how many different values
            there are, which come first, if all others are `places` among them; else 0.
        payload: The bytes.
    """
    import numpy as np

    content = zlib.decompress(payload) if packing["deflated"] else payload
    palette = packing["palette"]
    values = np.frombuffer(content, "<f4", palette or -1)
    if palette:
        values = values[np.frombuffer(content, packing["places"], offset=4 * palette)]
    return values.astype(np.float32).reshape(packing["shape"])


_SUMS = "SHA256SUMS"


def keep_files(folder: Path, files: list[list[Any]], payload: bytes) -> None:
    """Write files into a folder, in the place of what was kept there before: all or none.

    Args:
        folder: The folder. Its parent exists.
        files: Name, size and SHA-256 of each, `SHA256SUMS` among them.
        payload: Their contents, one after the other.
    """
    _check_place(folder)
    _remove_abandoned(folder)
    staged = Path(tempfile.mkdtemp(".part", "." + folder.name + ".", str(folder.parent)))
    held = os.open(str(staged), os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        begin = 0
        for name, size, digest in files:
            content = payload[begin : begin + size]
            begin += size
            if hashlib.sha256(content).hexdigest() != digest:
                raise OSError(name + " arrived changed: its hash is another")
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            with (staged / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        staged.chmod(0o755)  # made for this user's eyes only
        _put_in_place(staged, folder)
    finally:
        os.close(held)
        shutil.rmtree(str(staged), ignore_errors=True)


def check_room(folder: Path, needed: int) -> None:
    """Try whether so many bytes can be kept in a folder; leaves nothing."""
    _check_place(folder)
    Path(tempfile.mkdtemp(".part", "." + folder.name + ".", str(folder.parent))).rmdir()
    free = shutil.disk_usage(str(folder.parent)).free
    if free < needed:
        raise OSError(f"{needed} bytes are needed, {free} are free")


def _check_place(folder: Path) -> None:
    """Refuse a folder that holds anything but what was kept there before."""
    if not folder.parent.is_dir():
        raise OSError(f"there is no folder {folder.parent}")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OSError("a file stands in the folder's place")
    lines = _text(folder / _SUMS).splitlines()
    known = {_SUMS, *(line.partition("  ")[2] for line in lines)}
    held = {str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir()}
    if not held <= known:
        other = ", ".join(sorted(held - known)[:3])
        raise OSError(f"it holds files that hwnas did not put there: {other}")


def _remove_abandoned(folder: Path) -> None:
    """Remove what agents that were killed have left; one that still writes holds a lock."""
    for left in folder.parent.glob("." + glob.escape(folder.name) + ".*"):
        if left.suffix not in (".part", ".old"):
            continue
        held = os.open(str(left), os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        finally:
            os.close(held)
        shutil.rmtree(str(left), ignore_errors=True)


def _put_in_place(staged: Path, folder: Path) -> None:
    if not folder.exists():
        staged.rename(folder)
        return
    aside = staged.with_suffix(".old")  # a full folder cannot be renamed over: it steps aside
    folder.rename(aside)
    try:
        staged.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(str(aside), ignore_errors=True)


def _onnxruntime(threads: int) -> tuple[Open, dict[str, str], dict[str, str]]:
    """Return how to compile for the CPU: set up as `OnnxRuntimeRunner` does it on the host."""
    # From 1.29 on it would report to its vendor, from a thread of its own, and leave files behind.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import numpy as np
    import onnxruntime as ort

    def open_(model: bytes, _: Any) -> Network:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        return _OnnxRuntimeNetwork(
            ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        )

    return open_, {"numpy": np.__version__, "onnxruntime": ort.__version__}, {}


class _OnnxRuntimeNetwork:
    """A session. Its batch is whatever the images have."""

    def __init__(self, session: Any) -> None:
        self._run = session.run
        self._outputs = [session.get_outputs()[0].name]
        self._input = session.get_inputs()[0].name

    def infer(self, images: Any) -> Any:
        return self._run(self._outputs, {self._input: images})[0]

    def sampler(self, images: Any) -> Sampler:
        run, outputs, feed = self._run, self._outputs, {self._input: images}

        def call() -> Any:
            return run(outputs, feed)

        def sample(calls: int) -> float:
            turns = repeat(None, calls)
            begin = time.perf_counter_ns()
            for _ in turns:
                call()
            return time.perf_counter_ns() - begin

        return sample


def _tensorrt(_: int) -> tuple[Open, dict[str, str], dict[str, str]]:
    """Return how to build for the GPU: strongly typed, one timing cache, replayed CUDA graphs."""
    import numpy as np

    trt: Any = importlib.import_module("tensorrt")  # only the board has it
    cuda = _Cuda()

    class Log(trt.ILogger):  # type: ignore[misc]  # a class that only the board knows
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:  # the graver, the smaller
                self.errors.append(message)

    log = Log()
    runtime = trt.Runtime(log)
    timings = [b""]

    def open_(model: bytes, batches: Any) -> Network:
        del log.errors[:]
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse(model):
            words = [str(parser.get_error(index)) for index in range(parser.num_errors)]
            raise ValueError("; ".join(words or log.errors))
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        config.set_timing_cache(config.create_timing_cache(timings[0]), False)
        if batches:
            profile = builder.create_optimization_profile()
            images = network.get_input(0)
            profile.set_shape(
                images.name, *[(batch, *tuple(images.shape)[1:]) for batch in batches]
            )
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ValueError("; ".join(log.errors))
        timings[0] = bytes(config.get_timing_cache().serialize())
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ValueError("; ".join(log.errors) or "TensorRT does not take its own engine")
        return _TensorRTNetwork(engine, cuda, trt.TensorIOMode.INPUT, log.errors)

    packages = {"numpy": np.__version__, "tensorrt": trt.__version__}
    return open_, packages, {"name": cuda.name, "driver": cuda.driver}


class _TensorRTNetwork:
    """An engine; each input that is bound to it has a context of its own."""

    def __init__(self, engine: Any, cuda: _Cuda, input_mode: Any, errors: list[str]) -> None:
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == input_mode]
        self._outputs = [name for name in names if name not in self._inputs]
        self._engine, self._cuda, self._errors = engine, cuda, errors

    def _bound(self, images: Any) -> tuple[Any, list[Any], Any]:
        """Return a context, the addresses of its tensors, and what its output is read into."""
        import numpy as np

        context = self._engine.create_execution_context()
        for name in self._inputs:
            context.set_input_shape(name, images.shape)
        outputs = images
        addresses = []
        for name in (*self._inputs, *self._outputs):
            values = images
            if name in self._outputs:
                values = outputs = np.zeros(tuple(context.get_tensor_shape(name)), np.float32)
            addresses.append(self._cuda.uploaded(values))
            context.set_tensor_address(name, addresses[-1].value)
        return context, addresses, outputs

    def _queue(self, context: Any) -> None:
        if not context.execute_async_v3(self._cuda.stream.value):
            raise ValueError("; ".join(self._errors) or "TensorRT could not queue its work")

    def infer(self, images: Any) -> Any:
        context, addresses, outputs = self._bound(images)
        held = [context, self._engine]
        try:
            self._queue(context)
            self._cuda.download(outputs, addresses[-1])
        finally:
            self._cuda.release(addresses, held)
        return outputs

    def sampler(self, images: Any) -> Sampler:
        cuda = self._cuda
        context, addresses, _ = self._bound(images)
        self._queue(context)  # a capture must come after a first call
        graph = cuda.captured(lambda: self._queue(context))
        begin, end = cuda.made("cuEventCreate", 0), cuda.made("cuEventCreate", 0)

        def sample(calls: int) -> float:
            launch, stream = cuda.library.cuGraphLaunch, cuda.stream
            launch(graph, stream)  # the GPU is at work while those that are timed are queued
            cuda.call("cuEventRecord", begin, stream)
            for _ in repeat(None, calls):
                launch(graph, stream)
            cuda.call("cuEventRecord", end, stream)
            cuda.call("cuEventSynchronize", end)
            elapsed_ms = ctypes.c_float()
            cuda.call("cuEventElapsedTime", ctypes.byref(elapsed_ms), begin, end)
            return elapsed_ms.value * 1e6

        held = [context, self._engine]  # the graph works on their memory
        weakref.finalize(sample, cuda.free, graph, (begin, end), addresses, held).atexit = False
        return sample


class _Cuda:
    """What is needed of NVIDIA's driver library. It comes with the driver: no package is needed."""

    def __init__(self) -> None:
        os.environ["CUDA_CACHE_DISABLE"] = "1"  # it would leave files on the board
        try:
            self.library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise ImportError(str(error), name="libcuda.so.1") from error
        self.call("cuInit", 0)
        device, version, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDeviceGetName", name, len(name), device)
        self.call("cuDriverGetVersion", ctypes.byref(version))
        self.name = name.value.decode()
        thousands, rest = divmod(version.value, 1000)
        own = _text(Path("/sys/module/nvidia/version"))
        self.driver = own or f"CUDA {thousands}.{rest // 10}"
        self.call("cuCtxSetCurrent", self.made("cuDevicePrimaryCtxRetain", device))
        self.stream = self.made("cuStreamCreate", 1)  # 1: it does not wait for the default one

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the library."""
        code = getattr(self.library, function)(*arguments)
        if code:
            raise RuntimeError(f"the NVIDIA driver failed: {function} gave {code}")

    def made(self, function: str, *arguments: Any) -> ctypes.c_void_p:
        """Return what a function makes."""
        handle = ctypes.c_void_p()
        self.call(function, ctypes.byref(handle), *arguments)
        return handle

    def uploaded(self, values: Any) -> ctypes.c_void_p:
        """Return the address of a copy on the GPU."""
        size = ctypes.c_size_t(values.nbytes)
        address = self.made("cuMemAlloc_v2", size)
        self.call("cuMemcpyHtoD_v2", address, ctypes.c_void_p(values.ctypes.data), size)
        return address

    def download(self, values: Any, address: ctypes.c_void_p) -> None:
        """Wait for the work that is queued, and copy from the GPU into an array."""
        self.call("cuStreamSynchronize", self.stream)
        target, size = ctypes.c_void_p(values.ctypes.data), ctypes.c_size_t(values.nbytes)
        self.call("cuMemcpyDtoH_v2", target, address, size)

    def captured(self, queue: Callable[[], None]) -> ctypes.c_void_p:
        """Return what is queued as an executable CUDA graph."""
        graph = ctypes.c_void_p()
        self.call("cuStreamSynchronize", self.stream)
        self.call("cuStreamBeginCapture_v2", self.stream, 1)  # 1: of this thread alone
        try:
            queue()
        finally:
            self.call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        flags = ctypes.c_ulonglong(0)
        executable = self.made("cuGraphInstantiateWithFlags", graph, flags)
        self.call("cuGraphDestroy", graph)
        return executable

    def free(self, graph: Any, events: Any, addresses: Any, held: list[Any]) -> None:
        """Give back what a model took."""
        self.call("cuStreamSynchronize", self.stream)
        self.call("cuGraphExecDestroy", graph)
        for event in events:
            self.call("cuEventDestroy_v2", event)
        self.release(addresses, held)

    def release(self, addresses: Any, held: list[Any]) -> None:
        """Give back a context and its memory."""
        held.clear()
        for address in addresses:
            self.call("cuMemFree_v2", address)


_RUNTIMES = {"onnxruntime": _onnxruntime, "tensorrt": _tensorrt}


def _board(device: dict[str, str]) -> dict[str, Any]:
    """Describe this machine, in the words of `hwnas.core.environment`."""
    processor = _processor()
    facts = {
        "processor": processor if device else "",
        "python": platform.python_version(),
        "board": _text(Path("/proc/device-tree/model")),
        "l4t": _text(Path("/etc/nv_tegra_release")).partition("\n")[0],
        "power_mode": _power_mode(),
    }
    return {
        "name": processor,
        "driver": "",
        **device,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "system": f"{platform.system()} {platform.release()}",
        "governor": _governor(),
        "boot": _text(Path("/proc/sys/kernel/random/boot_id")),
        "facts": {name: value for name, value in facts.items() if value},
        "state": machine_state(),
    }


def _processor() -> str:
    board = _text(Path("/proc/device-tree/model"))
    names = re.findall(r"^model name\s*: (.*)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return board or (names[0] if names else platform.processor() or platform.machine())


def _changing_facts() -> dict[str, str]:
    facts = {"governor": _governor(), "power_mode": _power_mode()}
    return {name: value for name, value in facts.items() if value}


def _governor() -> str:
    return _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))


def _power_mode() -> str:
    """Return a Jetson's power mode, e.g. `MAXN 0`; empty where there is no such thing."""
    try:
        answer = subprocess.run(
            ["nvpmodel", "-q"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    text = answer.stdout.decode(errors="replace").replace("NV Power Mode:", " ")
    return " ".join(text.split())


if __name__ == "__main__":
    # Runtimes chatter on stdout: what they write goes to stderr, and answers have a file of their
    # own. Broken off halfway, they end the program like the end of stdin does.
    _answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        main(sys.stdin.buffer, _answers)
    except BrokenPipeError:
        os._exit(0)
