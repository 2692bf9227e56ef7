"""Workloads -> ONNX models: operators are exported together and once, chains are put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.core.errors import ExportError
from hwnas.core.progress import SILENT
from hwnas_profilers.workload import Chain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx

    from hwnas.core.progress import Progress
    from hwnas_profilers.workload import Workload

_EXPORT_CHUNK = 64
"""Modules exported in one trace: what a trace costs by itself is then a tenth of the whole."""

_KEPT_BYTES = 512 * 2**20
"""Exported operators that are kept for chains to come; beyond it they are exported again."""


class OnnxModels:
    """The ONNX models of workloads, in fp32, exported when they are first asked for.

    A workload that cannot be exported is remembered with its error, so that one bad operator does
    not keep the others from being measured.
    """

    def __init__(self) -> None:
        self._kept: dict[str, bytes | ExportError] = {}
        self._kept_bytes = 0

    def export(self, workloads: Iterable[Workload], *, progress: Progress = SILENT) -> None:
        """Export what is not there yet of these workloads and of the parts of chains."""
        # By name: the same operator built twice is not equal, as functions that build never are.
        parts = {_identity(part): part for workload in workloads for part in _parts(workload)}
        missing = [part for name, part in parts.items() if name not in self._kept]
        if not missing:
            return
        if self._kept_bytes > _KEPT_BYTES:
            self._kept.clear()
            self._kept_bytes = 0
            missing = list(parts.values())
        with progress.task("exporting", len(missing)) as task:
            for begin in range(0, len(missing), _EXPORT_CHUNK):
                chunk = missing[begin : begin + _EXPORT_CHUNK]
                for part, model in zip(chunk, _export_together(chunk), strict=True):
                    kept = model if isinstance(model, ExportError) else model.SerializeToString()
                    self._kept[_identity(part)] = kept
                    self._kept_bytes += len(kept) if isinstance(kept, bytes) else 0
                task.advance(len(chunk), note=chunk[-1].name)

    def model_of(
        self, workload: Workload, precision: str = "fp32", *, symmetric: bool = False
    ) -> onnx.ModelProto:
        """Return a workload's model in a precision.

        Args:
            workload: The workload.
            precision: `fp32`, `fp16` or `int8`; `bf16` is the runtime's own doing.
            symmetric: Quantize without zero points: TensorRT needs it, ONNX Runtime is slow so.

        Raises:
            ExportError: It, or a part of it, cannot be exported.
        """
        import onnx

        from hwnas_export.onnx_chain import chained

        self.export([workload])
        models = []
        for part in _parts(workload):
            kept = self._kept[_identity(part)]
            if isinstance(kept, ExportError):
                raise kept
            models.append(onnx.load_model_from_string(kept))
        model = chained(models) if len(models) > 1 else models[0]
        if precision in ("fp32", "bf16"):
            return model
        from hwnas_export.precision import onnx_in_precision

        return onnx_in_precision(model, precision, symmetric=symmetric)


def _parts(workload: Workload) -> Sequence[Workload]:
    return workload.parts if isinstance(workload, Chain) else (workload,)


def _identity(workload: Workload) -> str:
    return f"{workload.name} {workload.input_shape}"


def _export_together(workloads: Sequence[Workload]) -> Sequence[onnx.ModelProto | ExportError]:
    from hwnas_export.onnx_export import onnx_from_module, onnx_from_modules

    modules = [workload.build() for workload in workloads]
    try:
        return onnx_from_modules(modules, [workload.input_shape for workload in workloads])
    except ExportError:
        # The error of the joined export does not say whose it is. Alone, each says so.
        models: list[onnx.ModelProto | ExportError] = []
        for workload, module in zip(workloads, modules, strict=True):
            try:
                models.append(onnx_from_module(module, workload.input_shape))
            except ExportError as error:
                own = ExportError(f"{workload.name}: {error.message}", hint=error.hint)
                own.__cause__ = error
                models.append(own)
        return models
