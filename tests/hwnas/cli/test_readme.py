from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hwnas import api
from hwnas.cli.command import command_from_function
from hwnas.cli.commands import COMMANDS, GROUPS, function_name

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
LINES = re.findall(r"^(?:\$ )?(hwnas .+?)(?: +#.*)?$", README, flags=re.MULTILINE)


def command_of(line: str) -> tuple[str, list[str]]:
    """Split a line of the shell into a command's path and its arguments."""
    words = shlex.split(line)[1:]
    count = 2 if words[0] in GROUPS else 1
    return " ".join(words[:count]), words[count:]


def test_the_readme_shows_every_command() -> None:
    assert {command_of(line)[0] for line in LINES} == set(COMMANDS)


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_readme_has_the_options_that_it_is_given(line: str) -> None:
    name, arguments = command_of(line)
    function = getattr(api, function_name(name))
    command = command_from_function(function, name=name, positional=COMMANDS[name].positional)
    # Parses, or raises a usage error: an option that is unknown, missing or of another type.
    with command.make_context(name, arguments):
        pass


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
