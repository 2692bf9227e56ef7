"""`hwnas export`: a trained network -> ONNX, in a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.verify.parity import Parity
    from hwnas.verify.verification import VerifySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """An exported engine.

    Attributes:
        bundle: Its folder.
        opset: ONNX opset of its model.
        size_bytes: Size of its model.
        parity: Agreement with PyTorch on validation images.
    """

    bundle: str
    opset: int
    size_bytes: int
    parity: Parity


def export(network: Path, out: Path, *, progress: Progress = SILENT) -> ExportResult:
    """Export a trained network to an engine, and pack it into a bundle.

    The ONNX model has a free batch, normalization inside, an asserted opset, no metadata of this
    machine, and passes the full checker. Its outputs are compared with PyTorch's.

    Args:
        network: Folder that `hwnas train` wrote.
        out: Folder of the bundle.
        progress: Where to report.

    Returns:
        The engine's size and parity.

    Raises:
        ArtifactError: The network is unfinished or was changed.
        ExportError: The model cannot be exported as promised, or its outputs are not PyTorch's.
    """
    return make_engine(network, out, progress=progress)


def make_engine(
    network: Path,
    out: Path,
    *,
    verify: VerifySettings | None = None,
    progress: Progress = SILENT,
) -> ExportResult:
    """Export, or find the engine exported. Raises as `export`.

    Args:
        network: As in `export`.
        out: As in `export`.
        verify: How the engine is to be verified; by default as the network's settings say.
        progress: Where to report.
    """
    import shutil

    import msgspec

    from hwnas.core.artifacts import MANIFEST, ManifestDraft, new_artifact, read_manifest
    from hwnas.core.artifacts import sha256_of_file as hash_of
    from hwnas.core.decoding import encode_json, read_json
    from hwnas.core.errors import ExportError
    from hwnas.core.weights import read_weights
    from hwnas.data.sources import load_data
    from hwnas.robustness.evaluate import logits_from_module, logits_from_runner
    from hwnas.search.records import read_derivation
    from hwnas.space.registry import space_from_spec
    from hwnas.stages import bundle as files
    from hwnas.stages import train as trained
    from hwnas.stages.artifacts import is_current
    from hwnas.stages.calls import call_text
    from hwnas.stages.checks import check_deployable
    from hwnas.stages.config import RunConfig
    from hwnas.verify.parity import parity_of
    from hwnas_export.onnx_export import INPUT_NAME, OPSET, OUTPUT_NAME, onnx_from_module
    from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner

    read_manifest(network, kind="train")
    inputs = {"network": hash_of(network / MANIFEST)}
    config = read_json(network / trained.SETTINGS_FILE, RunConfig)
    verify = verify or config.verify
    settings = {"verify": msgspec.to_builtins(verify)}
    if is_current(out, kind="export", settings=settings, inputs=inputs):
        progress.say(f"export: {out} is finished already")
        return _result(out)
    derivation = read_derivation(network / trained.GENOTYPE_FILE)
    check_deployable(derivation.target)
    space = space_from_spec(derivation.space)
    twin = space.network(derivation.genotype).eval()
    read_weights(network / trained.WEIGHTS_FILE, twin)
    data = load_data(config.data)
    with progress.task("export", 2) as task:
        model = onnx_from_module(twin, (1, *space.spec.image_shape), dynamic_batch=True)
        serialized = model.SerializeToString()
        task.advance()
        images, _ = files.arrays_of(data.validation)
        with OnnxRuntimeRunner(serialized, threads=derivation.threads) as runner:
            parity = parity_of(
                logits_from_module(twin, images, batch=verify.batch),
                logits_from_runner(runner, images, batch=verify.batch),
            )
        task.advance()
    tolerance = verify.tolerances.max_abs_diff
    if parity.max_abs_diff is None or not parity.max_abs_diff <= tolerance:
        raise ExportError(
            f"the exported model's logits differ from PyTorch's by up to {parity.max_abs_diff}, "
            f"more than {tolerance}, over {parity.n} validation images"
        )
    card = files.ModelCard(
        target=derivation.target,
        threads=derivation.threads,
        opset=OPSET,
        input_name=INPUT_NAME,
        output_name=OUTPUT_NAME,
        image_shape=space.spec.image_shape,
        pixel_range=(0.0, 1.0),
        class_names=data.class_names,
        data=config.data,
        threat=config.threat,
        verify=verify,
        budget_ms=derivation.budget_ms,
        predicted_ms=derivation.predicted_ms,
        measured_ms=derivation.measured_ms,
        params=derivation.params,
        macs=derivation.macs,
        table_sha256=derivation.table_sha256,
        seed=config.seed,
        resources=derivation.resources,
    )
    draft = ManifestDraft(
        kind="export",
        call=call_text("export", network=network, out=out),
        settings=settings,
        inputs=inputs,
    )
    with new_artifact(out, draft, checksums=True) as folder:
        (folder / files.MODEL_FILE).write_bytes(serialized)
        shutil.copyfile(network / trained.WEIGHTS_FILE, folder / files.WEIGHTS_FILE)
        shutil.copyfile(network / trained.GENOTYPE_FILE, folder / files.GENOTYPE_FILE)
        (folder / files.CARD_FILE).write_bytes(encode_json(card, indent=2))
        (folder / files.PARITY_FILE).write_bytes(encode_json(parity, indent=2))
    return _result(out)


def _result(bundle: Path) -> ExportResult:
    from hwnas.core.decoding import read_json
    from hwnas.stages import bundle as files
    from hwnas.verify.parity import Parity

    return ExportResult(
        bundle=str(bundle),
        opset=read_json(bundle / files.CARD_FILE, files.ModelCard).opset,
        size_bytes=(bundle / files.MODEL_FILE).stat().st_size,
        parity=read_json(bundle / files.PARITY_FILE, Parity),
    )
