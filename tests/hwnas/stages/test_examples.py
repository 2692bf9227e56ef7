"""The example scripts do what they say, with settings that take seconds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

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
    new_config: NewConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module: Any = example("python_api")
    module.CONFIG = new_config(("search.epochs", 3), ("data.image_size", 16))
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
