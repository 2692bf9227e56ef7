"""Strict decoding of TOML and JSON into frozen dataclasses, and the way back.

Types are checked by msgspec; unknown keys, which msgspec passes over for dataclasses, are found by
a walk over the type and refused with the nearest known key. Nothing is defaulted in silence: a
value of a wrong type is an error, never a conversion.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import msgspec

from hwnas.core.errors import ConfigError, HwnasError, InputFileError, nearest

if typing.TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")
Hook: TypeAlias = Callable[[type, Any], Any]


def decode_toml(path: Path, kind: type[T]) -> T:
    """Read a TOML file into a dataclass.

    Args:
        path: The file.
        kind: A dataclass; every table of the file must match one of its fields.

    Raises:
        InputFileError: The file is missing or unreadable.
        ConfigError: The file is no TOML, holds an unknown key, or a value of a wrong type.
    """
    text = read_text(path)
    try:
        document = tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(f"{path} is not valid TOML: nested too deeply") from error
    except ValueError as error:  # TOMLDecodeError, and int() on thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return convert(document, kind, source=str(path))


def decode_json(data: bytes | str, kind: type[T], *, source: str, hook: Hook | None = None) -> T:
    """Decode JSON text into a dataclass, as strictly as `decode_toml`.

    Args:
        data: The JSON text.
        kind: The type to decode into.
        source: What the text is, for the error: a path, or a path and line.
        hook: As in `convert`.

    Raises:
        ConfigError: The text is no JSON, holds an unknown key, or a value of a wrong type.
    """
    try:
        document = msgspec.json.decode(data)
    except RecursionError as error:
        raise ConfigError(f"{source} is not valid JSON: nested too deeply") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ConfigError(f"{source} is not valid JSON: {error}") from error
    return convert(document, kind, source=source, hook=hook)


def read_json(path: Path, kind: type[T], *, hook: Hook | None = None) -> T:
    """Read a JSON file into a dataclass. Raises as `decode_toml`.

    Args:
        path: The file.
        kind: The type to decode into.
        hook: As in `convert`.
    """
    return decode_json(read_text(path), kind, source=str(path), hook=hook)


def convert(document: object, kind: type[T], *, source: str, hook: Hook | None = None) -> T:
    """Convert plain data into a dataclass.

    Args:
        document: The data.
        kind: The type to convert to.
        source: What the data is, for the error.
        hook: Makes a value of a type that is no dataclass, given the type and the plain data.

    Raises:
        ConfigError: An unknown key, or a value of a wrong type; the key's path is named.
    """
    _refuse_unknown_keys(document, kind, where="", source=source)
    try:
        return msgspec.convert(document, kind, dec_hook=hook)
    except msgspec.ValidationError as error:
        reason = error.__cause__ or error
        hint = reason.hint if isinstance(reason, HwnasError) else ""
        message, _, place = str(error).partition(" - at `$")
        where = f" at {place.rstrip('`').lstrip('.')}" if place else ""
        if isinstance(reason, HwnasError):
            message = reason.message
        raise ConfigError(f"{source}{where}: {message}", hint=hint) from error


def encode_json(value: object, *, indent: int = 0) -> bytes:
    """Encode a dataclass or plain data as JSON, keys sorted: equal values give equal bytes."""
    data = msgspec.json.encode(value, order="deterministic")
    return msgspec.json.format(data, indent=indent) + b"\n" if indent else data


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        InputFileError: The file is missing, a folder, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        similar = nearest(path.name, _names_in(path.parent))
        hint = f"did you mean {path.parent / similar[0]}?" if similar else ""
        raise InputFileError(f"{path} does not exist", hint=hint) from error
    except UnicodeDecodeError as error:
        raise InputFileError(f"{path} is not a UTF-8 text file: {error}") from error
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a zero byte in the path
        raise InputFileError(f"{str(path)!r} cannot be read: {error}") from error


def _names_in(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _refuse_unknown_keys(document: object, kind: Any, *, where: str, source: str) -> None:
    """Walk data beside its type; raise on a key or a name that its type does not have."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        # Only one branch of our unions is a dataclass, a list of them, or None.
        for branch in typing.get_args(kind):
            if dataclasses.is_dataclass(branch) or typing.get_origin(branch) is tuple:
                _refuse_unknown_keys(document, branch, where=where, source=source)
        return
    if origin in (tuple, list) and isinstance(document, list):
        element = typing.get_args(kind)[0]
        for index, item in enumerate(document):
            _refuse_unknown_keys(item, element, where=f"{where}[{index}]", source=source)
        return
    if origin is dict and isinstance(document, dict):
        for key, item in document.items():
            value_kind = typing.get_args(kind)[1]
            _refuse_unknown_keys(item, value_kind, where=f"{where}.{key}", source=source)
        return
    if origin is typing.Literal and isinstance(document, str):
        choices = [choice for choice in typing.get_args(kind) if isinstance(choice, str)]
        if choices and document not in choices:
            similar = nearest(document, choices)
            hint = f"did you mean `{similar[0]}`?" if similar else f"known: {', '.join(choices)}"
            raise ConfigError(
                f"{source} at {where.lstrip('.')}: Invalid enum value '{document}'", hint=hint
            )
        return
    if not (dataclasses.is_dataclass(kind) and isinstance(document, dict)):
        return
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    for key, item in document.items():
        if key not in known:
            similar = nearest(key, known)
            place = where.lstrip(".")
            table = f" in [{place}]" if place else ""
            hint = f"did you mean `{similar[0]}`?" if similar else f"known: {', '.join(known)}"
            raise ConfigError(f"{source}: unknown key `{key}`{table}", hint=hint)
        _refuse_unknown_keys(item, hints[key], where=f"{where}.{key}", source=source)
