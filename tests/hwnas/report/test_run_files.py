from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from hwnas.core.errors import ConfigError
from hwnas.report.run_files import read_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hwnas.report.conftest import NewRun


def test_run_is_read_whole(passed_run: Path) -> None:
    run = read_run(passed_run)
    assert run.verification.passed
    assert run.card.class_names == ("zero", "one", "two")
    assert run.teacher.robust_accuracy == 0.7
    assert len(run.network_history) == 4
    assert list(run.manifests) == ["teacher", "search", "network", "engine", "verification"]


@pytest.mark.parametrize("table", [None, {}, {"path": 3}])
def test_settings_must_say_where_the_table_is(new_run: NewRun, table: object) -> None:
    run = new_run()
    config = run / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "table": table}))
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_run(run)
