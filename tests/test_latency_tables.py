from __future__ import annotations

from pathlib import Path

import pytest

from hwnas.latency.model import LatencyModel
from hwnas.space.spec import space_spec
from hwnas.stages.spaces import space_of_table
from hwnas_profilers.table import LatencyTable

SHIPPED = Path(__file__).parents[1] / "latency_tables"


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.jsonl")), ids=lambda path: path.stem)
def test_a_shipped_table_is_complete_calibrated_and_of_a_space_of_today(path: Path) -> None:
    table = LatencyTable.read(path)
    space = space_of_table(table)
    assert space.spec == space_spec(table.header.space)
    assert path.name == f"{table.header.target}-{table.header.space}.jsonl"
    fastest_ms, slowest_ms = LatencyModel(space, table).range_ms()
    assert 0 < fastest_ms < slowest_ms
    assert table.calibration is not None
    assert table.calibration.holdout.within_10_percent == 100
