r"""A click command from a public function: the signature gives options, the docstring their help.

| annotation                      | on the command line                                |
|---------------------------------|----------------------------------------------------|
| `str`, `int`, `float`           | a text, a whole number, a finite number            |
| `Path`                          | a path                                             |
| `bool`                          | `--name / --no-name`                               |
| `Literal["a", "b"]`             | one of them                                        |
| `tuple[int, int, int]`          | `3,32,32`                                          |
| `tuple[float, ...]`             | numbers parted by commas                           |
| `tuple[Path, ...]`, by position | any number of paths                                |
| `X \| None`                     | as X; may be left out                              |

Anything else is refused: a parameter that cannot be typed does not belong to a command.
"""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hwnas.cli.commands import function_name
from hwnas.cli.invocation import invoke
from hwnas.core.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Names that annotations may use though their module imports them for type checkers only.
ANNOTATION_NAMES = {"Path": Path, "Literal": Literal, "Progress": Progress}
REQUIRED = inspect.Parameter.empty
_OBJECTS = ("progress", "log")
"""Parameters that take objects: the command line gives the first, and leaves the other."""
METAVARS = {str: "TEXT", int: "INTEGER", float: "NUMBER"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a public function, as the command line needs it.

    Attributes:
        name: Its Python name.
        kind: Its resolved annotation, less `| None`.
        default: Its default; `REQUIRED` where it has none.
        help: What the docstring says of it.
    """

    name: str
    kind: Any
    default: Any
    help: str


def finite_number(value: str | float) -> float:
    """Parse a number that is neither infinite nor NaN: no setting of hwnas means either.

    Raises:
        click.BadParameter: It is none.
    """
    try:
        number = float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a number.") from None
    if not math.isfinite(number):
        raise click.BadParameter(f"{value!r} is not a finite number.")
    return number


def whole_number(value: str | int) -> int:
    """Parse a whole number.

    Raises:
        click.BadParameter: It is none.
    """
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a whole number.") from None


PARSERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: whole_number,
    float: finite_number,
}


def comma_separated(element: type, count: int | None) -> Callable[[str], tuple[Any, ...]]:
    """Return a parser of values parted by commas.

    Args:
        element: Type of each: `int`, `float` or `str`.
        count: How many there must be; None for any number.
    """
    metavar = _tuple_metavar(element, count)

    def parse(value: str | tuple[Any, ...]) -> tuple[Any, ...]:
        if isinstance(value, tuple):  # a default
            return value
        elements = tuple(PARSERS[element](part.strip()) for part in value.split(","))
        if count is not None and len(elements) != count:
            raise click.BadParameter(f"{value!r} is not of the form {metavar}.")
        return elements

    return parse


def parameters_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Read a public function's parameters, all but `progress` and `log`, as in its signature.

    Raises:
        TypeError: The docstring's `Args:` leaves a parameter out.
    """
    signature = inspect.signature(function)
    named = {
        name: parameter for name, parameter in signature.parameters.items() if name not in _OBJECTS
    }
    # The return annotation is left out: it may name what only type checkers import.
    annotated = types.SimpleNamespace(
        __annotations__={name: parameter.annotation for name, parameter in named.items()}
    )
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    kinds = typing.get_type_hints(annotated, scope, ANNOTATION_NAMES)
    _, helps = split_docstring(inspect.getdoc(function) or "")
    missing = [name for name in named if name not in helps]
    if missing:
        raise TypeError(f"{function.__name__}: no Args entry for {', '.join(missing)}")
    return tuple(
        Parameter(
            name=name,
            kind=_without_none(kinds[name]),
            default=parameter.default,
            help=helps[name],
        )
        for name, parameter in named.items()
    )


def split_docstring(text: str) -> tuple[str, dict[str, str]]:
    r"""Split a Google docstring into its prose and its `Args:` entries.

    >>> split_docstring("Do it.\n\nAt once.\n\nArgs:\n    what: The thing\n        to do.")
    ('Do it.\n\nAt once.', {'what': 'The thing to do.'})
    """
    sections = re.split(r"^([A-Z]\w+):$", text, flags=re.MULTILINE)
    prose = sections[0].strip()
    bodies = dict(zip(sections[1::2], sections[2::2], strict=True))
    helps: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(bodies.get("Args", "")).splitlines():
        entry = re.match(r"(\w+)(?: \([^)]*\))?: (.*)", line)
        if entry:
            name = entry[1]
            helps[name] = entry[2].strip()
        elif line.strip():
            helps[name] += f" {line.strip()}"
    return prose, helps


def command_from_function(
    function: Callable[..., Any], *, name: str, positional: tuple[str, ...] = ()
) -> click.Command:
    """Make the command that calls a public function.

    Args:
        function: The function; `progress` is passed to it where it takes one.
        name: The command's path, e.g. `derive` or `table show`.
        positional: Parameters that are given by position.
    """

    def callback(*, as_json: bool, debug: bool, **arguments: Any) -> None:
        called = function_name(name)
        invoke(function, name=called, arguments=arguments, as_json=as_json, debug=debug)

    prose, _ = split_docstring(inspect.getdoc(function) or "")
    parameters = parameters_of(function)
    options = [_option(parameter) for parameter in parameters if parameter.name not in positional]
    # Positions follow the table, not the signature.
    by_name = {parameter.name: parameter for parameter in parameters}
    arguments = [_argument(by_name[each]) for each in positional]
    return click.Command(
        name.rpartition(" ")[2],
        callback=callback,
        params=[*arguments, *options, *_common_options()],
        help="\n\n".join([prose, *_argument_helps(by_name, positional)]),
    )


def click_type(kind: Any) -> tuple[Any, str | None]:
    """Return what click parses a resolved annotation with, and its metavar where click has none.

    Raises:
        TypeError: It has no form on the command line.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Path:
        return click.Path(path_type=Path), None
    if origin is Literal:
        return click.Choice(list(parts)), None
    if origin is tuple and parts[0] in PARSERS and set(parts) <= {parts[0], Ellipsis}:
        count = None if Ellipsis in parts else len(parts)
        return comma_separated(parts[0], count), _tuple_metavar(parts[0], count)
    if kind in PARSERS:
        return PARSERS[kind], METAVARS[kind]
    raise TypeError(f"{kind!r} has no form on the command line")


def _tuple_metavar(element: type, count: int | None) -> str:
    if element is int and count == 3:
        return "C,H,W"  # the only triple of whole numbers in this field is an image's shape
    return ",".join([METAVARS[element]] * count) if count else f"{METAVARS[element]},..."


def _option(parameter: Parameter) -> click.Option:
    flag = "--" + parameter.name.replace("_", "-")
    settings: dict[str, Any] = {"help": parameter.help}
    if parameter.default is REQUIRED:
        settings["required"] = True
    else:
        settings |= {"default": parameter.default, "show_default": True}
    if parameter.kind is bool:
        return click.Option([parameter.name, f"{flag}/--no-{flag[2:]}"], **settings)
    parser, metavar = click_type(parameter.kind)
    return click.Option([parameter.name, flag], type=parser, metavar=metavar, **settings)


def _argument(parameter: Parameter) -> click.Argument:
    required = parameter.default is REQUIRED
    settings: dict[str, Any] = {} if required else {"default": parameter.default}
    kind = parameter.kind
    if kind == tuple[Path, ...]:
        kind, settings["nargs"] = Path, -1
    parser, _ = click_type(kind)
    return click.Argument([parameter.name], type=parser, required=required, **settings)


def _common_options() -> list[click.Option]:
    return [
        click.Option(
            ["as_json", "--json"], is_flag=True, help="Print the result as one JSON document."
        ),
        click.Option(
            ["debug", "--debug"], is_flag=True, help="Log more, and show the trace of an error."
        ),
    ]


def _argument_helps(parameters: Mapping[str, Parameter], positional: tuple[str, ...]) -> list[str]:
    """Click lists no arguments in a help: say what each is in its prose."""
    return [f"{name.upper()}: {parameters[name].help}" for name in positional]


def _without_none(kind: Any) -> Any:
    """Return X of `X | None`."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    parts = [part for part in typing.get_args(kind) if part is not types.NoneType]
    if len(parts) != 1:
        raise TypeError(f"{kind!r} has no form on the command line")
    return parts[0]
