"""Timing a PyTorch module on an NVIDIA GPU: captured graphs, replayed between events.

A GPU works through what the host has queued. Launched one by one, the kernels of a small operator
are waited for: the host needs several microseconds for each, the GPU less. So the calls of a sample
are captured beforehand into one CUDA graph, which the host launches at once, and the GPU's own
events tell when it began and ended.
"""

from __future__ import annotations

import functools
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

import torch

from hwnas.core.errors import ExportError, TargetError
from hwnas_export.gpu_queue import queued_sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor
    from torch.cuda import _POOL_HANDLE

    from hwnas_export.gpu_queue import Graph
    from hwnas_export.runner import Sampler

_WARMUP_CALLS = 3  # libraries choose kernels and make room before anything is captured


def check_cuda(name: str, dtype: torch.dtype) -> None:
    """Check that PyTorch can run that precision on a GPU of this machine.

    Raises:
        TargetError: It cannot.
    """
    if torch.version.cuda is None:
        raise TargetError(
            f"{name} needs CUDA, and torch {torch.__version__} is built without it",
            hint="install a CUDA build: https://pytorch.org/get-started/locally",
        )
    if not torch.cuda.is_available():
        raise TargetError(
            f"{name} needs an NVIDIA GPU, and torch {torch.__version__} sees none",
            hint="`nvidia-smi` must list it, with a driver new enough for "
            f"CUDA {torch.version.cuda}, and CUDA_VISIBLE_DEVICES must not hide it",
        )
    if dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TargetError(
            f"{torch.cuda.get_device_name()} has no bfloat16", hint="use torch-cuda-fp16"
        )


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Let fp32 be fp32, and kernels be chosen alike whenever; leave torch's settings as found.

    PyTorch lets convolutions round to TF32 by default, and programs switch it on for matrices. The
    search for the fastest kernel is off: its choice differs from run to run, and so would latency.
    """
    backends: Any = torch.backends  # their types do not name all of these settings
    places = (backends.cudnn.conv, backends.cuda.matmul)
    precisions = [place.fp32_precision for place in places]
    benchmark = backends.cudnn.benchmark
    for place in places:
        place.fp32_precision = "ieee"
    backends.cudnn.benchmark = False
    try:
        yield
    finally:
        backends.cudnn.benchmark = benchmark
        for place, precision in zip(places, precisions, strict=True):
            place.fp32_precision = precision


@final
class GraphRoom:
    """A stream, and memory that the graphs captured for timing share.

    With memory of its own for each graph, hundreds of operators would not fit on a small board. One
    graph's replay may overwrite what another left: nobody reads what was computed to be timed.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
        self._first: torch.cuda.CUDAGraph | None = None

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Do work once, uncaptured."""
        with plain_kernels():
            return work()

    def call(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Capture work and return what replays it, waits for it and returns its output."""
        self._warm_up(work)
        outputs: list[Tensor] = []
        # Its output is read, so its memory is shared with no other graph.
        graph = self._capture(lambda: outputs.append(work()), pool=None)

        def call() -> Tensor:
            graph.replay()
            torch.cuda.current_stream().synchronize()
            return outputs[0]

        return call

    def sampler(self, work: Callable[[], Tensor]) -> Sampler:
        """Capture work and return what times it."""
        self._warm_up(work)

        # Four: a full graph, one for a sample's rest, and two lead-ins that it may waver between.
        @functools.lru_cache(maxsize=4)
        def graph_of(calls: int) -> Graph:
            def repeated() -> None:
                for _ in range(calls):
                    work()

            pool = None if self._first is None else self._first.pool()
            graph = self._capture(repeated, pool=pool)
            self._first = self._first or graph  # memory is shared with a graph, so one is kept
            return graph

        def new_event() -> torch.cuda.Event:
            return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's

        graph_of(1)  # what no graph can hold is refused here, not amid the timing
        timed = queued_sampler(graph_of, new_event)

        def sample(calls: int) -> float:
            with torch.cuda.stream(self._stream):
                return timed(calls)

        return sample

    def _warm_up(self, work: Callable[[], object]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        with plain_kernels(), torch.cuda.stream(self._stream):
            for _ in range(_WARMUP_CALLS):
                work()
        self._stream.synchronize()

    def _capture(
        self, work: Callable[[], object], *, pool: _POOL_HANDLE | None
    ) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with plain_kernels(), torch.cuda.graph(graph, pool=pool, stream=self._stream):
                work()
        except RuntimeError as error:
            raise ExportError(f"the module cannot be captured as a CUDA graph: {error}") from error
        return graph


_shared_room: weakref.ref[GraphRoom] | None = None


def shared_room() -> GraphRoom:
    """Return the room of all active runners; it is given back with the last of them."""
    global _shared_room
    room = None if _shared_room is None else _shared_room()
    if room is None:
        room = GraphRoom()
        _shared_room = weakref.ref(room)
    return room
