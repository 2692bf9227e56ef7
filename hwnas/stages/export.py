"""`hwnas export`: a trained network -> ONNX -> engines, in a bundle."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from hwnas.core.progress import SILENT, Progress
from hwnas.deploy.settings import ExportSettings

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.data.sources import DataConfig
    from hwnas.stages.engines import EngineSummary, SlowerEngine
    from hwnas.verify.parity import Parity
    from hwnas.verify.verification import VerifySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """Exported engines.

    Attributes:
        bundle: Their folder.
        opset: ONNX opset of their models.
        size_bytes: Size of the portable model in FP32.
        parity: Agreement of that model with PyTorch on validation images.
        engines: The engines.
        left_out: Engines that were made and left out, as they are no faster than those in FP32.
    """

    bundle: str
    opset: int
    size_bytes: int
    parity: Parity
    engines: tuple[EngineSummary, ...]
    left_out: tuple[SlowerEngine, ...]


def export(
    network: Path,
    out: Path,
    *,
    targets: tuple[str, ...] | None = None,
    batches: tuple[int, ...] = (1, 8, 64),
    keep_slower: bool = False,
    calibration_images: int = 512,
    compute_capabilities: tuple[str, ...] | None = None,
    triton: bool = False,
    progress: Progress = SILENT,
) -> ExportResult:
    """Export a trained network to an engine, and pack it into a bundle.

    The ONNX model has a free batch, normalization inside, an asserted opset, class names and no
    metadata of this machine, and passes the full checker. An engine is made of it for each target:
    fp16 and int8 are put into its ONNX file, ONNX Runtime's settings are chosen by timing them, and
    TensorRT's plan is built, with TensorRT for RTX also where there is no GPU. Every engine's
    logits are compared with PyTorch's on validation images. In int8 the last layer stays in
    float32.

    Args:
        network: Folder that `hwnas train` wrote.
        out: Folder of the bundle.
        targets: Targets to make engines for, e.g. onnxruntime-cpu,onnxruntime-cpu-int8; by default
            the one that the network was searched for.
        batches: Smallest, most frequent and largest batch of TensorRT's engines.
        keep_slower: Keep engines in a lower precision that are no faster here than the one in FP32;
            by default that one takes their place.
        calibration_images: Validation images that ranges of int8 are taken from.
        compute_capabilities: GPUs that TensorRT for RTX builds for, e.g. 8.6,8.9; by default the
            one that is here.
        triton: Write a model repository for Triton too.
        progress: Where to report.

    Returns:
        The engines, their sizes and parities.

    Raises:
        ArtifactError: The network is unfinished or was changed.
        ConfigError: A setting is out of range.
        DataError: There are no images to calibrate int8 on, or they are all the same.
        TargetError: A target is unknown, takes no ONNX model, or cannot be used here.
        MissingDependencyError: A runtime is not installed.
        ExportError: The model cannot be exported as promised, or its outputs are not PyTorch's.
    """
    settings = ExportSettings(
        targets=targets or (),
        batches=batches,
        keep_slower=keep_slower,
        calibration_images=calibration_images,
        compute_capabilities=compute_capabilities or (),
        triton=triton,
    )
    return make_engine(network, out, settings=settings, progress=progress)


def make_engine(
    network: Path,
    out: Path,
    *,
    verify: VerifySettings | None = None,
    settings: ExportSettings | None = None,
    data: DataConfig | None = None,
    progress: Progress = SILENT,
) -> ExportResult:
    """Export, or find the engines exported. Raises as `export`.

    Args:
        network: As in `export`.
        out: As in `export`.
        verify: How the engine is to be verified; by default as the network's settings say.
        settings: Which engines are made; None takes the defaults.
        data: Where the network's images are now, if they were moved since it was trained.
        progress: Where to report.
    """
    import shutil

    import msgspec

    from hwnas.core.artifacts import MANIFEST, ManifestDraft, new_artifact, read_manifest
    from hwnas.core.artifacts import sha256_of_file as hash_of
    from hwnas.core.decoding import encode_json, read_json
    from hwnas.core.environment import package_version
    from hwnas.core.weights import read_weights
    from hwnas.data.sources import load_data
    from hwnas.deploy.calibration import calibration_images
    from hwnas.deploy.conversion import Conversion
    from hwnas.deploy.engine_parity import engine_parity, model_parity
    from hwnas.deploy.engine_targets import check_buildable
    from hwnas.deploy.making import Recipe, make_engines
    from hwnas.deploy.records import ENGINES_FOLDER
    from hwnas.robustness.evaluate import logits_from_module
    from hwnas.search.records import read_derivation
    from hwnas.space.registry import space_from_spec
    from hwnas.stages import bundle as files
    from hwnas.stages import train as trained
    from hwnas.stages.artifacts import is_current
    from hwnas.stages.calls import call_text
    from hwnas.stages.checks import check_deployable
    from hwnas.stages.config import RunConfig
    from hwnas.stages.engines import finish_bundle, main_target
    from hwnas_export.onnx_export import INPUT_NAME, OPSET, OUTPUT_NAME, onnx_from_module
    from hwnas_export.onnx_metadata import described, with_metadata

    settings = settings or ExportSettings()
    read_manifest(network, kind="train")
    inputs = {"network": hash_of(network / MANIFEST)}
    config = read_json(network / trained.SETTINGS_FILE, RunConfig)
    verify = verify or config.verify
    derivation = read_derivation(network / trained.GENOTYPE_FILE)
    targets = settings.targets or (derivation.target,)
    recorded = {
        "verify": msgspec.to_builtins(verify),
        "export": msgspec.to_builtins(settings) | {"targets": list(targets)},
    }
    if is_current(out, kind="export", settings=recorded, inputs=inputs):
        progress.say(f"export: {out} is finished already")
        return _result(out)
    for target in targets:
        check_deployable(target)
        check_buildable(target)
    space = space_from_spec(derivation.space)
    twin = space.network(derivation.genotype).eval()
    read_weights(network / trained.WEIGHTS_FILE, twin)
    if data is not None:
        config = replace(config, data=data)
    loaded = load_data(config.data)
    recipe = Recipe(
        threads=derivation.threads,
        batch=derivation.resources.batch if derivation.resources else 1,
        batches=settings.profile,
        compute_capabilities=settings.compute_capabilities,
        class_names=loaded.class_names,
        image_shape=space.spec.image_shape,
        pixel_range=(0.0, 1.0),
        keep_slower=settings.keep_slower,
    )
    with progress.task("export", 1) as task:
        model = onnx_from_module(twin, (1, *space.spec.image_shape), dynamic_batch=True)
        facts = described(class_names=loaded.class_names, pixel_range=recipe.pixel_range)
        model = with_metadata(model, facts | {"hwnas.version": package_version("hwnas")})
        serialized = model.SerializeToString()
        images, _ = files.arrays_of(loaded.validation)
        expected = logits_from_module(twin, images, batch=verify.batch)
        task.advance()
    conversion = Conversion(
        serialized,
        lambda: calibration_images(
            loaded.validation,
            settings.calibration_images,
            source=f"{loaded.name}, validation split",
            seed=config.seed,
        ),
    )
    draft = ManifestDraft(
        kind="export",
        call=call_text("export", network=network, out=out, **_given(settings)),
        settings=recorded,
        inputs=inputs,
    )
    with new_artifact(out, draft, checksums=True) as folder:
        (folder / files.MODEL_FILE).write_bytes(serialized)
        shutil.copyfile(network / trained.WEIGHTS_FILE, folder / files.WEIGHTS_FILE)
        shutil.copyfile(network / trained.GENOTYPE_FILE, folder / files.GENOTYPE_FILE)
        parity = model_parity(serialized, images, expected, verify, threads=derivation.threads)
        (folder / files.PARITY_FILE).write_bytes(encode_json(parity, indent=2))
        made = make_engines(folder, targets, conversion, recipe, progress=progress)
        main = main_target(derivation.target, made.cards)
        card = files.ModelCard(
            target=main,
            threads=derivation.threads,
            opset=OPSET,
            input_name=INPUT_NAME,
            output_name=OUTPUT_NAME,
            image_shape=space.spec.image_shape,
            pixel_range=recipe.pixel_range,
            class_names=loaded.class_names,
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
            left_out=made.left_out,
        )
        (folder / files.CARD_FILE).write_bytes(encode_json(card, indent=2))
        for each in made.cards:
            own = engine_parity(folder, each, images, expected, verify)
            place = folder / ENGINES_FOLDER / each.target / files.PARITY_FILE
            place.write_bytes(encode_json(own, indent=2))
        chief = next(each for each in made.cards if each.target == main)
        finish_bundle(folder, chief, triton=settings.triton)
    return _result(out)


def _given(settings: ExportSettings) -> dict[str, Any]:
    """Return the settings that are not the defaults, as arguments of `export`."""
    usual = ExportSettings()
    return {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if getattr(settings, field.name) != getattr(usual, field.name)
    }


def _result(bundle: Path) -> ExportResult:
    from hwnas.core.decoding import read_json
    from hwnas.stages import bundle as files
    from hwnas.stages.engines import summaries_of
    from hwnas.verify.parity import Parity

    card = read_json(bundle / files.CARD_FILE, files.ModelCard)
    engines, left_out = summaries_of(bundle, card)
    return ExportResult(
        bundle=str(bundle),
        opset=card.opset,
        size_bytes=(bundle / files.MODEL_FILE).stat().st_size,
        parity=read_json(bundle / files.PARITY_FILE, Parity),
        engines=engines,
        left_out=left_out,
    )
