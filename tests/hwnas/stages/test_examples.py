"""The example scripts do what they say, with settings that take seconds."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import hwnas.api

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    NewConfig = Callable[..., Path]

EXAMPLES = Path(__file__).parents[3] / "examples"

pytestmark = pytest.mark.slow


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_whole_loop_from_python(
    new_config: NewConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module: Any = example("python_api")
    module.CONFIG = new_config(("search.epochs", 3))
    # What these measure by default is for a device that one means to use.
    quick: dict[str, dict[str, Any]] = {
        "profile": {"image_shape": (1, 8, 8), "relative_width": 0.1, "max_samples": 30},
        "calibrate": {"networks": 3, "holdout": 3, "relative_width": 0.1},
    }
    for name, settings in quick.items():
        stage = getattr(hwnas.api, name)
        monkeypatch.setattr(hwnas.api, name, functools.partial(stage, **settings))
    derive = hwnas.api.derive

    def loosely(*given: Any, budget_ms: float) -> Any:
        """Derive for so loose a budget that no measurement, of a busy machine, tightens it."""
        return derive(*given, budget_ms=10 * budget_ms)

    monkeypatch.setattr(hwnas.api, "derive", loosely)
    out = tmp_path / "run"
    module.main(out)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("search ")] == [
        "search 1",
        "search 2",
        "search 3",
    ]
    assert any(line.startswith("derived: ") for line in lines)
    assert lines[-1] == f"verified: True, bundle in {out / 'bundle'}"
    assert json.loads((out / "front" / "front.json").read_text())["points"]
    # Started again it repeats no training.
    module.main(out)
    assert "search 1" not in capsys.readouterr().out
