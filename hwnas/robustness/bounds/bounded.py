"""The graph of a forward over bounded values: what was computed from what, and its interval."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import Tensor

    from hwnas.robustness.bounds.interval import Interval


class Step(ABC):
    """One operation of a network, over bounded inputs.

    Attributes:
        inputs: What it was computed from; constants are part of the step.
    """

    inputs: tuple[Bounded, ...]

    @abstractmethod
    def pull_back(self, coefficients: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Bound linear functions of the output from below by linear functions of the inputs.

        Args:
            coefficients: (functions, batch, *shape) of the output.

        Returns:
            Coefficients of each input, (functions, batch, *shape), and constants, (functions,
            batch).
        """


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """How one forward is recorded.

    Attributes:
        batch: Images; every value has that many rows, and no step mixes them.
        keeps_steps: Keep all steps, to go back through them. Without, only those of vectors are
            kept, so that features are given free as a plain forward does.
        refine: Finds the intervals of some elements of a value anew, given which, (elements,).
    """

    batch: int
    keeps_steps: bool = True
    refine: Callable[[Bounded, Tensor], Interval] | None = None
    _places: Iterator[int] = field(default_factory=itertools.count)

    def next_place(self) -> int:
        """Number the values in the order in which they are computed."""
        return next(self._places)


@final
class Bounded:
    """A value that depends on the images, and between which ends it is.

    Args:
        interval: Its interval, (batch, ...).
        recording: The forward that it is part of.
        step: What computed it; None for the images, and where steps are not kept.
        is_box: Its elements vary independently of each other, as pixels do.
        is_exact: No interval of an element could be tighter.

    Attributes:
        place: Its number: greater than that of all that it depends on.
    """

    __slots__ = ("_refined", "interval", "is_box", "is_exact", "place", "recording", "step")

    def __init__(
        self,
        interval: Interval,
        recording: Recording,
        step: Step | None = None,
        *,
        is_box: bool = False,
        is_exact: bool = False,
    ) -> None:
        self.interval = interval
        self.recording = recording
        self.place = recording.next_place()
        self.step = step
        self.is_box, self.is_exact = is_box, is_exact
        self._refined: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Its shape; the first dimension is the batch."""
        return self.interval.shape

    @property
    def ndim(self) -> int:
        """Its dimensions, the batch among them."""
        return len(self.shape)

    def refine(self, bends: Callable[[Tensor, Tensor], Tensor]) -> Interval:
        """Return its interval for a nonlinearity.

        Where the recording says so it is found anew, for elements over whose intervals the
        nonlinearity bends: of others, nothing is lost in any interval.

        Args:
            bends: Tells so of lower and upper ends.
        """
        refine = self.recording.refine
        if refine is not None and not self.is_exact:
            wanted = bends(self.interval.lower, self.interval.upper).flatten(1).any(0)
            missing = wanted if self._refined is None else wanted & ~self._refined
            if missing.any():
                self.interval = self.interval.meet(refine(self, missing))
                self._refined = missing if self._refined is None else missing | self._refined
        return self.interval
