"""What a user names as a model: an ONNX file, a callable that makes a module, an exported program.

A pickle is never opened: unpickling runs whatever code its author put in. A callable is the user's
own code, named on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.core.artifacts import sha256_of_file
from hwnas.core.errors import ConfigError, ExportError, InputFileError, nearest
from hwnas.core.named_code import attribute_of, imported, is_file, on_import_path
from hwnas.core.weights import tensors_only

if TYPE_CHECKING:
    import onnx
    from torch import nn

_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_ZIP = b"PK\x03\x04"
_CALLABLE = "path/to/file.py:callable or package.module:callable"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that can be broken down; one of `onnx_path` and `module` is set.

    Attributes:
        name: What it was named by.
        onnx_path: Its ONNX file; weights may lie in files beside it.
        module: Its module, in eval mode.
        example_shape: The shape that it was exported for, of an exported program.
        digests: SHA-256 of each file that it was read from, by role.
    """

    name: str
    onnx_path: Path | None = None
    module: nn.Module | None = None
    example_shape: tuple[int, ...] | None = None
    digests: dict[str, str] = field(default_factory=dict)

    def shape_of_module(self, input_shape: tuple[int, ...] | None, batch: int) -> tuple[int, ...]:
        """Return the shape to run its module on.

        Raises:
            ConfigError: None is known, or it contradicts the batch.
        """
        shape = input_shape or self.example_shape
        if shape is None:
            raise ConfigError(
                f"the input shape of {self.name} is not known: a module does not tell",
                hint="give it, batch first: --input-shape 1,3,224,224",
            )
        if min(shape) < 1:
            raise ConfigError(f"input_shape {shape} has a size below 1")
        if batch not in (1, shape[0]):
            raise ConfigError(
                f"batch is {batch}, but the input shape {shape} begins with {shape[0]}"
            )
        return shape


def model_source(model: Path) -> ModelSource:
    """Find and open what a user named as a model.

    Args:
        model: An ONNX file; `path/to/file.py:callable` or `package.module:callable`, where the
            callable takes nothing and returns an `nn.Module`; or a `.pt2` file of
            `torch.export.save`.

    Raises:
        InputFileError: It does not exist, is cut, or is no model.
        ConfigError: It is a pickle, or the callable does not give a module.
    """
    text = str(model)
    place, _, name = text.rpartition(":")
    if place and name and not model.exists():
        return _source_from_callable(text, place, name)
    if not model.exists():
        similar = nearest(model.name, _names_in(model.parent))
        hint = f"did you mean {model.parent / similar[0]}?" if similar else ""
        if not similar and model.suffix != ".onnx":
            hint = f"a module is named {_CALLABLE}"
        raise InputFileError(f"{model} does not exist", hint=hint)
    if model.suffix == ".py":
        raise ConfigError(f"{model} is a program: which callable?", hint=f"name it: {model}:NAME")
    if not model.is_file():
        raise InputFileError(f"{model} is a folder, not a model", hint="name the .onnx file in it")
    if model.suffix == ".pt2":
        return _source_from_program(model)
    if model.suffix in _PICKLES or _first_bytes(model) == _ZIP:
        raise ConfigError(
            f"{model} is a pickle, which hwnas does not open: it would run code from the file",
            hint=f"name a callable that builds the network and loads its weights ({_CALLABLE}); or "
            "export it: torch.onnx.export(module, args, 'model.onnx', dynamo=True)",
        )
    proto = read_onnx(model)
    return ModelSource(name=text, onnx_path=model, digests=_digests(model, proto))


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX model without its external weights, and see that it is one.

    Raises:
        InputFileError: It is no ONNX model.
    """
    import onnx

    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # protobuf's DecodeError, which ships no type information
        raise InputFileError(f"{path} is no ONNX model, or was cut: {error}") from error
    # Some files of other formats, and an empty one, parse as a message that says nothing.
    if not proto.graph.node or not proto.opset_import:
        raise InputFileError(f"{path} is no ONNX model: it holds no graph of operators")
    return proto


def _digests(path: Path, proto: onnx.ModelProto) -> dict[str, str]:
    """Hash a model's file and those that its weights lie in.

    Raises:
        InputFileError: One of them is missing.
    """
    import onnx

    digests = {"model": sha256_of_file(path)}
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        if not (path.parent / location).is_file():
            raise InputFileError(
                f"weights of {path} are missing: `{tensor.name}` lies in {path.parent / location}",
                hint="put that file beside the model, under this name",
            )
        if location not in digests:
            digests[location] = sha256_of_file(path.parent / location)
    return digests


def _source_from_callable(text: str, place: str, name: str) -> ModelSource:
    from torch import nn

    path = Path(place)
    if is_file(place) and not path.is_file():
        raise InputFileError(f"{path} does not exist", hint=f"a module is named {_CALLABLE}")
    try:
        with on_import_path(place):
            made = attribute_of(imported(place), name, text)
            made = made if isinstance(made, nn.Module) else _call(made, text)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{text} cannot be made: {type(error).__name__}: {error}",
            hint="" if is_file(place) else f"a module is named {_CALLABLE}",
        ) from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{text} gives {type(made).__name__}, not a torch.nn.Module")
    digests = {"model": sha256_of_file(path)} if is_file(place) else {}
    return ModelSource(name=text, module=made.eval(), digests=digests)


def _source_from_program(path: Path) -> ModelSource:
    import torch
    from torch import Tensor

    try:
        with tensors_only():
            program = torch.export.load(path)
        module = torch.export.unflatten(program)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputFileError(
            f"{path} is no program of torch.export.save that hwnas can open: {reason}",
            hint="only plain tensors are read from it, no pickled objects",
        ) from error
    given: tuple[tuple[Any, ...], dict[str, Any]] = program.example_inputs or ((), {})
    arguments, keywords = given
    inputs = program.graph_signature.user_inputs
    if len(inputs) != 1 or keywords:
        raise ConfigError(
            f"{path} takes {len(inputs)} inputs; hwnas exports modules of one",
            hint="export it yourself, with torch.onnx.export(program, dynamo=True), and name the "
            ".onnx file",
        )
    example = arguments[0] if len(arguments) == 1 else None
    shape = tuple(example.shape) if isinstance(example, Tensor) else None
    return ModelSource(
        name=str(path),
        module=module.eval(),
        example_shape=shape,
        digests={"model": sha256_of_file(path)},
    )


def _call(make: Any, text: str) -> Any:
    if not callable(make):
        raise ConfigError(f"{text} is {type(make).__name__}, not a callable that gives a module")
    return make()


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(_ZIP))
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror}") from error


def _names_in(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def onnx_model(source: ModelSource, input_shape: tuple[int, ...] | None, batch: int) -> str | bytes:
    """Return a model as runtimes take it: the path of its file, or the bytes of a fresh export.

    Raises:
        ConfigError: The shape of a module's input is not known.
        ExportError: The module cannot be exported.
    """
    if source.onnx_path is not None:
        return str(source.onnx_path)
    from hwnas_export.onnx_export import onnx_from_module

    assert source.module is not None
    shape = source.shape_of_module(input_shape, batch)
    try:
        exported: bytes = onnx_from_module(source.module, shape).SerializeToString()
    except ExportError as error:
        raise ExportError(
            f"{source.name} on an input of {shape}: {error.message}", hint=error.hint
        ) from error
    return exported
