"""A command's options are its function's parameters."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import pytest

from hwnas import api
from hwnas.cli.command import (
    click_type,
    command_from_function,
    finite_number,
    parameters_of,
    split_docstring,
)
from hwnas.cli.commands import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

GIVEN = ("--space", "s", "--out", "o")
HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "tensorrt", "scipy", "sklearn", "matplotlib")


def called_with(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["calls"]


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_the_functions_parameters(name: str) -> None:
    function = getattr(api, name)
    command = command_from_function(function, name=name, positional=COMMANDS[name].positional)
    parameters = {
        key: parameter
        for key, parameter in inspect.signature(function).parameters.items()
        if key != "progress"
    }
    options = {option.name: option for option in command.params}
    assert set(options) == {*parameters, "as_json", "debug"}
    for key, parameter in parameters.items():
        option = options[key]
        assert option.required == (parameter.default is inspect.Parameter.empty), key
        if not option.required:
            assert option.default == parameter.default, key
        if key in COMMANDS[name].positional:
            assert isinstance(option, click.Argument)
        else:
            assert option.opts == [f"--{key.replace('_', '-')}"]


@pytest.mark.parametrize("name", COMMANDS)
def test_summary_is_the_docstrings_first_line(name: str) -> None:
    docstring = inspect.getdoc(getattr(api, name)) or ""
    assert docstring.splitlines()[0] == COMMANDS[name].summary


@pytest.mark.parametrize("name", COMMANDS)
def test_progress_is_last_and_by_keyword(name: str) -> None:
    parameters = inspect.signature(getattr(api, name)).parameters
    if "progress" in parameters:
        assert list(parameters)[-1] == "progress"
        assert parameters["progress"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, hwnas: Callable[..., Result]) -> None:
    result = hwnas(name, "--help")
    assert result.exit_code == 0, result.output
    assert COMMANDS[name].summary in " ".join(result.stdout.split())
    assert "--json" in result.stdout
    assert "--debug" in result.stdout


def test_commands_are_the_public_functions() -> None:
    assert list(COMMANDS) == list(api.FUNCTIONS)
    assert sorted(COMMANDS) == sorted(api.__all__)
    assert set(COMMANDS) <= set(dir(api))


def test_an_unknown_function_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="profle"):
        _ = api.profle


@pytest.mark.parametrize("name", COMMANDS)
def test_a_functions_module_is_light(name: str) -> None:
    code = f"import sys, hwnas.api; hwnas.api.{name}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not set(HEAVY) & set(result.stdout.split())


def test_arguments_reach_the_function(profile: Callable[..., Result]) -> None:
    result = profile(
        *GIVEN, "--json", "--budget-ms", "0.5", "--image-shape", "3,32,32", "--factors", "1, 2.5,3",
        "--mode", "exact", "--force", "--seed", "7",
    )  # fmt: skip
    assert called_with(result) == {
        "space": "s",
        "out": "o",
        "budget_ms": 0.5,
        "image_shape": [3, 32, 32],
        "factors": [1.0, 2.5, 3.0],
        "mode": "exact",
        "force": True,
        "seed": 7,
    }


def test_defaults_are_the_functions_own(profile: Callable[..., Result]) -> None:
    called = called_with(profile(*GIVEN, "--json"))
    assert called["budget_ms"] == 2.5
    assert called["image_shape"] is None
    assert called["factors"] == [0.5, 1.0]
    assert called["force"] is False


def test_the_environment_gives_options_and_the_command_line_wins(
    profile: Callable[..., Result],
) -> None:
    environment = {"HWNAS_PROFILE_SEED": "3", "HWNAS_PROFILE_FORCE": "1"}
    assert called_with(profile(*GIVEN, "--json", **environment))["seed"] == 3
    assert called_with(profile(*GIVEN, "--json", **environment))["force"] is True
    called = called_with(profile(*GIVEN, "--json", "--seed", "4", "--no-force", **environment))
    assert (called["seed"], called["force"]) == (4, False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--space"),
        ((*GIVEN, "--budgt-ms", "1"), "--budget-ms"),
        ((*GIVEN, "--budget-ms", "fast"), "'fast' is not a number"),
        ((*GIVEN, "--budget-ms", "nan"), "not a finite number"),
        ((*GIVEN, "--budget-ms", "inf"), "not a finite number"),
        ((*GIVEN, "--seed", "1.5"), "not a whole number"),
        ((*GIVEN, "--image-shape", "3,32"), "C,H,W"),
        ((*GIVEN, "--image-shape", "3,a,32"), "'a' is not a whole number"),
        ((*GIVEN, "--factors", "1,,2"), "not a number"),
        ((*GIVEN, "--mode", "slow"), "'fast', 'exact'"),
        ((*GIVEN, "stray"), "stray"),
    ],
)
def test_usage_errors_exit_2_and_say_what_is_wrong(
    arguments: tuple[str, ...], said: str, profile: Callable[..., Result]
) -> None:
    result = profile(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_help_shows_types_defaults_and_descriptions(profile: Callable[..., Result]) -> None:
    text = profile("--help").stdout
    flowing = " ".join(text.split())
    assert "It is only for tests." in flowing
    assert "The space, by name. [required]" in flowing
    assert "--image-shape C,H,W" in flowing
    assert "A budget. [default: 2.5]" in flowing
    assert "--force / --no-force" in flowing
    assert "--factors NUMBER,..." in flowing
    assert "Returns" not in text


def test_a_positional_parameter_is_an_argument_and_explained() -> None:
    def check(bundle: Path, *, out: Path | None = None) -> None:
        """Check it.

        Args:
            bundle: The folder to check.
            out: Where to write.
        """

    command = command_from_function(check, name="verify", positional=("bundle",))
    text = command.get_help(click.Context(command, info_name="verify"))
    assert "BUNDLE: The folder to check." in text
    assert "--bundle" not in text
    assert "--out PATH" in text


def test_an_optional_argument_keeps_its_default() -> None:
    def check(bundle: Path = Path("here")) -> None:
        """Check it.

        Args:
            bundle: The folder to check.
        """

    command = command_from_function(check, name="verify", positional=("bundle",))
    context = command.make_context("verify", [])
    assert context.params["bundle"] == Path("here")


def test_a_parameter_without_help_is_refused() -> None:
    def silent(space: str) -> None:
        """Say nothing of the space."""

    with pytest.raises(TypeError, match="no Args entry for space"):
        parameters_of(silent)


@pytest.mark.parametrize("kind", [dict, list[int], tuple[int, str], int | str | None, bytes])
def test_a_type_without_a_form_is_refused(kind: Any) -> None:
    def odd(thing: Any) -> None:
        """Take an odd thing.

        Args:
            thing: It.
        """

    odd.__annotations__["thing"] = kind
    with pytest.raises(TypeError, match="no form on the command line"):
        command_from_function(odd, name="odd")


def test_names_that_only_type_checkers_import_are_known() -> None:
    namespace: dict[str, Any] = {}
    source = (
        "from __future__ import annotations\n"
        "def f(a: Path, *, b: Literal['x'] | None = None, progress: Progress) -> Elsewhere:\n"
        "    '''Do.\n\n    Args:\n        a: A.\n        b: B.\n    '''\n"
    )
    exec(compile(source, "made-up", "exec", dont_inherit=True), namespace)
    first, second = parameters_of(namespace["f"])
    assert first.kind is Path
    assert second.kind == Literal["x"]


def test_entries_may_carry_a_type_and_run_over_lines() -> None:
    entries = "    a (int): One\n        two.\n\n        three.\n    b: B.\n"
    text = f"Do.\n\nArgs:\n{entries}\nRaises:\n    X: Y."
    assert split_docstring(text) == ("Do.", {"a": "One two. three.", "b": "B."})


def test_numbers_may_be_given_in_any_notation() -> None:
    assert finite_number("1e-3") == 0.001
    parse, metavar = click_type(tuple[int, int])
    assert parse("4,5") == (4, 5)
    assert metavar == "INTEGER,INTEGER"
