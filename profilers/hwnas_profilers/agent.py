"""What runs on the machine that is measured: visits of compiled models, and that machine's state.

This file is two things. `hwnas_profilers` imports it to measure on the machine that it runs on; and
`hwnas_profilers.remote` sends its text over ssh to a board, where it is the whole program. So it is
written for Python 3.8 and needs numpy and a runtime only, and both ways measure with the same code.
Which model is visited when, and when to stop, is decided by `hwnas_profilers.timing`, on the host.

As a program it reads JSON lines from stdin, a model's bytes after the line that announces them, and
writes JSON lines to stdout, beginning with a greeting. It writes no file, ends at the end of stdin,
and is ended by the system where a command takes far longer than the host would wait. The TensorRT
part is written for TensorRT 10.3 to 11, and has not yet run on hardware.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import importlib
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
import weakref
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, BinaryIO

    Sampler = Callable[[int], float]
    Compile = Callable[[bytes, Any], Sampler]

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
        compile_, packages, device = _RUNTIMES[setup["runtime"]](setup["threads"])
    except ImportError as error:
        python = platform.python_version()
        missing = {"python": python, "machine": platform.machine(), "words": str(error)}
        answer({"missing": error.name or "", **missing}, "\n" + GREETING)
        return
    answer({**_board(device), "packages": packages}, "\n" + GREETING)
    serve = _Server(compile_)
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

    def __init__(self, compile_: Compile) -> None:
        self._compile = compile_
        self._samplers: dict[int, Sampler] = {}

    def load(self, command: dict[str, Any], payload: bytes) -> Iterator[dict[str, Any]]:
        """Compile a model and call it once."""
        import numpy as np

        if hashlib.sha256(payload).hexdigest() != command["sha256"]:
            raise ValueError("a model arrived changed: its hash is another")
        # As normal as activations are: zeros or denormals may run at another speed.
        generator = np.random.default_rng(command["seed"])
        images = generator.standard_normal(command["shape"], dtype=np.float32)
        rejected = ""
        try:
            sampler = self._compile(payload, images)
            sampler(1)
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
        gc.collect()
        yield {"held": len(self._samplers)}


def _onnxruntime(threads: int) -> tuple[Compile, dict[str, str], dict[str, str]]:
    """Return how to compile for the CPU: set up as `OnnxRuntimeRunner` does it on the host."""
    # From 1.29 on it would report to its vendor, from a thread of its own, and leave files behind.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import numpy as np
    import onnxruntime as ort

    def compile_(model: bytes, images: Any) -> Sampler:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        run, outputs = session.run, [session.get_outputs()[0].name]
        feed = {session.get_inputs()[0].name: images}

        def call() -> Any:
            return run(outputs, feed)

        def sample(calls: int) -> float:
            turns = repeat(None, calls)
            begin = time.perf_counter_ns()
            for _ in turns:
                call()
            return time.perf_counter_ns() - begin

        return sample

    return compile_, {"numpy": np.__version__, "onnxruntime": ort.__version__}, {}


def _tensorrt(_: int) -> tuple[Compile, dict[str, str], dict[str, str]]:
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

    def build(model: bytes) -> Any:
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
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ValueError("; ".join(log.errors))
        timings[0] = bytes(config.get_timing_cache().serialize())
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ValueError("; ".join(log.errors) or "TensorRT does not take its own engine")
        return engine

    def compile_(model: bytes, images: Any) -> Sampler:
        engine = build(model)
        context = engine.create_execution_context()
        addresses = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            values = images
            if engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT:
                values = np.zeros(tuple(engine.get_tensor_shape(name)), np.float32)
            addresses.append(cuda.uploaded(values))
            context.set_tensor_address(name, addresses[-1].value)
        execute, handle = context.execute_async_v3, cuda.stream.value

        def queue() -> None:
            if not execute(handle):
                raise ValueError("; ".join(log.errors) or "TensorRT could not queue its work")

        queue()  # a capture must come after a first call
        graph = cuda.captured(queue)
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

        held = [context, engine]  # the graph works on their memory
        weakref.finalize(sample, cuda.free, graph, (begin, end), addresses, held).atexit = False
        return sample

    packages = {"numpy": np.__version__, "tensorrt": trt.__version__}
    return compile_, packages, {"name": cuda.name, "driver": cuda.driver}


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
