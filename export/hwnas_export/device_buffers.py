"""A stream on the GPU with its buffers and events, by pycuda.

pycuda works on the GPU's primary context, the one that torch uses too: a second context in one
process would keep the two from sharing the GPU (hence no `pycuda.autoinit`). The context belongs to
the thread that opened the stream.
"""

from __future__ import annotations

import functools
import importlib
import math
import sys
from typing import TYPE_CHECKING, Any, final

import numpy as np

from hwnas.core.errors import MissingDependencyError, TargetError
from hwnas_export.cuda_driver import cuda_driver

if TYPE_CHECKING:
    from numpy.typing import NDArray


@final
class DeviceBuffer:
    """Float32 values on the GPU, and their page-locked twin on the host.

    Attributes:
        shape: Shape of both.
        host: The twin, through which values are copied.
        address: Address on the GPU; it stays the same until `free`.
    """

    def __init__(self, driver: Any, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.host: NDArray[np.float32] = driver.pagelocked_empty(shape, np.float32)
        self._memory = driver.mem_alloc(math.prod(shape) * self.host.itemsize)
        self.address = int(self._memory)

    def free(self) -> None:
        """Give the memory back."""
        self._memory.free()


@final
class DeviceEvent:
    """A mark in a stream's work, with the GPU's own time."""

    def __init__(self, event: Any, stream: Any) -> None:
        self._event = event
        self._stream = stream

    def record(self) -> None:
        """Queue the mark."""
        self._event.record(self._stream)

    def synchronize(self) -> None:
        """Wait until the GPU has come to it."""
        self._event.synchronize()

    def elapsed_time(self, end_event: DeviceEvent) -> float:
        """Return the milliseconds from here to another mark, in steps of about 0.0005."""
        return float(end_event._event.time_since(self._event))


@final
class DeviceStream:
    """Work for the GPU, done in the order in which it is queued.

    Use `open_stream` to get one. `upload` only queues; `download` and `synchronize` wait.

    Attributes:
        handle: The stream, as CUDA's own functions take it.
    """

    def __init__(self, driver: Any, context: Any) -> None:
        self._driver = driver
        context.push()
        try:
            self._stream = driver.Stream()
        except BaseException:
            context.pop()
            raise
        self._context = context
        self.handle = int(self._stream.handle)

    def buffer(self, shape: tuple[int, ...]) -> DeviceBuffer:
        """Return a new buffer; the caller frees it.

        Raises:
            TargetError: There is no memory left for it.
        """
        try:
            return DeviceBuffer(self._driver, shape)
        except self._driver.MemoryError as error:
            size = "x".join(map(str, shape))
            raise TargetError(
                f"no memory is left for {size} float32 values: {error}",
                hint="take a smaller batch, or end other processes on the GPU",
            ) from error

    def upload(self, values: NDArray[np.float32], buffer: DeviceBuffer) -> None:
        """Queue a copy of an array of the buffer's shape to the GPU.

        The array may be changed at once, the buffer's host side only after `synchronize`.
        """
        buffer.host[...] = values
        self._driver.memcpy_htod_async(buffer.address, buffer.host, self._stream)

    def download(self, buffer: DeviceBuffer) -> NDArray[np.float32]:
        """Wait for what was queued, and return a copy of the buffer."""
        self._driver.memcpy_dtoh_async(buffer.host, buffer.address, self._stream)
        self._stream.synchronize()
        return buffer.host.copy()

    def event(self) -> DeviceEvent:
        """Return a new mark for this stream."""
        return DeviceEvent(self._driver.Event(), self._stream)

    def synchronize(self) -> None:
        """Wait until all that was queued is done."""
        self._stream.synchronize()

    def close(self) -> None:
        """Give stream and context back; every buffer has been freed."""
        self._stream = None
        self._context.pop()


def open_stream() -> DeviceStream:
    """Return a new stream on the first visible GPU, for use on this thread.

    Raises:
        MissingDependencyError: pycuda is not installed.
        TargetError: There is no driver or GPU, or pycuda does not work with them.
    """
    require_pycuda()
    cuda_driver()  # says clearly what pycuda says in an ImportError
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise TargetError(
            f"pycuda is installed, but cannot be loaded: {error}",
            hint="build it again: pip install --force-reinstall --no-binary pycuda pycuda",
        ) from error
    return DeviceStream(driver, _primary_context(driver))


def require_pycuda() -> None:
    """Make sure that pycuda is installed.

    Raises:
        MissingDependencyError: It is not.
    """
    try:
        importlib.import_module("pycuda")  # loads no driver yet
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "pycuda is not installed",
            hint='install it: pip install "hwnas[tensorrt]" (it is built from source, which '
            "needs the CUDA toolkit and a C++ compiler)",
        ) from error


@functools.cache
def _primary_context(driver: Any) -> Any:
    """Retain the first GPU's primary context, once for the process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.init()  # first, so that the context carries torch's flags
    try:
        driver.init()
        return driver.Device(0).retain_primary_context()
    except driver.Error as error:
        raise TargetError(
            f"the GPU cannot be used: {error}", hint="see whether `nvidia-smi` lists it as free"
        ) from error
