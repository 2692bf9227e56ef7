"""What torch's exporter makes of a module that it cannot export, in one sentence.

Its own text is pages of advice, stack traces and terminal colors. What a user needs is in there, or
in the frames of the traceback: which of the module's parts it was, and which operator or condition.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
import torch._dynamo.exc
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from hwnas.core.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

ANY_BATCH_HINT = "export it with a fixed batch, or make it compute alike whatever the batch"

_GUARD = re.compile(r"satisfy the generated guard (.+?)\.?$", re.MULTILINE)
_BATCH = re.compile(r"L\['[^']*'\](?:\[\d+\])?\.size\(\)\[0\]")


def export_refusal(error: Exception, module: nn.Module) -> ExportError:
    """Say why a module could not be exported, and which part of it was in the way.

    Args:
        error: What tracing it, or translating the trace, raised.
        module: The module that was traced, whose parts the error's frames hold.
    """
    causes = list(_causes(error))
    node = next((found for cause in causes if (found := _node_in(cause))), None)
    part = _owner_of(node) if node is not None else _traced_part(causes, module)
    where = f", for its part {part}" if part else ""
    reason, hint = _reason(causes, node)
    return ExportError(
        f"{type(module).__name__} cannot be exported to ONNX{where}: {reason}", hint=hint
    )


def broken_guards(error: BaseException) -> list[str]:
    """Return the conditions on `batch` that a trace needs, and an open batch does not keep."""
    if not isinstance(error, torch._dynamo.exc.UserError):
        return []
    return [_BATCH.sub("batch", guard) for guard in _GUARD.findall(str(error))]


def _reason(causes: list[BaseException], node: torch.fx.Node | None) -> tuple[str, str]:
    """Return what is wrong and how to mend it."""
    if any(isinstance(cause, GuardOnDataDependentSymNode) for cause in causes):
        return (
            f"what it computes next depends on the values of its data ({_first_line(causes[0])})",
            "control flow that depends on data cannot be traced: compute both sides and choose "
            "with torch.where",
        )
    guards = broken_guards(causes[0])
    if guards:
        return (f"it is the same for every batch only while {guards[0]}", ANY_BATCH_HINT)
    if node is not None and type(causes[-1]).__name__ == "DispatchError":
        return (
            f"there is nothing in ONNX for the operator {node.target}",
            "use operators that ONNX has: https://onnx.ai/onnx/operators",
        )
    return _first_line(causes[-1]), "the module must run on zeros of the shape that it is given"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it, the first cause last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _node_in(error: BaseException) -> torch.fx.Node | None:
    """Return the node of the trace that was being translated, if it came that far."""
    for frame in _frames(error):
        node = frame.f_locals.get("node")
        if isinstance(node, torch.fx.Node):
            return node
    return None


def _owner_of(node: torch.fx.Node) -> str:
    """Return the part that a node was traced in, empty for the whole."""
    stack = [*node.meta.get("nn_module_stack", {}).values()]
    name, kind = stack[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    return f"`{name}` ({kind.rpartition('.')[2]})" if name else ""


def _traced_part(causes: list[BaseException], module: nn.Module) -> str:
    """Return the innermost part that was running, empty for the whole."""
    names = {id(part): name for name, part in module.named_modules()}
    innermost = ""
    for cause in causes:
        for frame in _frames(cause):
            part = frame.f_locals.get("self")
            if isinstance(part, nn.Module) and names.get(id(part)):
                innermost = f"`{names[id(part)]}` ({type(part).__name__})"
    return innermost


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return text or type(error).__name__
