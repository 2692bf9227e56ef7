"""The few functions of NVIDIA's driver library that hwnas calls itself.

They say what GPU is there before any other library is let near it, and they capture CUDA graphs,
which pycuda (2026.1) knows nothing of. The library comes with the driver: no package is needed.
"""

from __future__ import annotations

import functools
import sys
import weakref
from ctypes import (
    CDLL,
    POINTER,
    byref,
    c_char_p,
    c_int,
    c_uint,
    c_ulonglong,
    c_void_p,
    create_string_buffer,
)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from hwnas.core.errors import TargetError

if TYPE_CHECKING:
    from collections.abc import Callable

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

_HINT = "use a machine with an NVIDIA GPU and driver"

# Signatures and numbers as in cuda.h of CUDA 13.0; all of it is there since CUDA 11.4.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
}
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_CAPTURE_THREAD_LOCAL = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaDevice:
    """A GPU, as its driver describes it.

    Attributes:
        name: Its name.
        compute_capability: Major and minor number, e.g. (9, 0).
        driver_cuda: Newest CUDA version that the driver serves, e.g. `13.0`.
    """

    name: str
    compute_capability: tuple[int, int]
    driver_cuda: str


@final
class CudaGraph:
    """Work that was captured from a stream, and is given back with the last reference to it."""

    def __init__(self, driver: CudaDriver, executable: c_void_p, stream: int) -> None:
        self._launch = functools.partial(driver.call, "cuGraphLaunch", executable, stream)
        # The driver waits by itself for a launch that is under way.
        end = weakref.finalize(self, driver.call, "cuGraphExecDestroy", executable)
        end.atexit = False  # the driver may be gone before

    def replay(self) -> None:
        """Queue the work once more on the stream, at the cost of one call."""
        self._launch()


@final
class CudaDriver:
    """NVIDIA's driver library, initialized.

    Args:
        library: The library as ctypes loads it.

    Raises:
        TargetError: There is no GPU that it could use.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, types in _SIGNATURES.items():
            getattr(library, name).argtypes = types
        self.call("cuInit", 0)
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        if count.value == 0:
            raise TargetError("the NVIDIA driver sees no GPU", hint=_HINT)

    def device(self) -> CudaDevice:
        """Describe the first GPU that is visible, which is the one that hwnas uses."""
        handle, major, minor, version = c_int(), c_int(), c_int(), c_int()
        name = create_string_buffer(256)
        self.call("cuDeviceGet", byref(handle), 0)
        self.call("cuDeviceGetName", name, len(name), handle)
        self.call("cuDeviceGetAttribute", byref(major), _CAPABILITY_MAJOR, handle)
        self.call("cuDeviceGetAttribute", byref(minor), _CAPABILITY_MINOR, handle)
        self.call("cuDriverGetVersion", byref(version))
        thousands, rest = divmod(version.value, 1000)
        return CudaDevice(
            name=name.value.decode(errors="replace"),
            compute_capability=(major.value, minor.value),
            driver_cuda=f"{thousands}.{rest // 10}",
        )

    def capture(self, stream: int, work: Callable[[], None]) -> CudaGraph:
        """Capture what `work` queues on a stream, which must not be the default one.

        Raises:
            TargetError: The work cannot be captured.
        """
        graph, executable = c_void_p(), c_void_p()
        self.call("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD_LOCAL)
        try:
            work()
        except BaseException:
            # The stream would stay in capture; what was captured so far is of no use.
            self._library.cuStreamEndCapture(stream, byref(graph))
            if graph.value:
                self._library.cuGraphDestroy(graph)
            raise
        self.call("cuStreamEndCapture", stream, byref(graph))
        try:
            self.call("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
        finally:
            self.call("cuGraphDestroy", graph)  # the executable one is on its own
        return CudaGraph(self, executable, stream)

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the library.

        Raises:
            TargetError: It fails; the driver's own words are in it.
        """
        code = getattr(self._library, function)(*arguments)
        if code:
            text = c_char_p()
            self._library.cuGetErrorString(code, byref(text))
            reason = text.value.decode(errors="replace") if text.value else "unknown error"
            raise TargetError(
                f"the NVIDIA driver failed: {reason} ({function}: {code})", hint=_HINT
            )


@functools.cache
def cuda_driver() -> CudaDriver:
    """Return the driver of this machine.

    Raises:
        TargetError: There is no NVIDIA driver, or no GPU that it could use.
    """
    try:
        library = CDLL(_LIBRARY)
    except OSError as error:
        raise TargetError(
            f"there is no NVIDIA driver here ({_LIBRARY} is not found)", hint=_HINT
        ) from error
    try:
        return CudaDriver(library)
    except AttributeError as error:
        raise TargetError(
            f"the NVIDIA driver is too old: {error}", hint="install a driver for CUDA 11.4 or newer"
        ) from error
