"""What is proven of a network, as one HTML page that needs nothing else."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

from hwnas.report.numbers import DASH, fixed, number, percent
from hwnas.report.style import page_style

if TYPE_CHECKING:
    from hwnas.report.drawing import Picture
    from hwnas.robustness.bounds.records import CertifyLine, CertifyRecord

TEMPLATE = "certify.html.j2"


def page_from_record(record: CertifyRecord, picture: Picture, call: str) -> str:
    """Make the page of `hwnas certify`.

    Args:
        record: What was found.
        picture: Its picture.
        call: The Python call that repeats it.

    Returns:
        One HTML document. Equal records give equal text.
    """
    # Autoescaping is on whatever the template's name: names of models come from users.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (resources.files("hwnas.report") / TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        style=page_style(),
        verdict=verdict(record),
        record=record,
        clean=percent(record.clean),
        rows=[_row(line) for line in record.lines],
        number=number,
        picture=picture,
        call=call,
    )


def verdict(record: CertifyRecord) -> str:
    """Say in one line how much is proven, at the smallest and the largest radius."""
    first, last = record.lines[0], record.lines[-1]
    told = f"{percent(first.certified)} certified at {first.eps}"
    return told if first is last else f"{told}, {percent(last.certified)} at {last.eps}"


def _row(line: CertifyLine) -> dict[str, str]:
    return {
        "eps": line.eps,
        "certified": percent(line.certified),
        "certified_interval": _interval(line.certified_low, line.certified_high),
        "attacked": percent(line.attacked),
        "attacked_interval": _interval(line.attacked_low, line.attacked_high),
        "undecided": percent(line.undecided),
        "n": str(line.n),
    }


def _interval(low: float, high: float) -> str:
    return f"{fixed(100 * low, 1)}{DASH}{percent(high)}"
