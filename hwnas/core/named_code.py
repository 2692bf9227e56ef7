"""Code that a user names on purpose: `path/to/file.py:name` or `package.module:name`.

It runs with the rights of whoever names it, so nothing but a name that a user gave may come here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def on_import_path(place: str) -> Iterator[None]:
    """Let what lies beside a file, or in the current folder, be imported.

    As Python itself does for a program and for `-m`.

    Args:
        place: `path/to/file.py` or `package.module`.
    """
    folder = str((Path(place).parent if is_file(place) else Path()).resolve())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def is_file(place: str) -> bool:
    """Tell a file from a module's name."""
    return place.endswith(".py")


def imported(place: str) -> Any:
    """Import a file or a module; a file is run anew at each call. What it raises is passed on.

    Args:
        place: `path/to/file.py` or `package.module`.
    """
    if not is_file(place):
        return importlib.import_module(place)
    path = Path(place).resolve()
    # Two files of one name in different folders are two modules.
    name = f"_hwnas_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    sys.modules[name] = code  # dataclasses look their module up
    spec.loader.exec_module(code)
    return code


def attribute_of(code: Any, name: str, text: str) -> Any:
    """Return what a module calls by a name.

    Args:
        code: The module.
        name: The name.
        text: What the user wrote, for the error.

    Raises:
        ConfigError: It has nothing of that name.
    """
    if not hasattr(code, name):
        similar = nearest(name, (each for each in vars(code) if not each.startswith("_")))
        hint = f"did you mean `{similar[0]}`?" if similar else ""
        raise ConfigError(f"{text}: there is no `{name}`", hint=hint)
    return getattr(code, name)
