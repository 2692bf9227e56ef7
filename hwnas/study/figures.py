"""The figures of a study: their names, what they are called, and in which unit they are shown.

A share of the test images is `clean`, or `THREAT.ATTACK`, `THREAT.worst` and `THREAT.hrs`, by the
names that the study gives its threats. All else of a network is in `COSTS`.

Of an engine they are `ENGINE.WHAT`, e.g. `int8.worst`, with what `ENGINE_SHARES` and `ENGINE_COSTS`
name; those of the PyTorch network that engines are compared with begin with `twin`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.report.numbers import DASH, fixed, large, number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CLEAN = "clean"
WORST = "worst"
HRS = "hrs"
MEASURED_MS = "measured_ms"
TWIN = "twin"
LATENCY_MS = "latency_ms"
AGREEMENTS = ("agreement", "adversarial_agreement")

ENGINE_SHARES = (CLEAN, "replay", "adaptive", WORST, *AGREEMENTS)
"""Shares of the images on which an engine is right, or says what its twin says:

- `clean`, the images as they are;
- `replay`, under the adversarial examples that PGD makes on the twin;
- `adaptive`, under these and under APGD: made on the twin, and made for the engine itself;
- `worst`, under these and under Square, which asks the engine;
- `agreement` and `adversarial_agreement`: it gives the twin's class, for the images as they are and
  for the replayed examples.

The twin has the first three; its `adaptive` is under PGD and APGD made on it.
"""
TWIN_SHARES = ENGINE_SHARES[:3]


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
    "choice_evenness": Cost(label="search, evenness of options", text=number),
    "tutor_evenness": Cost(label="search, evenness of tutors", text=number),
    "train_minutes": Cost(label="training, minutes", text=number),
    "images_per_s": Cost(label="training, images/s", text=lambda value: number(value, 4)),
}


ENGINE_COSTS = {
    LATENCY_MS: Cost(label="latency, ms", text=number),
    "size_kib": Cost(label="size, KiB", text=number),
    "failed_gates": Cost(label="failed gates", text=number),
}


def engine_names(engines: Iterable[str]) -> tuple[str, ...]:
    """Return the names of all figures of engines, and of their twin where there are any.

    >>> engine_names(["int8"])[:4]
    ('twin.clean', 'twin.replay', 'twin.adaptive', 'int8.clean')
    """
    names = [f"{each}.{what}" for each in engines for what in (*ENGINE_SHARES, *ENGINE_COSTS)]
    return (*(f"{TWIN}.{what}" for what in TWIN_SHARES), *names) if names else ()


def cost_of(figure: str) -> Cost | None:
    """Return what a figure that is no share is shown by; None of a share."""
    return COSTS.get(figure) or ENGINE_COSTS.get(figure.rpartition(".")[2])


def is_share(figure: str) -> bool:
    """Say whether a figure is a share of images, or the harmonic mean of two.

    >>> is_share("pixel.pgd"), is_share("params"), is_share("int8.worst"), is_share("int8.size_kib")
    (True, False, True, False)
    """
    return cost_of(figure) is None


def is_attacked(figure: str) -> bool:
    """Say whether a figure is a share of images on which a network is right under attack.

    >>> is_attacked("pixel.worst"), is_attacked("int8.worst")
    (True, True)
    >>> is_attacked("clean"), is_attacked("int8.clean"), is_attacked("int8.agreement")
    (False, False, False)
    """
    return is_share(figure) and figure.rpartition(".")[2] not in (CLEAN, *AGREEMENTS)


def has_seed_interval(figure: str) -> bool:
    """Say whether a figure's interval over seeds is shown: of sizes and times it says little.

    >>> has_seed_interval("clean"), has_seed_interval("measured_ms"), has_seed_interval("params")
    (True, True, False)
    """
    return is_share(figure) or figure.rpartition(".")[2] in (MEASURED_MS, LATENCY_MS)


def has_binomial_interval(figure: str) -> bool:
    """Say whether a figure counts images: a harmonic mean of two shares does not.

    >>> has_binomial_interval("pixel.worst"), has_binomial_interval("pixel.hrs")
    (True, False)
    """
    return is_share(figure) and not figure.endswith(f".{HRS}")


_LABELS = {
    WORST: "worst case",
    HRS: "HRS",
    "replay": "replayed",
    "adversarial_agreement": "adversarial agreement",
}


def label(figure: str) -> str:
    """Return what a figure is called at the head of a column, with its unit.

    >>> label("clean"), label("pixel.worst"), label("pixel.hrs"), label("normalized.pgd")
    ('clean, %', 'pixel, worst case, %', 'pixel, HRS, %', 'normalized, pgd, %')
    >>> label("measured_ms"), label("int8.replay"), label("int8.latency_ms")
    ('measured latency, ms', 'int8, replayed, %', 'int8, latency, ms')
    """
    threat, _, attack = figure.rpartition(".")
    cost = cost_of(figure)
    if cost is not None:
        return f"{threat}, {cost.label}" if threat else cost.label
    name = _LABELS.get(attack, attack)
    return f"{threat}, {name}, %" if threat else f"{name}, %"


def text(figure: str, value: float | None) -> str:
    """Write a value of a figure, without its unit.

    >>> text("clean", 0.8162), text("params", 323000.0).replace(chr(160), " "), text("clean", None)
    ('81.6', '323 k', '–')
    """  # noqa: RUF002 - a dash
    if value is None:
        return DASH
    cost = cost_of(figure)
    return fixed(100 * value, 1) if cost is None else cost.text(value)


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
