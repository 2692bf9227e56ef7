"""The processes that train together: one, or as many as torchrun has started.

    torchrun --nproc-per-node 2 -m hwnas.cli search --table ...

Every process runs the same program over the same data; each computes its share of every batch. All
randomness is drawn for the whole batch by each of them alike, so that the number of processes
changes no result beyond rounding.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, final

import torch
import torch.distributed

from hwnas.core.errors import ConfigError, HwnasError, ProcessError
from hwnas.core.processes import process_count
from hwnas.space.batch_norm import synchronized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn

T = TypeVar("T")

Accelerator = Literal["auto", "cpu", "cuda"]


@final
class Processes:
    """What the processes of a run do together, by Lightning Fabric.

    Args:
        accelerator: What to compute on; `auto` takes a GPU where there is one.
        timeout_s: How long a process waits for the others before it gives up, in seconds.

    Attributes:
        rank: Which one this is, from 0.
        count: How many there are.
        device: What this one computes on.

    Raises:
        ConfigError: There is no such accelerator here.
    """

    def __init__(self, *, accelerator: Accelerator = "auto", timeout_s: float = 1800.0) -> None:
        import logging

        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy

        if accelerator == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "`accelerator` is cuda, but torch finds no GPU here",
                hint="set `accelerator` to auto or cpu, or install a torch built for CUDA",
            )
        if accelerator == "auto":
            accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells of each start
        self.count = process_count()
        if self.count == 1:
            self._fabric = Fabric(accelerator=accelerator, devices=1)
        else:
            local = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
            # Batch normalization is synchronized, so that buffers need no broadcast.
            strategy = DDPStrategy(timeout=timedelta(seconds=timeout_s), broadcast_buffers=False)
            self._fabric = Fabric(
                accelerator=accelerator,
                devices=local,
                num_nodes=self.count // local,
                strategy=strategy,
            )
            self._fabric.launch()
        self.rank = self._fabric.global_rank
        self.device = self._fabric.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes and reports for all."""
        return self.rank == 0

    def module(self, module: nn.Module, *, compiled: bool = False) -> Callable[..., Any]:
        """Move a module to the device and make it one of all processes.

        Its batch normalization then takes the statistics of the whole batch, and gradients of its
        parameters are averaged over the processes.

        Args:
            module: The module; go on using it for its state.
            compiled: Compile it with torch.compile.

        Returns:
            What to call in its place.
        """
        if self.count > 1:
            synchronized(module)
        module.to(self.device)
        called = cast("nn.Module", torch.compile(module)) if compiled else module
        return self._fabric.setup_module(called) if self.count > 1 else called

    @contextmanager
    def without_sync(self, module: Callable[..., Any]) -> Iterator[None]:
        """Run passes after which gradients of a module's parameters are not averaged."""
        if self.count == 1:
            yield
        else:
            with self._fabric.no_backward_sync(cast("Any", module)):
                yield

    def share(self, tensor: Tensor) -> Tensor:
        """Return this process's part of a batch, (batch, ...); empty where there is none left."""
        return tensor.tensor_split(self.count)[self.rank]

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over the processes, the same on all, without gradients."""
        if self.count == 1:
            return tensor.detach()
        with peers():
            averaged = self._fabric.all_reduce(tensor.detach().clone(), reduce_op="mean")
        return cast("Tensor", averaged)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their mean over the processes, in one exchange."""
        if self.count == 1:
            return
        with_gradients = [each for each in parameters if each.grad is not None]
        flat = torch.cat([each.grad.flatten() for each in with_gradients if each.grad is not None])
        averaged = self.mean(flat)
        start = 0
        for each in with_gradients:
            assert each.grad is not None
            each.grad.copy_(averaged[start : start + each.numel()].view_as(each))
            start += each.numel()

    def same(self, value: T) -> T:
        """Return the first process's value, on all of them."""
        if self.count == 1:
            return value
        with peers():
            return self._fabric.broadcast(value)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            with peers():
                self._fabric.barrier()

    def require_in_step(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Check that tensors are the same on all processes, bit by bit.

        Raises:
            ProcessError: They are not: the processes have computed different things.
        """
        if self.count == 1:
            return
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        with peers():
            low = self._fabric.all_reduce(flat.clone(), reduce_op="min")
            high = self._fabric.all_reduce(flat.clone(), reduce_op="max")
        if not torch.equal(cast("Tensor", low), cast("Tensor", high)):
            raise ProcessError(
                f"{name} differ between the {self.count} processes of this run",
                hint="all processes need the same versions, data and settings",
            )


@contextmanager
def peers() -> Iterator[None]:
    """Turn the failure of an exchange into one clear error: another process has ended.

    Raises:
        ProcessError: It has.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, HwnasError) or not _is_lost_connection(error):
            raise
        raise ProcessError(
            f"another process of this run has ended, or cannot be reached: {_first_line(error)}",
            hint="start the same command again, with any number of processes: it goes on after the "
            "last checkpoint",
        ) from error


def _is_lost_connection(error: RuntimeError) -> bool:
    """Tell what torch.distributed raises for a peer that is gone; it has no type of its own."""
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error).lower()
    return any(
        sign in text
        for sign in ("connection closed", "connection reset", "broken pipe", "timed out", "gloo")
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
