"""What tests of several components share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hwnas_profilers import agent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Keep the tests of a folder in one process: they share runs, exports and trainings."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.parent.as_posix()))


@pytest.fixture
def shell_for_ssh(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Mapping[str, str]], None]:
    """A shell of this machine in the place of ssh: every destination is this machine.

    What is returned replaces parts of the agent's text, as bugs and failing hardware would.
    """
    folder = tmp_path_factory.mktemp("ssh")
    ssh = folder / "ssh"
    ssh.write_text('#!/bin/sh\nfor line; do :; done\nexec sh -c "$line"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("HWNAS_SSH", str(ssh))
    monkeypatch.setenv("HWNAS_REMOTE_PYTHON", sys.executable)
    source = Path(agent.__file__).read_text()

    def replace(parts: Mapping[str, str]) -> None:
        changed = source
        for part, other in parts.items():
            assert part in changed
            changed = changed.replace(part, other)
        (folder / "agent.py").write_text(changed)
        monkeypatch.setattr(agent, "__file__", str(folder / "agent.py"))

    return replace
