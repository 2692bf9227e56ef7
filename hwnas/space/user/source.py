"""From the name of a user's space to the parts of the network that it stands for."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from hwnas.core.errors import ConfigError, HwnasError, InputFileError, nearest
from hwnas.core.named_code import attribute_of, imported, is_file, on_import_path
from hwnas.space.user.chain import Part, parts_of
from hwnas.space.user.spec import USER

if TYPE_CHECKING:
    from collections.abc import Callable

_FORMS = f"{USER}path/to/file.py:function or {USER}package.module:function"

_files: dict[tuple[str, int, int], Any] = {}


def shape_and_classes(
    name: str, image_shape: tuple[int, int, int] | None, classes: int | None
) -> tuple[tuple[int, int, int], int]:
    """Return the images and classes of a user's space: as given, or its function's own defaults.

    Args:
        name: The space, `user:...`.
        image_shape: (channels, height, width).
        classes: Number of classes.

    Raises:
        InputFileError: The file does not exist.
        ConfigError: There is no such function, or it does not tell what is not given.
    """
    parameters = inspect.signature(function_of(name)).parameters
    given: dict[str, Any] = {"image_shape": image_shape, "classes": classes}
    for key, value in given.items():
        if value is None and key in parameters:
            default = parameters[key].default
            given[key] = None if default is inspect.Parameter.empty else default
    if given["image_shape"] is None or given["classes"] is None:
        raise ConfigError(
            f"{name} does not say for which images and classes it is",
            hint="give them (--image-shape 3,32,32 --classes 10), or declare them as defaults: "
            "def network(image_shape=(3, 32, 32), classes=10)",
        )
    try:
        channels, height, width = map(int, given["image_shape"])
        return (channels, height, width), int(given["classes"])
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name}: image_shape is (channels, height, width) and classes is a number, not "
            f"{given['image_shape']} and {given['classes']}"
        ) from error


def declared_parts(name: str, image_shape: tuple[int, int, int], classes: int) -> list[Part]:
    """Call a user's function, and return the parts of the network that it gives, newly made.

    Args:
        name: The space, `user:...`.
        image_shape: (channels, height, width); passed on where the function takes it.
        classes: Number of classes; likewise.

    Raises:
        InputFileError: The file does not exist.
        ConfigError: There is no such function, it fails, or it gives no chain of parts.
    """
    function = function_of(name)
    parameters = inspect.signature(function).parameters
    offered = {"image_shape": image_shape, "classes": classes}
    arguments = {key: value for key, value in offered.items() if key in parameters}
    with on_import_path(_place_and_function(name)[0]):
        try:
            network = function(**arguments)
        except HwnasError as error:
            raise ConfigError(f"{name}: {error.message}", hint=error.hint) from error
        except Exception as error:
            raise ConfigError(
                f"{name} cannot be called: {type(error).__name__}: {error}",
                hint="hwnas passes `image_shape` and `classes` where the function takes them, and "
                "nothing else",
            ) from error
    if not isinstance(network, nn.Sequential):
        raise ConfigError(
            f"{name} gives {type(network).__name__}, not a torch.nn.Sequential of parts"
        )
    return parts_of(network, name)


def _place_and_function(name: str) -> tuple[str, str]:
    place, _, function = name.removeprefix(USER).rpartition(":")
    if not place or not function:
        hint = f"name a function in it: {name}:network" if name.endswith(".py") else ""
        raise ConfigError(f"`{name}` names no space", hint=hint or f"write {_FORMS}")
    return place, function


def function_of(name: str) -> Callable[..., Any]:
    """Import a user's function; as long as its file does not change, it is the same one.

    Args:
        name: The space, `user:...`.

    Raises:
        InputFileError: The file does not exist.
        ConfigError: It cannot be imported, or there is no such function in it.
    """
    place, function = _place_and_function(name)
    with on_import_path(place):
        try:
            code = _file_as_it_is(Path(place)) if is_file(place) else imported(place)
        except HwnasError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{place} cannot be imported: {type(error).__name__}: {error}",
                hint="" if is_file(place) else f"a space of your own is named {_FORMS}",
            ) from error
    found = attribute_of(code, function, name)
    if isinstance(found, nn.Module) or not callable(found):
        raise ConfigError(
            f"{name} is {type(found).__name__}, not a function that gives a network",
            hint="each network needs modules of its own: def network(): return nn.Sequential(...)",
        )
    return found  # type: ignore[no-any-return]


def _file_as_it_is(path: Path) -> Any:
    """Run a file, but once for as long as it does not change."""
    try:
        state = path.stat()
    except OSError as error:
        beside = path.parent.glob("*.py") if path.parent.is_dir() else ()
        similar = nearest(path.name, [each.name for each in beside])
        hint = f"did you mean {path.parent / similar[0]}? " if similar else ""
        raise InputFileError(
            f"{path} does not exist",
            hint=f"{hint}the file of a space is named from the current folder, {Path.cwd()}",
        ) from error
    key = (str(path.resolve()), state.st_mtime_ns, state.st_size)
    if key not in _files:
        _files[key] = imported(str(path))
    return _files[key]
