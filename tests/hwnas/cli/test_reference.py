"""docs/cli.md is what `--help` prints."""

from __future__ import annotations

from pathlib import Path

import hwnas.cli.reference
from hwnas.cli.commands import COMMANDS, GROUPS

REFERENCE = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_reference_is_current(tmp_path: Path) -> None:
    hwnas.cli.reference.main([str(tmp_path / "cli.md")])
    written = (tmp_path / "cli.md").read_text(encoding="utf-8")
    assert written == REFERENCE.read_text(encoding="utf-8"), "run `make docs`"
    for name in (*COMMANDS, *GROUPS):
        assert f"## hwnas {name}\n" in written
