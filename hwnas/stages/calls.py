"""The Python call that repeats a stage, for its manifest."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any


def call_text(name: str, **arguments: Any) -> str:
    """Write a call of `hwnas.api`; arguments that are None are left out.

    >>> call_text("derive", budget_ms=0.25, force=None)
    'hwnas.api.derive(budget_ms=0.25)'
    """
    given = (
        f"{key}={f'Path({str(value)!r})' if isinstance(value, PurePath) else repr(value)}"
        for key, value in arguments.items()
        if value is not None
    )
    return f"hwnas.api.{name}({', '.join(given)})"
