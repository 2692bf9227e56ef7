"""A node of an ONNX graph as a rule sees it: attributes, constants, and the errors that name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper

from hwnas.core.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor

Operation = Callable[..., Any]
"""Computes a node's outputs from its inputs, in their order; an input that is left out is None.

A node of one output gives a tensor, one of several a tuple."""

BLACK_BOX = (
    "it can still be attacked as a black box, by its scores alone: Square through ONNX Runtime"
)


class Node:
    """One node, while a rule turns it into an operation.

    Every attribute must be asked for: one that no rule reads is an error, as it would change the
    result in silence.

    Args:
        proto: The node.
        opset: Version of the operator set that it is of.
        constants: What is known before the graph runs, by name.
        types: ONNX type of each of them.
    """

    def __init__(
        self,
        proto: onnx.NodeProto,
        opset: int,
        constants: Mapping[str, Tensor],
        types: Mapping[str, int],
    ) -> None:
        self.operator = proto.op_type
        self.opset = opset
        self.inputs = tuple(proto.input)
        self.outputs = tuple(proto.output)
        self._name = proto.name or (proto.output[0] if proto.output else "")
        self._attributes = {each.name: each for each in proto.attribute}
        self._constants = constants
        self._types = types

    def __str__(self) -> str:
        return f"node `{self._name}` ({self.operator}, opset {self.opset})"

    def error(self, reason: str) -> ExportError:
        """Return the error that says why this node cannot be converted."""
        return ExportError(f"{self} cannot be converted to PyTorch: {reason}", hint=BLACK_BOX)

    def take(self, name: str, default: Any = None) -> Any:
        """Return an attribute, its text decoded; the default where it is not set."""
        attribute = self._attributes.pop(name, None)
        if attribute is None:
            return default
        value = helper.get_attribute_value(attribute)
        return value.decode() if isinstance(value, bytes) else value

    def expect(self, name: str, *allowed: Any) -> None:
        """Check an attribute that has a rule for some of its values only; the first is its default.

        Raises:
            ExportError: It has another value.
        """
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise self.error(f"there is no rule for {name}={value}")

    def finish(self) -> None:
        """Check that every attribute was asked for.

        Raises:
            ExportError: One was not.
        """
        if self._attributes:
            raise self.error(f"there is no rule for its attribute `{min(self._attributes)}`")

    def has(self, place: int) -> bool:
        """Say whether an input is given."""
        return place < len(self.inputs) and bool(self.inputs[place])

    def known(self, place: int) -> bool:
        """Say whether an input is left out or a constant."""
        return not self.has(place) or self.inputs[place] in self._constants

    def constant(self, place: int) -> Tensor | None:
        """Return an input that is known before the graph runs; None where it is left out.

        Raises:
            ExportError: It is computed when the graph runs.
        """
        if not self.has(place):
            return None
        name = self.inputs[place]
        if name not in self._constants:
            raise self.error(f"its input {place}, `{name}`, is no constant")
        return self._constants[name]

    def type_of(self, place: int) -> int | None:
        """Return the ONNX type of a constant input; None where that is left out or not known."""
        return self._types.get(self.inputs[place]) if self.has(place) else None

    def integers(self, place: int, attribute: str) -> list[int] | None:
        """Return integers that are an attribute in older operator sets and an input in newer ones.

        Raises:
            ExportError: They are computed when the graph runs.
        """
        old = self.take(attribute)
        if old is not None:
            return [int(each) for each in old]
        value = self.constant(place)
        return None if value is None else [int(each) for each in value.reshape(-1).tolist()]
