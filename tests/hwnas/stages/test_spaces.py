from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance
from hwnas.core.errors import ConfigError
from hwnas.space.cells.space import CellSpace
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.mbconv.space import MBConvSpace
from hwnas.space.mbconv.spec import MBCONV_SPACES
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.stages.spaces import space_of_table
from hwnas_profilers.records import TableHeader
from hwnas_profilers.table import LatencyTable


def table_of_space(name: str, **changes: Any) -> LatencyTable:
    """An empty table whose header has been through JSON, as in a file."""
    spec = space_spec(name, image_shape=(1, 20, 24), classes=7)
    header = TableHeader(
        target="onnxruntime-cpu",
        space=name,
        space_spec=msgspec.json.decode(encode_json(spec)) | changes,
        space_fingerprint=spec.fingerprint,
        threads=1,
        batch=2,
        dtype="fp16",
        settings={},
        provenance=provenance(),
    )
    return LatencyTable(path=Path("t.jsonl"), header=header, measurements={}, calibration=None)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("rnas-cl-s3", ChannelSpace), ("mbconv-32", MBConvSpace), ("darts-8", CellSpace)],
)
def test_a_table_tells_its_space(name: str, kind: type) -> None:
    table = table_of_space(name)
    space = space_of_table(table)
    assert type(space) is kind
    assert space.spec == space_spec(name, image_shape=(1, 20, 24), classes=7)
    assert space.spec.fingerprint == table.header.space_fingerprint
    assert {(op.key.batch, op.key.dtype) for op in space.operators()} == {(2, "fp16")}


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("mbconv-32", {"kind": "darts"}, r"t.jsonl \(space_spec\): unknown kind of space `darts`"),
        ("mbconv-32", {"kind": None}, "unknown kind of space `None`"),
        ("mbconv-32", {"kernel": 3}, "unknown key `kernel`"),
        ("mbconv-32", {"kernels": [3, 4]}, "a kernel's side is odd"),
        ("mbconv-32", {"se": [0, 1]}, r"se\[0\]: Expected `bool`"),
        ("mbconv-32", {"stages": [{"blocks": 1, "width": 8}]}, "unknown key `width`"),
        ("darts-8", {"stem": 8}, "unknown key `stem`"),
        ("darts-8", {"cells": 1}, "needs at least 3, one normal and two reductions"),
        ("darts-8", {"operations": ["sep7"]}, "unknown operation `sep7`"),
        ("rnas-cl-s3", {"kernels": [3]}, "unknown key `kernels`"),
        ("rnas-cl-s3", {"kind": "mbconv"}, "unknown key `expansion`"),
    ],
)
def test_a_description_that_is_of_no_space_is_refused(
    name: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        space_of_table(table_of_space(name, **changes))


def test_a_renamed_space_is_still_its_kind() -> None:
    spec = replace(MBCONV_SPACES["mbconv-32"], name="rnas-cl-s3")
    assert isinstance(space_from_spec(spec), MBConvSpace)
