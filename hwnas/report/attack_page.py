"""What attacks found on a model, as one HTML page that needs nothing else."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from hwnas.report.numbers import DASH, count, fixed, interval, number, percent
from hwnas.report.style import page_style
from hwnas.robustness.attack_records import WORST_CASE

if TYPE_CHECKING:
    from hwnas.report.drawing import Picture
    from hwnas.robustness.attack_records import AttackLine, AttackRecord

TEMPLATE = "attack.html.j2"


def page_from_record(record: AttackRecord, picture: Picture, call: str) -> str:
    """Make the page of `hwnas attack`.

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
    return environment.from_string(source).render(_context(record, picture, call))


def verdict(record: AttackRecord) -> str:
    """Say in one line what is left, and whether it can be trusted."""
    worst = [line for line in record.lines if line.attack == WORST_CASE][-1]
    left = f"{percent(worst.accuracy)} are left at eps {worst.eps}"
    if worst.protocol != "pixel":
        left += f" of the {worst.protocol} protocol"
    failed = len(record.failed)
    if not failed:
        return f"{left}; all {len(record.checks)} checks passed"
    return f"{left}, but {failed} of {len(record.checks)} checks failed"


def _context(record: AttackRecord, picture: Picture, call: str) -> dict[str, Any]:
    return {
        "style": page_style(),
        "verdict": verdict(record),
        "record": record,
        "sound": not record.failed,
        "rows": [_row(line) for line in record.lines],
        "checks": sorted(record.checks, key=lambda check: check.passed),
        "number": number,
        "picture": picture,
        "parity": _parity(record),
        "first": record.lines[0],
        "call": call,
    }


def _row(line: AttackLine) -> dict[str, str]:
    return {
        "attack": line.attack,
        "on": line.on,
        "eps": line.eps,
        "accuracy": percent(line.accuracy),
        "interval": interval(line.interval),
        "n": str(line.n),
        "seconds": DASH if line.seconds is None else fixed(line.seconds, 1),
        "queries": DASH if line.queries is None else count(line.queries),
        "settings": line.settings,
    }


def _parity(record: AttackRecord) -> str:
    found = record.parity
    if found is None:
        return ""
    apart = "not finite" if found.max_abs_diff is None else number(found.max_abs_diff)
    largest = number(found.largest)
    return (
        f"On {found.n} images the engine decides as its PyTorch twin on {percent(found.agreement)};"
        f" their logits are up to {apart} apart, where the largest is {largest}."
    )
