"""The command group: `hwnas --help` imports no command, `hwnas COMMAND` only its own."""

from __future__ import annotations

from typing import Any

import click

import hwnas
from hwnas import api
from hwnas.cli.command import command_from_function
from hwnas.cli.commands import COMMANDS, GROUPS, entries_of, function_name
from hwnas.cli.invocation import DEBUG, explained_errors
from hwnas.core.errors import nearest

HELP = """Find a small, accurate and robust image network for your device, within a latency budget.

`hwnas run CONFIG.toml` does all, and resumes. Each stage is also a command of its own, and each
command a Python function of the same name in hwnas.api.
"""

EPILOG = """\b
Options can be set in the environment, e.g. HWNAS_PROFILE_SPACE for `hwnas profile --space`.
Results go to stdout, all else to stderr.
Exit codes: 0 success, 1 error, 2 usage, 3 a gate of `verify` failed, 130 interrupted.
"""


class CommandGroup(click.Group):
    """Commands of `COMMANDS`, each made from its function when it is asked for.

    Args:
        path: Where the group itself stands; empty for `hwnas`, `table` for `hwnas table`.
    """

    def __init__(self, *args: Any, path: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._path = path
        self._entries = entries_of(path)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the loop."""
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Make a command; None where there is none of the name."""
        if cmd_name not in self._entries:
            return None
        path = f"{self._path} {cmd_name}".strip()
        if path in GROUPS:
            return CommandGroup(cmd_name, path=path, help=GROUPS[path], no_args_is_help=True)
        function = getattr(api, function_name(path))
        return command_from_function(function, name=path, positional=COMMANDS[path].positional)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called; name the nearest one where it is misspelled."""
        name = args[0]
        ctx.meta[DEBUG] = "--debug" in args  # until the command has parsed its own options
        if name not in self._entries and not name.startswith("-"):
            similar = nearest(name, self._entries)
            known = f"Known: {', '.join(self._entries)}."
            hint = f"Did you mean `{similar[0]}`?" if similar else known
            ctx.fail(f"No such command {name!r}. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._entries.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that is called; errors are explained here and nowhere else."""
        with explained_errors(ctx):
            return super().invoke(ctx)


@click.group(
    name="hwnas",
    cls=CommandGroup,
    help=HELP,
    epilog=EPILOG,
    context_settings={
        "auto_envvar_prefix": "HWNAS",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(hwnas.__version__, prog_name="hwnas", message="%(prog)s %(version)s")
def cli() -> None:
    """Do nothing by itself: the commands do the work."""


def main() -> None:
    """Run the command line; the entry point of the `hwnas` script."""
    cli(prog_name="hwnas")
