"""What `hwnas certify` found, as plain data: its JSON file, and what tables and pages show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwnas.robustness.bounds.margins import Method
from hwnas.robustness.evaluate import Accuracy

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyLine:
    """One radius: what is proven, and what is refuted.

    Attributes:
        eps: The radius, as it was written.
        certified: Share of all samples that are right in the whole ball, proven.
        certified_low: Lower end of its 95 % Wilson interval.
        certified_high: Upper end of it.
        attacked: Share of all samples that PGD leaves right: no proof can be above it.
        attacked_low: Lower end of its 95 % Wilson interval.
        attacked_high: Upper end of it.
        undecided: Share that is neither proven nor broken.
        n: Samples.
    """

    eps: str
    certified: float
    certified_low: float
    certified_high: float
    attacked: float
    attacked_low: float
    attacked_high: float
    undecided: float
    n: int

    @classmethod
    def from_counts(cls, eps: str, certified: int, attacked: int, n: int) -> CertifyLine:
        """Make a line from counts of samples."""
        proven, left = Accuracy.from_counts(certified, n), Accuracy.from_counts(attacked, n)
        return cls(
            eps=eps,
            certified=proven.value,
            certified_low=proven.low,
            certified_high=proven.high,
            attacked=left.value,
            attacked_low=left.low,
            attacked_high=left.high,
            undecided=(attacked - certified) / n,
            n=n,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Radii:
    """Certified radii over all samples, in pixel units of 1/255; wrong samples have 0.

    Attributes:
        p10: A tenth of the samples have at most this one.
        p25: A quarter.
        median: Half.
        p75: Three quarters.
        p90: Nine tenths.
        largest_tried: No larger one was tried.
    """

    p10: float
    p25: float
    median: float
    p75: float
    p90: float
    largest_tried: float

    @classmethod
    def from_pixels(cls, radii: Sequence[float], largest: float) -> Radii:
        """Take quantiles of radii in pixel units; each is a radius that a sample has."""
        found = np.quantile(radii, (0.1, 0.25, 0.5, 0.75, 0.9), method="lower") * 255
        p10, p25, median, p75, p90 = found.tolist()
        return cls(p10=p10, p25=p25, median=median, p75=p75, p90=p90, largest_tried=largest * 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyRecord:
    """Everything that was found.

    Attributes:
        model: What it was named by.
        kind: What that is.
        method: How bounds were found.
        data: The images' source.
        n: Samples, drawn at random from the test images.
        seed: Seed of all draws.
        steps: Gradient steps of PGD.
        restarts: Its random starts.
        clean: Accuracy without a perturbation.
        lines: One line per radius, ascending.
        radii: Quantiles of the certified radii.
        slack: What a margin had to exceed, for the rounding of float32.
        samples: Certified radius of each sample, in pixel units, with its index in the test images.
    """

    model: str
    kind: str
    method: Method
    data: str
    n: int
    seed: int
    steps: int
    restarts: int
    clean: float
    lines: tuple[CertifyLine, ...]
    radii: Radii
    slack: float
    samples: tuple[tuple[int, float], ...]
