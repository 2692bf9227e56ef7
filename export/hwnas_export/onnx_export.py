"""PyTorch modules -> ONNX models, through torch's dynamo exporter.

Weights stay inside the file, the opset is asserted (a request below the exporter's own minimum is
otherwise answered with another opset in silence), and metadata that names source files is removed.
The module is traced by `torch.export` first, and the exporter is given the trace: left to itself it
narrows an open batch in silence, to the batches that take the same path as its example's.
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
import torch._dynamo.exc
from torch import nn
from torch.fx.experimental import _config as tracing

from hwnas.core.errors import ExportError
from hwnas_export.folding import folded_copy
from hwnas_export.onnx_metadata import metadata_of, names_source
from hwnas_export.onnx_refusals import ANY_BATCH_HINT, broken_guards, export_refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

OPSET = 20
"""The default, which the oldest versions of ONNX Runtime and TensorRT that are served take."""

OPSETS = range(18, 24)
"""From the oldest that torch's exporter writes to the newest that is tested with our runtimes."""

INPUT_NAME = "images"
OUTPUT_NAME = "logits"
_MAX_BATCH = 65_536


def onnx_from_module(
    module: nn.Module,
    input_shape: Sequence[int],
    *,
    dynamic_batch: bool = False,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Export a module with one input and one output.

    Args:
        module: The module; exported in eval mode, its own mode is left as it is.
        input_shape: (batch, channels, height, width).
        dynamic_batch: Leave the batch open.
        opset: Version of ONNX's operators, one of `OPSETS`.

    Returns:
        A checked ONNX model with input `images` and output `logits`.

    Raises:
        ExportError: The module cannot be traced, takes another path for other values or batches,
            has an operator that ONNX lacks, or gives more than one output or one of a shape that
            depends on its data; or the opset is none that is served.
    """
    example = torch.zeros(*input_shape)
    dynamic = None
    if dynamic_batch:
        # A batch of 1 would be taken as a constant by torch.export.
        example = torch.zeros(2, *input_shape[1:])
        dynamic = ({0: torch.export.Dim("batch", min=1, max=_MAX_BATCH)},)
    model = _export(module, (example,), [INPUT_NAME], [OUTPUT_NAME], dynamic, opset)
    check_onnx(model, opset=opset)
    return model


def onnx_from_modules(
    modules: Sequence[nn.Module], input_shapes: Sequence[Sequence[int]], *, opset: int = OPSET
) -> list[onnx.ModelProto]:
    """Export many small modules at once: one trace, then one model per module.

    Most of an export's cost does not depend on the module, so one trace over all of them is several
    times faster than one each (benchmarks/export_folding.py).

    Args:
        modules: The modules.
        input_shapes: (batch, channels, height, width) of each.
        opset: As `onnx_from_module`.

    Raises:
        ExportError: As `onnx_from_module`.
    """
    inputs = [f"images_{index}" for index in range(len(modules))]
    outputs = [f"logits_{index}" for index in range(len(modules))]
    examples = tuple(torch.zeros(*shape) for shape in input_shapes)
    joined = _export(_SideBySide(modules), examples, inputs, outputs, None, opset)
    extractor = onnx.utils.Extractor(joined)
    models = []
    for own_input, own_output in zip(inputs, outputs, strict=True):
        model = extractor.extract_model([own_input], [own_output])
        _rename_ends(model)
        check_onnx(model, opset=opset)
        models.append(model)
    return models


def check_onnx(model: onnx.ModelProto, *, opset: int = OPSET) -> None:
    """Check a model in full, its opset, and that nothing in it names a source file.

    Raises:
        ExportError: One of these does not hold.
    """
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("") != opset or set(opsets) - {""}:
        raise ExportError(f"the exporter gave opsets {opsets}, not {opset} of the standard domain")
    if any(part.metadata_props or part.doc_string for part in _parts(model.graph)) or any(
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
    opset: int,
) -> onnx.ModelProto:
    if opset not in OPSETS:
        raise ExportError(
            f"opset {opset} is not served", hint=f"choose one of {OPSETS[0]} to {OPSETS[-1]}"
        )
    with _quiet_exporter():  # to copy the trace of an exported program makes torch warn
        folded = folded_copy(module)
    try:
        with _interrupts_deferred(), _quiet_exporter(), torch.no_grad():
            trace, without_one = _traced(folded, examples, dynamic_shapes)
            program = torch.onnx.export(
                trace,
                dynamo=True,
                opset_version=opset,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=dynamic_shapes,
                external_data=False,
                verbose=False,
            )
    # The module's own code runs in it, and raises what it likes.
    except Exception as error:
        raise export_refusal(error, folded) from error
    if program is None:
        raise ExportError(f"torch.onnx.export gave nothing for {type(module).__name__}")
    model = program.model_proto
    _check_ends(model, type(module).__name__, len(outputs), dynamic_shapes is not None)
    _strip_metadata(model)
    if without_one:
        _check_batch_of_one(model, folded, examples[0])
    return model


def _traced(
    module: nn.Module, examples: tuple[Tensor, ...], dynamic_shapes: tuple[Any, ...] | None
) -> tuple[torch.export.ExportedProgram, bool]:
    """Trace a module, as the exporter would, but with the open batch kept or refused.

    Returns:
        The trace, and whether a batch of 1 may take another path. Torch's own operators ask for it
        when they look at strides, and compute alike: so it is for the caller to try.
    """
    # Or a batch of 1 would be another path than all others, whatever the module does.
    with tracing.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # made at run time
        try:
            shapes = dynamic_shapes
            return torch.export.export(module, examples, dynamic_shapes=shapes, strict=False), False
        except torch._dynamo.exc.UserError as error:
            if set(broken_guards(error)) != {"batch != 1"}:
                raise
        shapes = ({0: torch.export.Dim("batch", min=2, max=_MAX_BATCH)},)
        return torch.export.export(module, examples, dynamic_shapes=shapes, strict=False), True


def _check_batch_of_one(model: onnx.ModelProto, module: nn.Module, example: Tensor) -> None:
    """See that a batch of 1 is computed like the larger ones that were traced."""
    import onnxruntime as ort

    images = torch.rand(1, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(images)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it would print is in what it raises
    session = ort.InferenceSession(model.SerializeToString(), options)
    given = torch.from_numpy(session.run(None, {INPUT_NAME: images.numpy()})[0])
    scale = max(1.0, float(expected.abs().max()))
    if given.shape != expected.shape or not torch.allclose(given, expected, atol=1e-4 * scale):
        raise ExportError(
            f"{type(module).__name__} cannot be exported to ONNX: it computes something else for a "
            "batch of 1",
            hint=ANY_BATCH_HINT,
        )


def _check_ends(model: onnx.ModelProto, name: str, count: int, dynamic: bool) -> None:
    """See that there are as many outputs as modules, of known shapes but for an open batch."""
    outputs = model.graph.output
    if len(outputs) != count:
        raise ExportError(
            f"{name} gives {len(outputs)} outputs, not {count}",
            hint="export a module whose forward returns one tensor",
        )
    for output in outputs:
        sizes = output.type.tensor_type.shape.dim
        known = all(size.dim_value for size in sizes[1 if dynamic else 0 :])
        if not sizes or not known or (dynamic and sizes[0].dim_param != "batch"):
            shape = "x".join(str(size.dim_param or size.dim_value) for size in sizes)
            raise ExportError(
                f"{name} gives an output of shape {shape or 'none'}, where only the batch may be "
                "open, and must stay in front",
                hint="a shape that depends on data, or mixes the batch with other sizes, cannot be "
                "deployed",
            )


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Remove what names this machine: source paths and stack traces."""
    del model.metadata_props[:]
    model.doc_string = ""
    for part in _parts(model.graph):
        del part.metadata_props[:]
        part.doc_string = ""


def _parts(graph: onnx.GraphProto) -> Iterator[Any]:
    """Yield all of a graph that can be described: it, its nodes, its values, and graphs in it."""
    yield graph
    yield from (*graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _parts(inner)


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
