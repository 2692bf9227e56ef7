"""One call of a public function from the command line: announce, call, render, explain errors."""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import traceback
import warnings
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import click

from hwnas.core.errors import HwnasError
from hwnas.core.processes import is_first, process_rank
from hwnas.core.progress import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DEBUG = "hwnas.debug"
INTERRUPTED = 130
LOGGERS = ("hwnas", "hwnas_profilers", "hwnas_export")


class Failure(click.ClickException):
    """An error as the command line shows it: a message, a hint, an exit code."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code  # type: ignore[misc] # click itself reads the instance's

    def show(self, file: Any = None) -> None:
        """Print the message and the hint on stderr."""
        whose = "" if is_first() else f"[process {process_rank()}] "
        click.echo(f"{whose}{click.style('error:', fg='red', bold=True)} {self.message}", err=True)
        if self.hint:
            click.echo(f"  hint: {self.hint}", err=True)


def invoke(
    function: Callable[..., Any],
    *,
    name: str,
    arguments: Mapping[str, Any],
    as_json: bool,
    debug: bool,
) -> None:
    """Call a public function and print its result on stdout; all else goes to stderr.

    Args:
        function: The function.
        name: Its name in `hwnas.api`.
        arguments: By parameter name.
        as_json: Print the result as JSON.
        debug: Log in detail, and show the trace of an error.
    """
    from hwnas.cli.progress import open_progress
    from hwnas.cli.render import write_result

    click.get_current_context().meta[DEBUG] = debug
    if is_first():  # of the processes that torchrun starts, one speaks for all
        click.echo(f"python: {python_call(function, name=name, arguments=arguments)}", err=True)
    try:
        with _diagnostics_on_stderr(debug=debug), open_progress() as opened:
            progress = opened if is_first() else SILENT
            extra = {"progress": progress} if _takes_progress(function) else {}
            result = function(**arguments, **extra)
    except HwnasError as error:
        # What was checked failed, not the command: what was found is still its result.
        found = getattr(error, "result", None)
        if found is not None and is_first():
            write_result(found, as_json=as_json)
        raise
    if is_first():
        write_result(result, as_json=as_json)


class _Code(str):
    """Text that is Python already: its `repr` is itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def python_call(function: Callable[..., Any], *, name: str, arguments: Mapping[str, Any]) -> str:
    """Return the Python call that repeats a command; arguments at their default are left out."""
    from hwnas.stages.calls import call_text

    defaults = {each.name: each.default for each in inspect.signature(function).parameters.values()}
    given = {
        key: _code(arguments[key])
        for key, default in defaults.items()
        if key in arguments and (default is inspect.Parameter.empty or arguments[key] != default)
    }
    return call_text(name, **given)


def _code(value: Any) -> Any:
    """Write paths within a tuple as calls of `Path`; leave all else to `call_text`."""
    if isinstance(value, tuple) and value and all(isinstance(each, PurePath) for each in value):
        calls = ", ".join(f"Path({str(each)!r})" for each in value)
        return _Code(f"({calls}{',' * (len(value) == 1)})")
    return value


@contextlib.contextmanager
def explained_errors(context: click.Context) -> Iterator[None]:
    """Turn every error into one clear message and an exit code; the only place that does.

    Args:
        context: The group's context; its `meta` says whether `--debug` was given.
    """
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt:
        message = "interrupted; what was finished is kept: the same command goes on from there"
        raise Failure(message, exit_code=INTERRUPTED) from None
    except BrokenPipeError:
        raise  # click ends quietly where the reader of a pipe has gone
    except Exception as error:
        if context.meta.get(DEBUG):
            click.echo(traceback.format_exc(), err=True, nl=False)
        raise _failure_from(error) from error


def _failure_from(error: Exception) -> Failure:
    if isinstance(error, HwnasError):
        return Failure(error.message, hint=error.hint, exit_code=error.exit_code)
    if isinstance(error, MemoryError):
        return Failure("out of memory", hint="use smaller batches, or a machine with more memory")
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("hwnas"):
        return Failure(
            f"the package {error.name} is not installed", hint="install hwnas again: make install"
        )
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return Failure(f"{place}{error.strerror}", hint="--debug shows where")
    return Failure(
        f"unexpected {type(error).__name__}: {error}",
        hint="this is a bug in hwnas: please report it with what --debug prints",
    )


@contextlib.contextmanager
def _diagnostics_on_stderr(*, debug: bool) -> Iterator[None]:
    """Keep stdout for the result: libraries that print, print on stderr."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        if debug:
            for logger in loggers:
                logger.setLevel(logging.DEBUG)
        elif not sys.warnoptions:
            # What libraries will change one day is for us to mend, not for users to read.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.removeHandler(handler)
                logger.setLevel(level)


def _takes_progress(function: Callable[..., Any]) -> bool:
    return "progress" in inspect.signature(function).parameters
