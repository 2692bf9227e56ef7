"""Results on stdout: one JSON document, or a few lines and tables for people."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import textwrap
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

UNITS = {
    "ms": "ms",
    "us": "us",
    "s": "s",
    "percent": "%",
    "mib": "MiB",
    "kib": "KiB",
    "mj": "mJ",
    "bytes": "bytes",
    "uj": "uJ",
    "mhz": "MHz",
    "c": "C",
    "m": "millions",
    "k": "thousands",
    "levels": "1/255",
}
LONG = 32
"""A table's column that is wider than this stands below its row."""
SHORT = 8
"""More long texts than these are counted, not shown: --json has them all."""
MANY = 24
"""The same for values that stand side by side: the blocks of a network are shown."""


def write_result(result: Any, *, as_json: bool) -> None:
    """Print a result on stdout.

    Args:
        result: A dataclass, a tuple of dataclasses, or plain data.
        as_json: As one JSON document.
    """
    if as_json:
        from hwnas.core.decoding import encode_json

        click.echo(encode_json(plain_data(result), indent=2), nl=False)
        return
    items = plain_data(result)
    if isinstance(items, list):
        _echo_rows(items)
        return
    lines = list(_lines(items if isinstance(items, dict) else {"result": items}, indent=0))
    width = max((len(label) for label, _ in lines), default=0)
    for label, value in lines:
        if isinstance(value, list):
            click.echo(label)
            _echo_rows(value, indent=len(label) - len(label.lstrip()) + 2)
        else:
            click.echo(f"{label:<{width}}  {value}".rstrip())


def plain_data(value: Any) -> Any:
    """Turn a result into dictionaries, lists and scalars; a path becomes its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain_data(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def label(name: str) -> str:
    """Write a field's name for people, its unit apart.

    >>> label("measured_ms"), label("clean_accuracy"), label("ms")
    ('measured (ms)', 'clean accuracy', 'ms')
    """
    stem, _, unit = name.rpartition("_")
    text = f"{stem} ({UNITS[unit]})" if stem and unit in UNITS else name
    return text.replace("_", " ")


def cell(value: Any) -> str:
    """Write one value for people.

    >>> cell(True), cell(None), cell(0.123456), cell(1234567), cell([1, 2]), cell([])
    ('yes', '-', '0.1235', '1,234,567', '1, 2', 'none')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        if not value:
            return "none"
        shown = ", ".join(map(cell, value))
        short = len(value) <= SHORT or (len(value) <= MANY and len(shown) <= MANY * SHORT)
        many = "1 value" if len(value) == 1 else f"{len(value)} values"
        return shown if short and not any(isinstance(each, dict | list) for each in value) else many
    return str(value)


def _lines(items: Mapping[str, Any], *, indent: int) -> Iterator[tuple[str, str | list[Any]]]:
    """Yield label and text for each field; what is nested is indented below its label.

    In place of a text, rows of a table and a few long texts come as they are.
    """
    for name, value in items.items():
        start = f"{' ' * indent}{label(name)}"
        if isinstance(value, dict) and value:
            yield start, ""
            yield from _lines(value, indent=indent + 2)
        elif isinstance(value, list) and (_are_rows(value) or _are_texts(value)):
            yield start, value
        else:
            yield start, cell(value)


def _are_rows(values: Sequence[Any]) -> bool:
    return bool(values) and all(
        isinstance(each, dict) and not any(isinstance(item, dict) for item in each.values())
        for each in values
    )


def _are_texts(values: Sequence[Any]) -> bool:
    texts = [each for each in values if isinstance(each, str)]
    return len(texts) == len(values) <= SHORT and any(len(each) > LONG for each in texts)


def _echo_rows(rows: Sequence[Any], *, indent: int = 0) -> None:
    """Print dictionaries of equal keys as a table, anything else line by line.

    A column of long texts would tear the table apart: its texts stand below their rows. A column
    that says nothing is left out.
    """
    start = " " * indent
    if not rows or not isinstance(rows[0], dict):
        for row in rows:
            click.echo(start + cell(row))
        return
    texts = [
        {name: "" if value is None else cell(value) for name, value in row.items()} for row in rows
    ]
    first = next(iter(texts[0]))
    widths = {
        name: max(len(label(name)), *(len(row[name]) for row in texts))
        for name in texts[0]
        if name == first or any(row[name] for row in texts)
    }
    columns = [name for name, width in widths.items() if width <= LONG or name == first]
    heads = {name: label(name) for name in columns}
    for row in (heads, *texts):
        line = "  ".join(f"{row[name]:<{widths[name]}}" for name in columns)
        click.echo(start + click.style(line.rstrip(), bold=row is heads))
        for name in row:
            if name in widths and name not in columns and row[name]:
                click.echo(_paragraph(f"{label(name)}: {row[name]}", indent=indent + 4))


def _paragraph(text: str, *, indent: int) -> str:
    """Indent a text, and wrap it on a terminal; elsewhere lines are as long as they are."""
    start = " " * indent
    if not sys.stdout.isatty():
        return start + text
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, initial_indent=start, subsequent_indent=f"{start}  ")
