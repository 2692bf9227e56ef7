from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from hwnas.core.decoding import decode_toml
from hwnas.report.settings_text import toml_from_settings
from hwnas.robustness.threat import ThreatModel
from hwnas.stages.config import BudgetConfig, RunConfig

if TYPE_CHECKING:
    from pathlib import Path


def test_settings_on_the_page_repeat_the_run(tmp_path: Path) -> None:
    config = replace(
        RunConfig(),
        seed=7,
        budget=BudgetConfig(ms=2.5e-5),
        threat=ThreatModel(eps="8/255", step_size=0.01),
    )
    path = tmp_path / "config.toml"
    path.write_text(toml_from_settings(msgspec.to_builtins(config)))
    assert decode_toml(path, RunConfig) == config


def test_text_is_quoted() -> None:
    assert toml_from_settings({"a": 'x"\\\n', "b": True}) == 'a = "x\\"\\\\\\n"\nb = true'
