"""The JSON Schema of a latency table's line: `python -m hwnas_profilers.table_schema FILE`.

It is generated from the dataclasses of `records`, which are what hwnas itself decodes by, so that
tables can be read and checked with other tools and in other languages. What spans lines (operators
that stand twice, pairs that do not fit) no schema of a line can say: `hwnas table validate` does.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from hwnas.core.decoding import encode_json
from hwnas_profilers.records import SCHEMA, TableHeader
from hwnas_profilers.table_lines import RECORDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def line_schema() -> dict[str, Any]:
    """Return the schema of one line: a header, or one of the records that may follow it.

    As strict as reading is: no other key is allowed. `record` must be there, as it says which of
    them a line is, and so must the header's `schema`, though Python has defaults for both.
    """
    kinds = (TableHeader, *RECORDS.values())
    references, definitions = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    for definition in definitions.values():
        definition["additionalProperties"] = False
        properties = definition["properties"]
        summary, attributes = _described(definition.get("description", ""))
        definition["description"] = summary
        for name, text in attributes.items():
            properties[name]["description"] = text
        for name in ("schema", "record"):
            if name in properties:
                definition["required"] = [*definition["required"], name]
                properties[name].pop("default")
    definitions["TableHeader"]["properties"]["schema"]["const"] = SCHEMA
    return {
        "$schema": DIALECT,
        "title": f"A line of a hwnas latency table, schema {SCHEMA}",
        "description": "The first line of a table is a TableHeader, every other line is not.",
        "oneOf": list(references),
        "$defs": definitions,
    }


def _described(docstring: str) -> tuple[str, dict[str, str]]:
    """Split a class's docstring into its first sentence and what it says of attributes."""
    text = inspect.cleandoc(docstring)
    _, _, listed = text.partition("\nAttributes:\n")
    section = inspect.cleandoc(listed.partition("\n\n")[0])
    entries = re.split(r"^(\w+): ", section, flags=re.MULTILINE)
    return text.partition("\n")[0], {
        name: " ".join(entry.split())
        for name, entry in zip(entries[1::2], entries[2::2], strict=True)
    }


def main(arguments: list[str]) -> None:
    """Write the schema to the file that is named."""
    Path(arguments[0]).write_bytes(encode_json(line_schema(), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
