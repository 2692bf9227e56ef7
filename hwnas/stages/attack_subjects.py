"""What `hwnas attack` can be pointed at, opened: a folder of hwnas, a module, an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hwnas.core.artifacts import MANIFEST, Manifest, read_manifest, sha256_of_file
from hwnas.core.decoding import convert, read_json
from hwnas.core.errors import ArtifactError, ConfigError, ExportError
from hwnas.data.sources import DataConfig
from hwnas.robustness.threat import ThreatModel

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

_FORMS = (
    "a folder of `hwnas train`, `hwnas teacher` or `hwnas export`, an .onnx file, "
    "FILE.py:callable or package.module:callable"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to attack; at least one of `module` and `engine` is there.

    Attributes:
        name: What it was named by.
        kind: What that is.
        module: What has gradients: the model itself, or the twin of the engine.
        engine: The ONNX model that is deployed.
        threads: Threads that the engine runs with.
        reason: Why there is no module, where there is none.
        data: Images that it was made for; None where that is not known.
        threat: The threat model that it was made for; None likewise.
        inputs: SHA-256 of what it was read from, by role.
    """

    name: str
    kind: str
    module: nn.Module | None = None
    engine: bytes | None = None
    threads: int = 1
    reason: str = ""
    data: DataConfig | None = None
    threat: ThreatModel | None = None
    inputs: dict[str, str] = field(default_factory=dict)


def open_subject(model: Path, weights: Path | None, classes: int) -> Subject:
    """Find and open what a user named.

    Args:
        model: A folder of hwnas, an ONNX file, or a source of a module as `hwnas teacher` takes it.
        weights: Weights (safetensors) for a module.
        classes: Classes to build a zoo's network for, where it is not pretrained.

    Raises:
        ConfigError: It names nothing that can be attacked, or weights are given to a file.
        ArtifactError: The folder is unfinished, was changed, or is of another stage.
        InputFileError: It does not exist.
    """
    if model.is_dir():
        _refuse_weights(model, weights)
        return _of_folder(model)
    if model.suffix == ".onnx":
        _refuse_weights(model, weights)
        return _of_onnx(model)
    return _of_source(model, weights, classes)


def _of_folder(model: Path) -> Subject:
    if not (model / MANIFEST).is_file():
        inner = next((name for name in ("bundle", "network") if (model / name).is_dir()), None)
        raise ArtifactError(
            f"{model} is no finished hwnas artifact: it holds no {MANIFEST}",
            hint=f"name a part of the run: {model / inner}" if inner else f"name {_FORMS}",
        )
    try:
        kind = read_json(model / MANIFEST, Manifest).kind
    except ConfigError as error:
        raise ArtifactError(error.message, hint=f"make {model} again") from error
    if kind not in _FOLDERS:
        raise ConfigError(
            f"{model} was made by `hwnas {kind}`: there is no model in it to attack",
            hint=f"name {_FORMS}",
        )
    opened = _FOLDERS[kind](model)
    opened.inputs["model"] = sha256_of_file(model / MANIFEST)
    return opened


def _of_bundle(model: Path) -> Subject:
    from hwnas.stages.bundle import open_bundle

    bundle = open_bundle(model)
    return Subject(
        name=str(model),
        kind="bundle",
        module=bundle.twin,
        engine=bundle.model,
        threads=bundle.card.threads,
        data=bundle.card.data,
        threat=bundle.card.threat,
    )


def _of_network(model: Path) -> Subject:
    from hwnas.core.weights import read_weights
    from hwnas.search.records import read_derivation
    from hwnas.space.registry import space_from_spec
    from hwnas.stages import train as files
    from hwnas.stages.config import RunConfig

    read_manifest(model, kind="train")
    derivation = read_derivation(model / files.GENOTYPE_FILE)
    network = space_from_spec(derivation.space).network(derivation.genotype)
    read_weights(model / files.WEIGHTS_FILE, network)
    config = read_json(model / files.SETTINGS_FILE, RunConfig)
    return Subject(
        name=str(model),
        kind="trained network",
        module=network.eval(),
        data=config.data,
        threat=config.threat,
    )


def _of_teacher(model: Path) -> Subject:
    from hwnas.distill.teacher import load_teacher

    manifest = read_manifest(model, kind="teacher")
    source = str(model / MANIFEST)
    # Attention maps are not asked for: their size is of no matter.
    return Subject(
        name=str(model),
        kind="teacher",
        module=load_teacher(model, attention_size=1).network,
        data=convert(manifest.settings["data"], DataConfig, source=source),
        threat=convert(manifest.settings["threat"], ThreatModel, source=source),
    )


def _of_onnx(model: Path) -> Subject:
    from hwnas_export.torch_from_onnx import torch_from_onnx
    from hwnas_profilers.breakdown.model import model_source

    opened = model_source(model)
    module, reason = None, ""
    try:
        module = torch_from_onnx(model)
    except ExportError as error:
        reason = error.message
    return Subject(
        name=str(model),
        kind="ONNX model",
        module=module,
        engine=_serialized(model),
        reason=reason,
        inputs=dict(opened.digests),
    )


def _serialized(model: Path) -> bytes:
    """Return a model with the weights that lie beside it."""
    import onnx

    serialized: bytes = onnx.load(model).SerializeToString()
    return serialized


def _of_source(model: Path, weights: Path | None, classes: int) -> Subject:
    from hwnas.distill.model_zoos import ZOOS
    from hwnas.distill.teacher_sources import load_weights, network_from_source, source_inputs
    from hwnas_profilers.breakdown.model import model_source

    text = str(model)
    if text.partition(":")[0] in ZOOS or (":" in text and not model.exists()):
        network = network_from_source(text, classes=classes, pretrained=weights is None)
        inputs = dict(source_inputs(text))
    else:
        opened = model_source(model)  # an exported program, or an error that says what is wrong
        assert opened.module is not None
        network, inputs = opened.module, dict(opened.digests)
    if weights is not None:
        load_weights(weights, network)
        inputs["weights"] = sha256_of_file(weights)
    return Subject(name=text, kind="module", module=network.eval(), inputs=inputs)


def _refuse_weights(model: Path, weights: Path | None) -> None:
    if weights is not None:
        raise ConfigError(
            f"{model} holds its own weights: `weights` are for a module that code builds",
            hint="leave --weights out",
        )


_FOLDERS = {"export": _of_bundle, "train": _of_network, "teacher": _of_teacher}
