"""A run's resolved settings as TOML: what to save to repeat it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def toml_from_settings(settings: Mapping[str, Any]) -> str:
    """Write nested settings as TOML. What is None, which TOML lacks, is left to its default.

    >>> print(toml_from_settings({"seed": 0, "budget": {"ms": None, "fraction": 0.5}}))
    seed = 0
    <BLANKLINE>
    [budget]
    fraction = 0.5
    """
    return "\n".join(_lines(settings, prefix="")).strip()


def _lines(settings: Mapping[str, Any], prefix: str) -> list[str]:
    values = {key: value for key, value in settings.items() if value is not None}
    lines = [
        f"{key} = {_value(value)}" for key, value in values.items() if not isinstance(value, dict)
    ]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += ["", f"[{prefix}{key}]", *_lines(value, f"{prefix}{key}.")]
    return lines


def _value(value: object) -> str:
    # JSON's strings, numbers, booleans and arrays of them are TOML's too.
    return json.dumps(value, ensure_ascii=True)
