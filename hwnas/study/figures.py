"""The figures of a study: their names, what they are called, and in which unit they are shown.

A share of the test images is `clean`, or `THREAT.ATTACK`, `THREAT.worst` and `THREAT.hrs`, by the
names that the study gives its threats. All else is in `COSTS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.report.numbers import DASH, fixed, large, number

if TYPE_CHECKING:
    from collections.abc import Callable

CLEAN = "clean"
WORST = "worst"
HRS = "hrs"
MEASURED_MS = "measured_ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A figure that is no share of images.

    Attributes:
        label: What it is called, with its unit.
        text: Writes a value.
    """

    label: str
    text: Callable[[float], str]


COSTS = {
    "params": Cost(label="parameters", text=lambda value: large(round(value))),
    "macs": Cost(label="MACs", text=lambda value: large(round(value))),
    "predicted_ms": Cost(label="predicted latency, ms", text=number),
    MEASURED_MS: Cost(label="measured latency, ms", text=number),
    "train_minutes": Cost(label="training, minutes", text=number),
    "images_per_s": Cost(label="training, images/s", text=lambda value: number(value, 4)),
}


def is_share(figure: str) -> bool:
    """Say whether a figure is a share of images, or the harmonic mean of two.

    >>> is_share("pixel.pgd"), is_share("params")
    (True, False)
    """
    return figure not in COSTS


def has_seed_interval(figure: str) -> bool:
    """Say whether a figure's interval over seeds is shown: of sizes and times it says little.

    >>> has_seed_interval("clean"), has_seed_interval("measured_ms"), has_seed_interval("params")
    (True, True, False)
    """
    return is_share(figure) or figure == MEASURED_MS


def has_binomial_interval(figure: str) -> bool:
    """Say whether a figure counts images: a harmonic mean of two shares does not.

    >>> has_binomial_interval("pixel.worst"), has_binomial_interval("pixel.hrs")
    (True, False)
    """
    return is_share(figure) and not figure.endswith(f".{HRS}")


def label(figure: str) -> str:
    """Return what a figure is called at the head of a column, with its unit.

    >>> label("clean"), label("pixel.worst"), label("pixel.hrs"), label("normalized.pgd")
    ('clean, %', 'pixel, worst case, %', 'pixel, HRS, %', 'normalized, pgd, %')
    >>> label("measured_ms")
    'measured latency, ms'
    """
    if figure in COSTS:
        return COSTS[figure].label
    threat, _, attack = figure.rpartition(".")
    name = {WORST: "worst case", HRS: "HRS"}.get(attack, attack)
    return f"{threat}, {name}, %" if threat else f"{name}, %"


def text(figure: str, value: float | None) -> str:
    """Write a value of a figure, without its unit.

    >>> text("clean", 0.8162), text("params", 323000.0).replace(chr(160), " "), text("clean", None)
    ('81.6', '323 k', '–')
    """  # noqa: RUF002 - a dash
    if value is None:
        return DASH
    return fixed(100 * value, 1) if is_share(figure) else COSTS[figure].text(value)


def interval_text(figure: str, low: float | None, high: float | None) -> str:
    """Write an interval of a figure; nothing where there is none.

    >>> interval_text("clean", 0.5, 0.625), interval_text("clean", None, None)
    ('50.0 to 62.5', '')
    """
    if low is None or high is None:
        return ""
    return f"{text(figure, low)} to {text(figure, high)}"


def difference_text(figure: str, value: float) -> str:
    """Write a difference with its sign: of shares in points.

    >>> difference_text("clean", 0.0312), difference_text("measured_ms", -0.0021)
    ('+3.1', '−0.0021')
    """  # noqa: RUF002 - a minus sign
    return f"{'+' if value > 0 else ''}{text(figure, value)}"
