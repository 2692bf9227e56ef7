"""Inputs for a model that nothing is known of: open sizes are fixed, values are made up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.errors import ConfigError
from hwnas_profilers.breakdown.values import shape_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """One input of a model.

    Attributes:
        name: Its name.
        dtype: NumPy's name of its type.
        shape: Its sizes: a number, the name of an open one, or None for one without a name.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


def inputs_of(model: onnx.ModelProto) -> list[ModelInput]:
    """Return the inputs of a model that are fed, not those that have a constant.

    Raises:
        ConfigError: One of them is no tensor of numbers.
    """
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    found = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        dtype = ""
        if value.type.HasField("tensor_type") and kind.elem_type != onnx.TensorProto.STRING:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        if not dtype.startswith(("float16", "float32", "float64", "int", "uint", "bool")):
            raise ConfigError(
                f"input `{value.name}` cannot be made up: it is no tensor of numbers that NumPy has"
            )
        if not kind.HasField("shape"):
            raise ConfigError(f"input `{value.name}` says nothing of its shape, not even its rank")
        sizes: list[int | str | None] = []
        for dim in kind.shape.dim:
            is_known = dim.HasField("dim_value") and dim.dim_value > 0
            sizes.append(dim.dim_value if is_known else dim.dim_param or None)
        found.append(ModelInput(name=value.name, dtype=dtype, shape=tuple(sizes)))
    return found


def fix_shapes(
    inputs: Sequence[ModelInput], *, input_shape: tuple[int, ...] | None, batch: int
) -> list[tuple[int, ...]]:
    """Fix the open sizes of all inputs.

    A shape that is given goes to each input that it fits and that has open sizes; sizes of one name
    are equal in all inputs. Else an open first size is the batch.

    Args:
        inputs: The inputs.
        input_shape: Shape given by the user.
        batch: Images per call.

    Raises:
        ConfigError: A size stays open, or what is given fits no input.
    """
    named: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    if input_shape is not None:
        takers = [one for one in inputs if _fits(one, input_shape)]
        open_takers = [one for one in takers if not all(isinstance(n, int) for n in one.shape)]
        if not takers:
            raise ConfigError(
                f"input_shape {shape_text(input_shape)} fits no input of the model: it takes "
                + ", ".join(_text(one) for one in inputs)
            )
        if batch not in (1, input_shape[0]):
            raise ConfigError(f"batch is {batch}, but input_shape begins with {input_shape[0]}")
        for one in open_takers:
            shapes[one.name] = input_shape
            named |= {n: size for n, size in zip(one.shape, input_shape, strict=True)
                      if isinstance(n, str)}  # fmt: skip
    for one in inputs:
        if one.name not in shapes:
            shapes[one.name] = _fix(one, named, batch)
    fixed = [one for one in inputs if one.shape and isinstance(one.shape[0], int)]
    if batch != 1 and len(fixed) == len(inputs) and all(one.shape[0] != batch for one in fixed):
        raise ConfigError(
            f"batch is {batch}, but the model's is fixed: it takes "
            + ", ".join(_text(one) for one in inputs),
            hint="export it with a free batch, or leave --batch away",
        )
    return [shapes[one.name] for one in inputs]


def random_feed(
    inputs: Sequence[ModelInput], shapes: Sequence[tuple[int, ...]], *, seed: int
) -> dict[str, NDArray[np.generic]]:
    """Make inputs up: floats in [0, 1) as pixels are, integers and booleans 0 or 1.

    Larger integers could be out of the range of what they index.
    """
    generator = np.random.default_rng(seed)
    feed: dict[str, NDArray[np.generic]] = {}
    for one, shape in zip(inputs, shapes, strict=True):
        dtype = np.dtype(one.dtype)
        is_float = np.issubdtype(dtype, np.floating)
        values = generator.random(shape) if is_float else generator.integers(0, 2, shape)
        # `asarray`, as a scalar's draw is no array.
        feed[one.name] = np.asarray(values).astype(dtype)
    return feed


def feed_text(feed: dict[str, NDArray[np.generic]]) -> str:
    """Say what a model was fed."""
    return ", ".join(
        f"{name} {array.dtype} {shape_text(array.shape)} "
        f"({'random in [0, 1)' if np.issubdtype(array.dtype, np.floating) else 'random 0 or 1'})"
        for name, array in feed.items()
    )


def _fits(one: ModelInput, shape: tuple[int, ...]) -> bool:
    return len(one.shape) == len(shape) and all(
        size > 0 and (not isinstance(known, int) or known == size)
        for known, size in zip(one.shape, shape, strict=True)
    )


def _fix(one: ModelInput, named: dict[str, int], batch: int) -> tuple[int, ...]:
    sizes = []
    for axis, size in enumerate(one.shape):
        if isinstance(size, int):
            sizes.append(size)
        elif isinstance(size, str) and size in named:
            sizes.append(named[size])
        elif axis == 0:
            sizes.append(batch)
        else:
            name = f"`{size}`" if size else "without a name"
            example = ",".join(str(n) if isinstance(n, int) else "224" if a else str(batch)
                               for a, n in enumerate(one.shape))  # fmt: skip
            raise ConfigError(
                f"input `{one.name}` leaves a size open: axis {axis}, {name}, of {_text(one)}",
                hint=f"give its whole shape, e.g. --input-shape {example}",
            )
    return tuple(sizes)


def _text(one: ModelInput) -> str:
    return f"{one.name} {'x'.join(str(n) if n is not None else '?' for n in one.shape)}"
