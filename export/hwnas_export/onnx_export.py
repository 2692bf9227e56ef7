"""PyTorch modules -> ONNX models, through torch's dynamo exporter.

Weights stay inside the file, the opset is asserted (a request below the exporter's own minimum is
otherwise answered with another opset in silence), and metadata that names source files is removed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import threading
import warnings
from typing import TYPE_CHECKING, Any

import onnx
import onnx.checker
import onnx.utils
import torch
from torch import nn

from hwnas.core.errors import ExportError
from hwnas_export.folding import folded_copy
from hwnas_export.onnx_metadata import metadata_of, names_source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

OPSET = 20
INPUT_NAME = "images"
OUTPUT_NAME = "logits"
_MAX_BATCH = 65_536


def onnx_from_module(
    module: nn.Module, input_shape: Sequence[int], *, dynamic_batch: bool = False
) -> onnx.ModelProto:
    """Export a module with one input and one output.

    Args:
        module: The module; exported in eval mode, its own mode is left as it is.
        input_shape: (batch, channels, height, width).
        dynamic_batch: Leave the batch open.

    Returns:
        A checked ONNX model of opset 20 with input `images` and output `logits`.

    Raises:
        ExportError: The module cannot be traced, or the result is not what was asked for.
    """
    example = torch.zeros(*input_shape)
    dynamic = None
    if dynamic_batch:
        # A batch of 1 would be taken as a constant by torch.export.
        example = torch.zeros(2, *input_shape[1:])
        dynamic = ({0: torch.export.Dim("batch", min=1, max=_MAX_BATCH)},)
    model = _export(module, (example,), [INPUT_NAME], [OUTPUT_NAME], dynamic)
    check_onnx(model)
    return model


def onnx_from_modules(
    modules: Sequence[nn.Module], input_shapes: Sequence[Sequence[int]]
) -> list[onnx.ModelProto]:
    """Export many small modules at once: one trace, then one model per module.

    Most of an export's cost does not depend on the module, so one trace over all of them is several
    times faster than one each (benchmarks/export_folding.py).

    Args:
        modules: The modules.
        input_shapes: (batch, channels, height, width) of each.

    Raises:
        ExportError: As `onnx_from_module`.
    """
    inputs = [f"images_{index}" for index in range(len(modules))]
    outputs = [f"logits_{index}" for index in range(len(modules))]
    examples = tuple(torch.zeros(*shape) for shape in input_shapes)
    joined = _export(_SideBySide(modules), examples, inputs, outputs, None)
    extractor = onnx.utils.Extractor(joined)
    models = []
    for own_input, own_output in zip(inputs, outputs, strict=True):
        model = extractor.extract_model([own_input], [own_output])
        _rename_ends(model)
        check_onnx(model)
        models.append(model)
    return models


def check_onnx(model: onnx.ModelProto) -> None:
    """Check a model in full, its opset, and that no metadata names a source file.

    Raises:
        ExportError: One of these does not hold.
    """
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("") != OPSET or set(opsets) - {""}:
        raise ExportError(f"the exporter gave opsets {opsets}, not {OPSET} of the standard domain")
    if any(node.metadata_props for node in model.graph.node) or any(
        names_source(*entry) for entry in metadata_of(model).items()
    ):
        raise ExportError("the ONNX graph still holds source metadata")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported ONNX model is not valid: {error}") from error


class _SideBySide(nn.Module):
    """Modules that share nothing, as one: the n-th input goes to the n-th module."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(member(images) for member, images in zip(self.members, inputs, strict=True))


def _export(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    dynamic_shapes: tuple[Any, ...] | None,
) -> onnx.ModelProto:
    try:
        with _interrupts_deferred(), _quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                folded_copy(module),
                examples,
                dynamo=True,
                opset_version=OPSET,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=dynamic_shapes,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        # The exporter's own text is advice on many colored lines; its cause says what went wrong.
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ExportError(
            f"{type(module).__name__} cannot be exported to ONNX: {reason}",
            hint="control flow that depends on data cannot be traced",
        ) from error
    if program is None:
        raise ExportError(f"torch.onnx.export gave nothing for {type(module).__name__}")
    model = program.model_proto
    _strip_metadata(model)
    return model


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Remove what names this machine: source paths and stack traces."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    for item in (*model.graph.node, *values, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


def _rename_ends(model: onnx.ModelProto) -> None:
    """Give a model's one input and one output their standard names."""
    renames = {
        model.graph.input[0].name: INPUT_NAME,
        model.graph.output[0].name: OUTPUT_NAME,
    }
    for node in model.graph.node:
        node.input[:] = [renames.get(name, name) for name in node.input]
        node.output[:] = [renames.get(name, name) for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = renames[value.name]
    # The extractor lists both ends among the inner values too, under their old names.
    inner = [value for value in model.graph.value_info if value.name not in renames]
    del model.graph.value_info[:]
    model.graph.value_info.extend(inner)


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Hold Ctrl-C back until the exporter is done.

    It takes whatever is raised in it, a KeyboardInterrupt too, for a strategy that failed, and
    tries the next one.
    """
    held = False

    def hold(*_: object) -> None:
        nonlocal held
        held = True

    own = signal.getsignal(signal.SIGINT)
    if (
        own is not signal.default_int_handler
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, own)
        if held:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's own prints and warnings away from the user.

    It prints to stdout, where `--json` results go, warns of optional packages that we do not use,
    and on a failure dumps its graphs to stderr, by prints and by several loggers below `torch`.
    """
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
