"""latency_tables/schema.json is what the records say, and what tables hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hwnas_profilers import table_schema
from hwnas_profilers.records import SCHEMA, TableHeader
from hwnas_profilers.table_lines import RECORDS

COMMITTED = Path(__file__).parents[2] / "latency_tables" / "schema.json"


def test_the_committed_schema_is_current(tmp_path: Path) -> None:
    table_schema.main([str(tmp_path / "schema.json")])
    command = "python -m hwnas_profilers.table_schema latency_tables/schema.json"
    assert (tmp_path / "schema.json").read_bytes() == COMMITTED.read_bytes(), f"run `{command}`"


@pytest.mark.parametrize("kind", [TableHeader, *RECORDS.values()])
def test_a_record_is_described_as_strictly_as_it_is_read(kind: Any) -> None:
    schema = json.loads(COMMITTED.read_bytes())
    assert {"$ref": f"#/$defs/{kind.__name__}"} in schema["oneOf"]
    definition = schema["$defs"][kind.__name__]
    fields = dataclasses.fields(kind)
    assert set(definition["properties"]) == {field.name for field in fields}
    assert definition["additionalProperties"] is False
    without_default = {
        field.name
        for field in fields
        if field.default is field.default_factory is dataclasses.MISSING
    }
    assert set(definition["required"]) >= without_default | {"record"}
    assert definition["properties"]["record"]["enum"] == [
        kind.__dataclass_fields__["record"].default
    ]


def test_lines_cannot_be_taken_for_one_another() -> None:
    schema = json.loads(COMMITTED.read_bytes())
    names = [reference["$ref"].rpartition("/")[2] for reference in schema["oneOf"]]
    records = [schema["$defs"][name]["properties"]["record"]["enum"][0] for name in names]
    assert len(set(records)) == len(records) == len(RECORDS) + 1
    assert schema["$defs"]["TableHeader"]["properties"]["schema"]["const"] == SCHEMA


def test_units_are_told_where_they_are_needed() -> None:
    properties = json.loads(COMMITTED.read_bytes())["$defs"]["OperatorKey"]["properties"]
    assert properties["in_shape"]["description"] == "Input (channels, height, width)."
    assert ">>>" not in json.dumps(properties)
