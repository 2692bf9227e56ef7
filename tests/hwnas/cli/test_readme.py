from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hwnas import api
from hwnas.cli.command import command_from_function
from hwnas.cli.commands import COMMANDS

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
LINES = re.findall(r"^(?:\$ )?(hwnas .+?)(?: +#.*)?$", README, flags=re.MULTILINE)


def test_the_readme_shows_every_command() -> None:
    assert {shlex.split(line)[1] for line in LINES} == set(api.FUNCTIONS)


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_readme_has_the_options_that_it_is_given(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    command = command_from_function(
        getattr(api, name), name=name, positional=COMMANDS[name].positional
    )
    # Parses, or raises a usage error: an option that is unknown, missing or of another type.
    with command.make_context(name, arguments):
        pass


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
