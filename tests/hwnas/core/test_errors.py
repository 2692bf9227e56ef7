from __future__ import annotations

import builtins
import inspect
import re

import pytest

from hwnas.core import errors
from hwnas.core.errors import GateFailedError, HwnasError, nearest

CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, HwnasError)
}


def drawn_tree() -> dict[str, tuple[str, str]]:
    """Read the tree atop the module: each error's parent and builtin."""
    tree = {"HwnasError": ("", "")}
    parents = ["HwnasError"]
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r" {4}((?:│ {3}| {4})*)[├└]── (\w+)(?: \((\w+)\))?", line)
        if match:
            indent, name, builtin = match.groups()
            depth = len(indent) // 4
            del parents[depth + 1 :]
            tree[name] = (parents[depth], builtin or "")
            parents.append(name)
    return tree


def test_the_tree_in_the_docstring_is_complete() -> None:
    assert set(drawn_tree()) == set(CLASSES)


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"HwnasError"}))
def test_the_tree_in_the_docstring_is_true(name: str) -> None:
    parent, builtin = drawn_tree()[name]
    bases = [base.__name__ for base in CLASSES[name].__bases__]
    assert bases == [parent, builtin] if builtin else bases == [parent]
    if builtin:
        assert issubclass(CLASSES[name], getattr(builtins, builtin))


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"HwnasError"}))
def test_every_error_can_be_caught_as_a_builtin(name: str) -> None:
    plain = [
        base
        for base in CLASSES[name].__mro__
        if base.__module__ == "builtins" and base not in (Exception, BaseException, object)
    ]
    assert plain


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_an_error_keeps_what_it_was_told(name: str) -> None:
    error = CLASSES[name]("it broke", hint="mend it")
    assert error.message == "it broke"
    assert str(error) == "it broke\n  hint: mend it"
    assert str(CLASSES[name]("it broke")) == "it broke"


def test_only_a_failed_gate_and_unfinished_work_have_codes_of_their_own() -> None:
    codes = {name: kind.exit_code for name, kind in CLASSES.items()}
    assert codes.pop("GateFailedError") == 3
    assert codes.pop("UnfinishedError") == 4
    assert set(codes.values()) == {1}
    assert GateFailedError("a gate failed", result={"n": 1}).result == {"n": 1}


def test_the_nearest_names_come_best_first_and_strangers_not_at_all() -> None:
    known = ["budget_ms", "budget", "epochs"]
    assert nearest("budget_m", known, count=2) == ("budget_ms", "budget")
    assert nearest("zzz", known) == ()
