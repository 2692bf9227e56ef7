"""What an ONNX file says of itself, so that whoever holds only the file knows how to feed it.

The file's metadata holds strings by key. hwnas' own keys begin with `hwnas.`; a value that is more
than a word is JSON. Every runtime hands them out, e.g. ONNX Runtime as
`session.get_modelmeta().custom_metadata_map`.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import onnx

from hwnas.core.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PREFIX = "hwnas."
CLASS_NAMES = f"{PREFIX}class_names"
"""A list of strings in JSON, one per logit."""

PIXEL_RANGE = f"{PREFIX}pixel_range"
"""Smallest and largest value of a pixel, a list of two numbers in JSON."""

NORMALIZATION = f"{PREFIX}normalization"
"""Where pixels are normalized, in words."""

PRECISION = f"{PREFIX}precision"
"""`fp16` or `int8`; written by `hwnas_export.precision` alone, and kept by `with_metadata`."""

_SOURCE_PATH = re.compile(r"\.pyc?\b|(?:^|[\s\"'(=:,])(?:/|[A-Za-z]:[\\/])\w")
"""A Python file, or an absolute path of any system."""


def described(
    *,
    class_names: Sequence[str],
    pixel_range: tuple[float, float] = (0.0, 1.0),
    normalization: str = "inside the model",
) -> dict[str, str]:
    """Return the entries that say how a classifier is fed and how its logits are read.

    Args:
        class_names: One per logit, in their order.
        pixel_range: Smallest and largest value that a pixel takes.
        normalization: Where pixels are normalized.
    """
    return {
        CLASS_NAMES: json.dumps(list(class_names), ensure_ascii=False),
        PIXEL_RANGE: json.dumps(list(pixel_range)),
        NORMALIZATION: normalization,
    }


def with_metadata(model: onnx.ModelProto, entries: Mapping[str, str]) -> onnx.ModelProto:
    """Return a copy of a model that carries these entries beside those that it has.

    Args:
        model: The model. Not changed.
        entries: Strings by key; a key that the model has already is given the new value. Sorted by
            key in the file, so that equal entries make equal bytes.

    Raises:
        ExportError: An entry has no key, names a file of this machine, or is
            the precision, which follows from what the graph computes.
    """
    for key, value in entries.items():
        if not key:
            raise ExportError(f"the metadata {value!r} has no key")
        if key == PRECISION:
            raise ExportError(
                f"`{PRECISION}` is not for others to set",
                hint="`onnx_in_precision` writes it when it converts a model",
            )
        if names_source(key, value):
            raise ExportError(
                f"the metadata `{key}` names a file of this machine: {value!r}",
                hint="leave paths out of what others are given",
            )
    merged = metadata_of(model) | dict(entries)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.metadata_props[:]
    for key in sorted(merged):
        copy.metadata_props.add(key=key, value=merged[key])
    return copy


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return a model's metadata by key."""
    return {entry.key: entry.value for entry in model.metadata_props}


def names_source(key: str, value: str) -> bool:
    """Tell whether an entry names a file of the machine that it was written on.

    What is under one of hwnas' own keys is data that was put there on purpose, e.g. the name of a
    class, whatever it looks like.

    >>> names_source("stack_trace", 'File "/home/me/net.py", line 3')
    True
    >>> names_source("license", "Apache-2.0, https://www.apache.org/licenses")
    False
    """
    return not key.startswith(PREFIX) and _SOURCE_PATH.search(value) is not None
