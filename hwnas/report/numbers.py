"""Figures as people read them: sensible digits, units, a dash where there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwnas.robustness.evaluate import Accuracy

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
MICRO = "\N{MICRO SIGN}"
NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with so many significant digits; very small and large ones as powers of ten.

    >>> number(0.0123456), number(4.8e-6), number(-73.4375), number(2500.0), number(None)
    ('0.0123', '4.8 × 10⁻⁶', '−73.4', '2500', '–')
    """  # noqa: RUF002 - typographic on purpose
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    sign = MINUS if value < 0 else ""
    size = abs(value)
    if 1e-4 <= size < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(size)))
        text = f"{size:.{decimals}f}"
        return sign + (text.rstrip("0").rstrip(".") if "." in text else text)
    mantissa, _, exponent = f"{size:.{max(digits - 2, 0)}e}".partition("e")
    power = str(int(exponent)).translate(_SUPERSCRIPTS)
    return f"{sign}{mantissa} {TIMES} 10{power}"


def fixed(value: float | None, decimals: int) -> str:
    """Write a number with so many decimals, so that columns align.

    >>> fixed(0.98696, 3), fixed(-0.5, 1), fixed(None, 2)
    ('0.987', '−0.5', '–')
    """  # noqa: RUF002 - typographic on purpose
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.{decimals}f}".replace("-", MINUS)


def percent(share: float | None, decimals: int = 1, *, sign: bool = False) -> str:
    """Write a share in percent, a positive one with its sign if asked.

    >>> print(percent(0.8162), percent(0.037, sign=True), percent(None))
    81.6 % +3.7 % –
    """  # noqa: RUF002 - typographic on purpose
    if share is None:
        return DASH
    plus = "+" if sign and share > 0 else ""
    return f"{plus}{fixed(100 * share, decimals)}\N{NO-BREAK SPACE}%"


def interval(accuracy: Accuracy) -> str:
    """Write the interval of an accuracy.

    >>> from hwnas.robustness.evaluate import Accuracy
    >>> print(interval(Accuracy.from_counts(8, 10)))
    49.0–94.3 %
    """  # noqa: RUF002 - typographic on purpose
    return f"{fixed(100 * accuracy.low, 1)}{DASH}{percent(accuracy.high)}"


def count(value: int) -> str:
    """Write a whole number in groups of three.

    >>> count(2468064).replace(NARROW_SPACE, "_")
    '2_468_064'
    """
    return f"{value:,}".replace(",", NARROW_SPACE)


def large(value: int) -> str:
    """Write a large count shortly.

    >>> print(large(56410), large(2468064), large(812), large(3_100_000_000))
    56.4 k 2.47 M 812 3.1 G
    """  # noqa: RUF002 - no-break spaces
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{number(value / size)}\N{NO-BREAK SPACE}{unit}"
    return str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeUnit:
    """The unit in which a page gives all its latencies.

    Attributes:
        name: As written behind a figure.
        per_ms: How many of it are a millisecond.
    """

    name: str
    per_ms: float

    @classmethod
    def for_ms(cls, latency_ms: float) -> TimeUnit:
        """Choose the unit in which a latency is no tiny fraction.

        >>> TimeUnit.for_ms(12.0).name, TimeUnit.for_ms(0.09).name
        ('ms', 'µs')
        """
        if latency_ms >= 1:
            return cls(name="ms", per_ms=1.0)
        return cls(name=f"{MICRO}s", per_ms=1e3)

    def value_ms(self, latency_ms: float) -> float:
        """Convert milliseconds."""
        return latency_ms * self.per_ms

    def value_us(self, latency_us: float) -> float:
        """Convert microseconds."""
        return latency_us * self.per_ms / 1e3

    def text_ms(self, latency_ms: float | None) -> str:
        """Write milliseconds in this unit, with it.

        >>> print(TimeUnit.for_ms(0.1).text_ms(0.0734695))
        73.5 µs
        """  # noqa: RUF002 - a no-break space
        if latency_ms is None:
            return DASH
        value = self.value_ms(latency_ms)
        decimals = 1 if abs(value) < 1000 else 0
        if 0 < abs(value) < 10:
            decimals = 2
        return f"{fixed(value, decimals)}\N{NO-BREAK SPACE}{self.name}"

    def text_us(self, latency_us: float | None) -> str:
        """Write microseconds in this unit, with it."""
        return self.text_ms(None if latency_us is None else latency_us / 1e3)
