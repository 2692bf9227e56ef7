"""A model repository for NVIDIA's Triton Inference Server: every engine that it can serve.

    triton/onnxruntime-cpu/config.pbtxt     what it takes and gives, batching, where it runs
    triton/onnxruntime-cpu/labels.txt       class names, by logit
    triton/onnxruntime-cpu/1/model.onnx     version 1: a copy of the bundle's, or a TensorRT plan

No server was at hand when this was written: the configuration is checked against the messages that
Triton's clients ship, and has been loaded by no server.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.artifacts import sha256_of_file
from hwnas.core.errors import ArtifactError, ExportError
from hwnas_profilers.targets import parse_target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hwnas.deploy.records import EngineCard

TRITON_FOLDER = "triton"
CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
VERSION = "1"

MAX_BATCH = 64
"""Requests that wait are joined to at most this many images, or fewer if the engine takes fewer."""

_SERVED = {"onnxruntime": ("onnxruntime", "model.onnx"), "tensorrt": ("tensorrt", "model.plan")}
"""Backend and file name, by what a target's name begins with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """The input or output of a model.

    Attributes:
        name: Its name.
        dims: Its sizes but for the batch.
        batch: The size of its batch; None where it is free.
    """

    name: str
    dims: tuple[int, ...]
    batch: int | None


def write_triton(folder: Path, cards: Sequence[EngineCard], *, bundle: Path) -> None:
    """Write a model repository of those engines that Triton serves.

    Args:
        folder: The repository, e.g. the bundle's `triton`; made here.
        cards: Engines of the bundle. Those for which `unserved_reason` has one are left out.
        bundle: The bundle, whose files are copied.

    Raises:
        ExportError: Triton serves none of them, or a model has other inputs or outputs.
        ArtifactError: A file is missing or not the one that its sidecar describes.
    """
    served = [card for card in cards if not unserved_reason(card)]
    if not served:
        reasons = "; ".join(f"{card.target}: {unserved_reason(card)}" for card in cards)
        raise ExportError(
            f"Triton serves no engine of {bundle} ({reasons or 'it has none'})",
            hint="export for onnxruntime-cpu too",
        )
    for card in served:
        backend, file_name = _SERVED[_runtime(card)]
        model = _checked(bundle / card.model, card.model_sha256)
        place = folder / model_name(card)
        version = place / VERSION
        version.mkdir(parents=True)
        source = _checked(bundle / card.plan, card.plan_sha256) if card.plan else model
        shutil.copyfile(source, version / file_name)
        (place / LABELS_FILE).write_text(
            "".join(f"{_one_line(name)}\n" for name in card.class_names), encoding="utf-8"
        )
        config = config_pbtxt(card, model, backend=backend)
        (place / CONFIG_FILE).write_text(config, encoding="utf-8")


def unserved_reason(card: EngineCard) -> str:
    """Say why Triton does not serve an engine; empty where it does."""
    runtime = _runtime(card)
    if runtime not in _SERVED:
        return f"Triton has no backend here for {card.target}"
    if runtime == "tensorrt" and not card.plan:
        return "its plan is not built yet: run `hwnas rebuild` on the server's GPU first"
    return ""


def model_name(card: EngineCard) -> str:
    """Return the name that clients ask for: the target, in letters that Triton takes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", card.target).strip("-")


def config_pbtxt(card: EngineCard, model: Path, *, backend: str) -> str:
    """Write the configuration of an engine, in the text format of protocol buffers.

    Args:
        card: The engine.
        model: The ONNX model that it is made from: names and sizes are taken from it.
        backend: Triton's backend.

    Raises:
        ExportError: The model has not one input and one output of float32.
    """
    images, logits = _ends(model)
    is_free = images.batch is None
    largest = min(MAX_BATCH, card.batches[2])
    device = parse_target(card.target).runtime.device
    blocks = [
        f"name: {_text(model_name(card))}",
        f"backend: {_text(backend)}",
        # Zero says that the sizes below hold the batch.
        f"max_batch_size: {largest if is_free else 0}",
        f"input [ {{ {_value(images)} }} ]",
        f"output [ {{ {_value(logits)} label_filename: {_text(LABELS_FILE)} }} ]",
        f"version_policy {{ specific {{ versions: [ {VERSION} ] }} }}",
        f"instance_group [ {{ count: 1 kind: {'KIND_GPU' if device == 'cuda' else 'KIND_CPU'} }} ]",
    ]
    if is_free and largest > 1:
        # No delay: what waits while the engine is busy is joined, and nothing waits for company.
        blocks.append("dynamic_batching { max_queue_delay_microseconds: 0 }")
    if backend == "onnxruntime":
        if card.session.get("graph_optimization") == "extended":
            blocks.append("optimization { graph { level: 1 } }")
        blocks += [_parameter(*setting) for setting in _session(card, device).items()]
    return "\n".join(blocks) + "\n"


def _session(card: EngineCard, device: str) -> dict[str, str]:
    """Return the settings of the sidecar's session under the names of Triton's backend.

    It has none for threads that spin while they wait.
    """
    settings = {"inter_op_thread_count": "1", "execution_mode": "0"}
    if device == "cpu":
        settings["intra_op_thread_count"] = str(card.threads)
    if card.session.get("memory_arena") == "off":
        settings["enable_mem_arena"] = "0"
    if card.session.get("memory_pattern") == "off":
        settings["enable_mem_pattern"] = "0"
    return settings


def _ends(path: Path) -> tuple[_Value, _Value]:
    """Return the one input and the one output of an ONNX model."""
    import onnx

    graph = onnx.load_model(path, load_external_data=False).graph
    values = []
    for role, ends in (("input", graph.input), ("output", graph.output)):
        if len(ends) != 1 or ends[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise ExportError(f"{path} has not one {role} of float32")
        batch, *dims = ends[0].type.tensor_type.shape.dim
        values.append(
            _Value(
                name=ends[0].name,
                # -1 is Triton's word for a size that is free.
                dims=tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims),
                batch=batch.dim_value if batch.HasField("dim_value") else None,
            )
        )
    return values[0], values[1]


def _value(value: _Value) -> str:
    dims = value.dims if value.batch is None else (value.batch, *value.dims)
    sizes = ", ".join(map(str, dims))
    return f"name: {_text(value.name)} data_type: TYPE_FP32 dims: [ {sizes} ]"


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}"


def _text(text: str) -> str:
    r"""Quote a text as protocol buffers do.

    >>> print(_text('a "b" \\ c'))
    "a \"b\" \\ c"
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _one_line(name: str) -> str:
    """Labels are lines: a name of several would shift all after it."""
    return " ".join(name.split())


def _runtime(card: EngineCard) -> str:
    return parse_target(card.target).name.partition("-")[0]


def _checked(path: Path, digest: str) -> Path:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", hint="restore it, or export again")
    if sha256_of_file(path) != digest:
        raise ArtifactError(
            f"{path} is not the file that its sidecar describes: its SHA-256 differs",
            hint="restore it, or export again",
        )
    return path
