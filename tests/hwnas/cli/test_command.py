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
from hwnas.cli.commands import COMMANDS, GROUPS, entries_of, function_name

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
    function = getattr(api, function_name(name))
    command = command_from_function(function, name=name, positional=COMMANDS[name].positional)
    parameters = {
        key: parameter
        for key, parameter in inspect.signature(function).parameters.items()
        if key not in ("progress", "log")
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
    docstring = inspect.getdoc(getattr(api, function_name(name))) or ""
    assert docstring.splitlines()[0] == COMMANDS[name].summary


@pytest.mark.parametrize("name", COMMANDS)
def test_progress_is_last_and_by_keyword(name: str) -> None:
    parameters = inspect.signature(getattr(api, function_name(name))).parameters
    if "progress" in parameters:
        assert list(parameters)[-1] == "progress"
        assert parameters["progress"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, hwnas: Callable[..., Result]) -> None:
    result = hwnas(*name.split(), "--help")
    assert result.exit_code == 0, result.output
    assert COMMANDS[name].summary in " ".join(result.stdout.split())
    assert "--json" in result.stdout
    assert "--debug" in result.stdout


def test_commands_are_the_public_functions() -> None:
    functions = [function_name(name) for name in COMMANDS]
    assert functions == list(api.FUNCTIONS)
    assert sorted(functions) == sorted(api.__all__)
    assert set(functions) <= set(dir(api))


def test_groups_hold_all_commands_of_two_words_and_no_others() -> None:
    assert {name.partition(" ")[0] for name in COMMANDS if " " in name} == set(GROUPS)
    reached = {name for name in entries_of("") if name not in GROUPS}
    reached |= {f"{group} {name}" for group in GROUPS for name in entries_of(group)}
    assert reached == set(COMMANDS)
    assert entries_of("")["table"] == GROUPS["table"]


def test_a_group_lists_its_commands_and_imports_none(hwnas: Callable[..., Result]) -> None:
    flowing = " ".join(hwnas("table", "--help").stdout.split())
    for name, summary in entries_of("table").items():
        assert f"{name} {summary}" in flowing
    code = (
        "import sys\nfrom hwnas.cli.main import cli\n"
        "cli(['table', '--help'], standalone_mode=False)\nprint(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not [name for name in result.stdout.split() if name.startswith("hwnas.stages")]


def test_an_unknown_command_of_a_group_names_the_nearest(hwnas: Callable[..., Result]) -> None:
    result = hwnas("table", "shw")
    assert result.exit_code == 2
    assert "Did you mean `show`?" in result.stderr


def test_an_unknown_function_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="profle"):
        _ = api.profle


@pytest.mark.parametrize("name", COMMANDS)
def test_a_functions_module_is_light(name: str) -> None:
    code = f"import sys, hwnas.api; hwnas.api.{function_name(name)}; print(*sys.modules)"
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


def test_a_tuple_of_paths_by_position_takes_any_number(
    monkeypatch: pytest.MonkeyPatch, hwnas: Callable[..., Result]
) -> None:
    def merge(tables: tuple[Path, ...], out: Path, *, prefer: str | None = None) -> dict[str, Any]:
        """Merge.

        Args:
            tables: The tables.
            out: Where to.
            prefer: Which.
        """
        return {"tables": tables, "types": [type(each).__name__ for each in tables], "out": out}

    monkeypatch.setitem(vars(api), "table_merge", merge)
    result = hwnas("table", "merge", "a, b", "c", "--out", "o", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["tables"] == ["a, b", "c"]  # a comma is part of a path
    assert set(found["types"]) <= {"PosixPath", "WindowsPath"}
    call = "hwnas.api.table_merge(tables=(Path('a, b'), Path('c')), out=Path('o'))"
    assert f"python: {call}\n" in result.stderr
    one = hwnas("table", "merge", "a", "--out", "o", "--prefer", "last").stderr
    assert "table_merge(tables=(Path('a'),), out=Path('o'), prefer='last')" in one
    none = hwnas("table", "merge", "--out", "o")
    assert none.exit_code == 2
    assert "TABLES" in none.stderr
    option = hwnas(
        "table", "merge", "a", HWNAS_TABLE_MERGE_OUT="there", HWNAS_TABLE_MERGE_PREFER="x"
    )
    assert "out=Path('there'), prefer='x'" in option.stderr


def test_a_tuple_of_paths_is_no_option() -> None:
    def merge(*, tables: tuple[Path, ...]) -> None:
        """Merge.

        Args:
            tables: The tables.
        """

    with pytest.raises(TypeError, match="no form on the command line"):
        command_from_function(merge, name="merge")


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
