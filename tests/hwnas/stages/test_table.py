"""`hwnas table show|diff|merge|validate`, from the shell's side."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from hwnas import api
from hwnas.core.environment import provenance
from hwnas.core.errors import ConfigError, InputFileError
from hwnas.space.channel.space import ChannelSpace
from hwnas_profilers.records import Measurement, Statistics, TableHeader
from hwnas_profilers.table import LatencyTable, TableAppender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from click.testing import Result

    from hwnas.space.channel.spec import ChannelSpec
    from hwnas_profilers.workload import Operator

    Write = Callable[..., Path]
    Call = Callable[..., Result]


@pytest.fixture(scope="module")
def operators(small_spec: ChannelSpec) -> list[Operator]:
    return ChannelSpace(small_spec).operators()


@pytest.fixture(scope="module")
def header(small_spec: ChannelSpec) -> TableHeader:
    return TableHeader(
        target="onnxruntime-cpu",
        space=small_spec.name,
        space_spec=msgspec.to_builtins(small_spec),
        space_fingerprint=small_spec.fingerprint,
        threads=1,
        batch=1,
        dtype="fp32",
        settings={},
        provenance=provenance(),
    )


@pytest.fixture
def write(tmp_path: Path, header: TableHeader) -> Write:
    """Write a table of these operators, the first taking 1 us, the next 2."""

    def to(
        name: str, operators: Sequence[Operator], *, factor: float = 1.0, **changes: Any
    ) -> Path:
        path = tmp_path / name
        with TableAppender(path, dataclasses.replace(header, **changes)) as table:
            for index, operator in enumerate(operators):
                us = factor * (index + 1)
                table.append(
                    Measurement(
                        key=operator.key,
                        statistics=Statistics(
                            n=20,
                            median_us=us,
                            low_us=us,
                            high_us=us,
                            min_us=us,
                            p10_us=us,
                            p90_us=us,
                        ),
                    )
                )
        return path

    return to


def test_show_lists_the_slowest(write: Write, operators: list[Operator], hwnas: Call) -> None:
    path = write("a.jsonl", operators)
    result = hwnas("table", "show", path, "--top", 2, "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["operators"] == len(operators)
    assert [row["operator"] for row in shown["rows"]] == [
        str(operators[-1].key),
        str(operators[-2].key),
    ]
    text = hwnas("table", "show", path, "--kind", "head").stdout
    assert str(operators[-1].key) in text
    assert "not in" not in text


def test_diff_compares(write: Write, operators: list[Operator], hwnas: Call) -> None:
    first = write("a.jsonl", operators[1:])
    second = write("b.jsonl", operators[1:], factor=2.0)
    result = hwnas("table", "diff", first, second, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["comparable"], found["ratios"]["median"]) == (True, 2.0)
    assert found["beyond_intervals"] == len(operators) - 1


def test_a_negative_number_of_rows_is_refused(write: Write, operators: list[Operator]) -> None:
    path = write("a.jsonl", operators)
    with pytest.raises(ConfigError, match="top is -1"):
        api.table_show(path, top=-1)
    with pytest.raises(ConfigError, match="top is -1"):
        api.table_diff(path, path, top=-1)


def test_parts_are_merged_into_a_table_that_is_valid(
    write: Write, operators: list[Operator], hwnas: Call, tmp_path: Path
) -> None:
    first, second = write("a.jsonl", operators[:4]), write("b.jsonl", operators[3:])
    before = first.read_bytes(), second.read_bytes()
    out = tmp_path / "new" / "merged.jsonl"
    refused = hwnas("table", "merge", first, second, "--out", out)
    assert refused.exit_code == 1
    assert "--prefer tighter" in refused.stderr
    assert not out.exists()
    result = hwnas("table", "merge", first, second, "--out", out, "--prefer", "last", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["conflicts"] == 1
    assert LatencyTable.read(out).latency_us(operators[3].key) == 1.0
    assert hwnas("table", "validate", out).exit_code == 0
    assert (first.read_bytes(), second.read_bytes()) == before


def test_merging_never_writes_over_a_file(write: Write, operators: list[Operator]) -> None:
    first, second = write("a.jsonl", operators[:4]), write("b.jsonl", operators[4:])
    before = first.read_bytes()
    with pytest.raises(InputFileError, match="is there already"):
        api.table_merge((first, second), first)
    assert first.read_bytes() == before


def test_validate_names_every_fault_of_every_table(
    write: Write, operators: list[Operator], hwnas: Call, tmp_path: Path
) -> None:
    sound = write("sound.jsonl", operators)
    edited = write("edited.jsonl", operators)
    lines = edited.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b'"median_us":2.0', b'"median_us":-2.0')
    lines[4] = lines[4].replace(b'"n":20', b'"n":2')
    edited.write_bytes(b"\n".join(lines))
    cut = write("cut.jsonl", operators)
    cut.write_bytes(cut.read_bytes()[:-40])
    old = write("old.jsonl", operators)
    old.write_bytes(old.read_bytes().replace(b'"schema":2', b'"schema":1'))
    absent = tmp_path / "absent.jsonl"
    result = hwnas("table", "validate", sound, edited, cut, old, absent, "--json")
    assert result.exit_code == 1
    found = {each["table"]: each for each in json.loads(result.stdout)}
    assert [each["valid"] for each in found.values()] == [True, False, False, False, False]
    assert [fault["line"] for fault in found[str(edited)]["faults"]] == [3, 5]
    assert found[str(cut)]["missing"] == [str(operators[-1].key)]
    for said in (
        f"{edited}:3: median_us is -2.0",
        f"{edited}:5: n is 2",
        f"{cut}: 1 of the {len(operators)} operators of small are missing: {operators[-1].key}",
        f"{cut}:{len(operators) + 1}: the last line is cut",
        f"{old}:1: has table schema 1; this hwnas reads 2",
        f"{absent}: does not exist",
    ):
        assert said in result.stderr
    assert "6 faults in 4 of 5 tables" in result.stderr


def test_a_table_that_does_not_fit_its_header_is_faulty(
    write: Write, operators: list[Operator], hwnas: Call
) -> None:
    odd = dataclasses.replace(
        operators[0], key=dataclasses.replace(operators[0].key, variant="relu")
    )
    path = write("odd.jsonl", [odd, *operators[1:]], space_fingerprint="x")
    result = hwnas("table", "validate", path)
    assert result.exit_code == 1
    assert "the header was edited" in result.stderr
    assert f"{path}:2: {odd.key} is no operator of small" in result.stderr
    assert f"missing: {operators[0].key}" in result.stderr
    unknown = write("unknown.jsonl", operators, space_spec={"kind": "transformer"})
    said = hwnas("table", "validate", unknown).stderr
    assert "its space cannot be built" in said
    assert "unknown kind of space `transformer`" in said


def test_an_unsupported_operator_is_not_missing(
    write: Write, operators: list[Operator], header: TableHeader, hwnas: Call
) -> None:
    from hwnas_profilers.records import UnsupportedOperator

    path = write("a.jsonl", operators[:-1])
    assert hwnas("table", "validate", path).exit_code == 1
    with TableAppender(path, header) as table:
        table.append(UnsupportedOperator(refused=operators[-1].key, reason="no kernel"))
    assert hwnas("table", "validate", path).exit_code == 0
