"""What docs/user-spaces.md and the example tell a newcomer to write works as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from hwnas.cli.main import cli
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.stages.config import load_config

if TYPE_CHECKING:
    from hwnas.space.chain_space import ChainSpace

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "user-spaces.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_code_of_the_page_is_a_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("python")
    (tmp_path / "net.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    space: ChainSpace = space_from_spec(space_spec("user:net.py:network"))
    assert [len(options) for options in space.options] == [12, 6]
    assert "conv5-32+residual" in space.options[0]
    assert "conv3-24+residual" in space.options[0]


def test_the_example_is_configured_as_its_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(Path("examples/user_space.toml"))
    space = space_from_spec(space_spec(config.space.name))
    assert space.spec.image_shape[1] == config.data.image_size
    assert len(space.operators()) == 33


@pytest.mark.parametrize("line", [each for block in blocks("sh") for each in block.splitlines()])
def test_the_commands_of_the_page_are_understood(line: str) -> None:
    """With --help behind them they are parsed and not run; an unknown option is a usage error."""
    program, *arguments = shlex.split(line)
    assert program == "hwnas"
    result = CliRunner().invoke(cli, [*arguments, "--help"])
    assert result.exit_code == 0, result.output


def test_an_unknown_option_would_be_noticed() -> None:
    assert CliRunner().invoke(cli, ["verify", "bundle", "--quickly", "--help"]).exit_code == 2
