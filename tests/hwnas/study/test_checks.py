"""What a study says of its attacks, from the result of a network to the page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from hwnas.core.decoding import read_json
from hwnas.study.records import ArmSeed, StudyRecord
from hwnas.study.run import study_run, study_show

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

NAMES = ["iterative_beats_single_step", "black_box_gap"]


def test_checks_come_with_the_attacks_and_failed_ones_are_shown(
    new_study: Callable[..., Path], tmp_path: Path
) -> None:
    attacks = ('attacks = ["fgsm"]', 'attacks = ["fgsm", "pgd", "square"]\nqueries = 10')
    study, out = new_study(attacks), tmp_path / "out"
    study_run(study, out, arms=("smallest",), seeds=(0,))
    path = out / "results" / "smallest" / "seed-0.json"
    checks = read_json(path, ArmSeed).checks
    assert [check.name for check in checks["pixel"]] == NAMES
    assert checks["normalized"] == ()  # of one attack alone

    document = json.loads(path.read_text())
    check = document["checks"]["pixel"][1]
    check |= {"passed": False, "figure": 40.0}
    path.write_text(json.dumps(document))
    study_show(out)
    for file in ("table.md", "study.html"):
        text = (out / file).read_text()
        assert "smallest, seed 0, threat pixel: black_box_gap: 40, allowed at most" in text
        assert "a black box breaks what no attack with gradients did" in text

    # As results of earlier versions are.
    del document["checks"]
    path.write_text(json.dumps(document))
    work = out / document["artifacts"]["attacks pixel"] / "result.json"
    table = json.loads(work.read_text())
    assert [found["name"] for found in table.pop("comparisons")] == NAMES
    study_show(out)
    record = read_json(out / "study.json", StudyRecord)
    assert record.table is not None
    assert record.table.checks == 0
    assert "that failed" not in (out / "study.html").read_text()
