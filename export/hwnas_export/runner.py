"""The contract of a compiled network that can be fed arrays.

Profilers time through runners and `verify` checks through runners, so a latency table measures what
will be deployed. Subclasses fill the `_impl` methods; the checks live here, once.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from itertools import repeat
from typing import TYPE_CHECKING, Self, TypeAlias, final

import numpy as np

from hwnas.core.errors import DataError, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

Sampler: TypeAlias = "Callable[[int], float]"
"""Makes that many calls in a row and returns the nanoseconds that they took together."""


class Runner(ABC):
    """A compiled network with one input (batch, channels, height, width) and one output.

    A runner touches no device before `activate` and holds none after `close`; it is a context
    manager that does both.

    Attributes:
        name: The target that it runs on, e.g. `onnxruntime-cpu`. Whatever the precision inside,
            arrays go in and come out as float32.
    """

    name: str

    def __init__(self) -> None:
        self._active = False

    @final
    def activate(self) -> None:
        """Compile and take the device. A second call does nothing."""
        if not self._active:
            self._activate_impl()
            self._active = True

    @final
    def close(self) -> None:
        """Give back what `activate` took. A second call does nothing."""
        if self._active:
            self._active = False
            self._close_impl()

    @final
    def __enter__(self) -> Self:
        self.activate()
        return self

    @final
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    @final
    def input_shape(self) -> tuple[int | None, int, int, int]:
        """The shape that `infer` takes; a batch of None is free. Needs an active runner."""
        self._check_active()
        return self._input_shape_impl()

    @final
    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the outputs of a batch.

        Args:
            images: float32, (batch, channels, height, width).

        Returns:
            float32, (batch, classes) for a network, (batch, channels, height, width) for a block.

        Raises:
            DataError: The images are of another type or shape, or not finite.
        """
        self._check_active()
        self._check_input(images)
        if not np.isfinite(images).all():
            raise DataError(f"the input of {self.name} holds NaN or infinity")
        return self._infer_impl(images)

    @final
    def call_on(self, images: NDArray[np.float32]) -> Callable[[], object]:
        """Bind an input and return the barest call that computes its output, for timing.

        The returned call checks nothing and returns only when the output is there, in whatever form
        and place the runtime left it. Later bindings of the same runner do not disturb it.
        """
        self._check_active()
        self._check_input(images)
        return self._call_on_impl(images)

    @final
    def sampler_on(self, images: NDArray[np.float32]) -> Sampler:
        """Bind an input and return what times calls in a row, by the clock that fits the device.

        A processor is timed by the host's clock around calls; a GPU by its own events around work
        that was queued without waiting, so that the host's launches do not swamp small operators.
        The outputs are there when a sampler returns.
        """
        self._check_active()
        self._check_input(images)
        return self._sampler_on_impl(images)

    def _check_active(self) -> None:
        if not self._active:
            raise RuntimeError(f"{type(self).__name__} is not active: use it in a `with` block")

    def _check_input(self, images: NDArray[np.float32]) -> None:
        expected = self._input_shape_impl()
        wrong_shape = images.ndim != len(expected) or any(
            want is not None and want != got
            for want, got in zip(expected, images.shape, strict=True)
        )
        if images.dtype != np.float32 or wrong_shape:
            shape = "x".join("N" if size is None else str(size) for size in expected)
            raise DataError(
                f"{self.name} takes float32 of shape {shape}, "
                f"not {images.dtype} of shape {'x'.join(map(str, images.shape))}"
            )

    @abstractmethod
    def _activate_impl(self) -> None: ...

    @abstractmethod
    def _close_impl(self) -> None: ...

    @abstractmethod
    def _input_shape_impl(self) -> tuple[int | None, int, int, int]: ...

    @abstractmethod
    def _infer_impl(self, images: NDArray[np.float32]) -> NDArray[np.float32]: ...

    @abstractmethod
    def _call_on_impl(self, images: NDArray[np.float32]) -> Callable[[], object]: ...

    @abstractmethod
    def _sampler_on_impl(self, images: NDArray[np.float32]) -> Sampler: ...


def target_name(runtime: str, device: str, precision: str, known: Sequence[str]) -> str:
    """Return the name of a target, e.g. `torch-cuda-fp16`; single precision goes without saying.

    Raises:
        TargetError: It is none of those that the runtime's runner knows.
    """
    name = f"{runtime}-{device}" + ("" if precision == "fp32" else f"-{precision}")
    if name not in known:
        raise TargetError(f"there is no target {name}", hint=f"choose one of {', '.join(known)}")
    return name


def host_sampler(
    call: Callable[[], object], clock: Callable[[], int] = time.perf_counter_ns
) -> Sampler:
    """Time calls by the host's clock: right where a call returns only when its work is done."""

    def sample(calls: int) -> float:
        # `repeat` hands out one object again and again: the cheapest loop that Python has.
        turns = repeat(None, calls)
        begin = clock()
        for _ in turns:
            call()
        return clock() - begin

    return sample
