"""`hwnas rebuild`: a bundle's engines, made anew for the machine that this runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from hwnas.deploy.making import EngineModel
    from hwnas.deploy.records import EngineCard
    from hwnas.stages.engines import EngineSummary, SlowerEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildResult:
    """Engines that were made anew.

    Attributes:
        bundle: Their folder.
        engines: The engines.
        left_out: Engines that were made and left out, as they are no faster here than those in
            FP32.
    """

    bundle: str
    engines: tuple[EngineSummary, ...]
    left_out: tuple[SlowerEngine, ...]


def rebuild(
    bundle: Path,
    out: Path,
    *,
    targets: tuple[str, ...] | None = None,
    keep_slower: bool = False,
    triton: bool = False,
    progress: Progress = SILENT,
) -> RebuildResult:
    """Make a bundle's engines anew on this machine, from its ONNX models, into a new bundle.

    Plans of TensorRT are built for the GPU and the version that are here, and settings of sessions
    are chosen by timing them here. Neither the network's code nor its images are needed. The old
    bundle is left as it is; what was verified on its engines is not taken over: verify the new one.

    Args:
        bundle: Folder that `hwnas export`, `hwnas run` or this wrote.
        out: Folder of the new bundle.
        targets: Targets to make engines for; by default those of the bundle. Others must be of a
            precision that the bundle has a model for, or of fp16.
        keep_slower: Keep engines in a lower precision that are no faster here than the one in FP32.
        triton: Write a model repository for Triton too.
        progress: Where to report.

    Returns:
        The engines.

    Raises:
        ArtifactError: The bundle is none, or a file of it was changed.
        ConfigError: The new bundle would take the old one's place.
        TargetError: A target is unknown or cannot be used here, or the bundle has no model for it.
        MissingDependencyError: A runtime is not installed.
        ExportError: A runtime refuses a model.
    """
    import shutil
    from dataclasses import replace

    from hwnas.core.artifacts import (
        MANIFEST,
        ManifestDraft,
        check_checksums,
        new_artifact,
        read_manifest,
        sha256_of_file,
    )
    from hwnas.core.decoding import encode_json, read_json
    from hwnas.core.errors import ConfigError
    from hwnas.deploy.engine_targets import check_buildable
    from hwnas.deploy.engines import engine_cards
    from hwnas.deploy.making import Recipe, make_engines
    from hwnas.search.records import read_derivation
    from hwnas.stages import bundle as files
    from hwnas.stages.calls import call_text
    from hwnas.stages.engines import finish_bundle, main_target, summaries_of

    old, new = bundle.resolve(), out.resolve()
    if new == old or old in new.parents or new in old.parents:
        raise ConfigError(
            f"{out} is not apart from {bundle}, which is to be left as it is",
            hint="name a new folder with --out",
        )
    check_checksums(bundle)
    read_manifest(bundle, kind="export")
    card = read_json(bundle / files.CARD_FILE, files.ModelCard)
    cards = engine_cards(bundle)
    chosen = targets or tuple(each.target for each in cards) or (card.target,)
    for target in chosen:
        check_buildable(target)
    plans = [each.batches for each in cards if each.plan]
    recipe = Recipe(
        threads=card.threads,
        batch=card.batch,
        batches=plans[0] if plans else (1, 8, 64),
        class_names=card.class_names,
        image_shape=card.image_shape,
        pixel_range=card.pixel_range,
        keep_slower=keep_slower,
    )
    draft = ManifestDraft(
        kind="export",
        call=call_text(
            "rebuild", bundle=bundle, out=out, targets=targets, keep_slower=keep_slower or None,
            triton=triton or None,
        ),
        settings={"targets": list(chosen), "keep_slower": keep_slower, "triton": triton},
        inputs={"bundle": sha256_of_file(bundle / MANIFEST)},
    )  # fmt: skip
    with new_artifact(out, draft, checksums=True) as folder:
        for name in files.ENGINE_FILES:
            shutil.copyfile(bundle / name, folder / name)
        made = make_engines(folder, chosen, _models_of(bundle, cards), recipe, progress=progress)
        searched_for = read_derivation(bundle / files.GENOTYPE_FILE).target
        main = main_target(searched_for, made.cards)
        card = replace(card, target=main, left_out=made.left_out)
        (folder / files.CARD_FILE).write_bytes(encode_json(card, indent=2))
        chief = next(each for each in made.cards if each.target == main)
        finish_bundle(folder, chief, triton=triton)
    progress.say(f"rebuild: check it on this machine: hwnas verify {out}")
    engines, left_out = summaries_of(out, card)
    return RebuildResult(bundle=str(out), engines=engines, left_out=left_out)


def _models_of(bundle: Path, cards: Sequence[EngineCard]) -> Callable[[str], EngineModel]:
    """Return what gives a target's model out of a bundle: as it lies there, or converted to fp16.

    What int8 was calibrated on is not in a bundle, so its models are taken as they are.
    """
    from hwnas.core.errors import TargetError
    from hwnas.deploy.engine_targets import model_precision
    from hwnas.deploy.engines import model_of
    from hwnas.deploy.making import SOURCE_FILE, EngineModel
    from hwnas_profilers.targets import RUNTIMES

    def model(target: str) -> EngineModel:
        precision = model_precision(target)
        if precision == "fp32":
            return EngineModel(content=(bundle / SOURCE_FILE).read_bytes())
        symmetric = RUNTIMES[target].symmetric
        for card in cards:
            runtime = RUNTIMES.get(card.target)  # a newer hwnas may know more of them
            if runtime and (runtime.symmetric, card.precision) == (symmetric, precision):
                return EngineModel(content=model_of(bundle, card), calibration=card.calibration)
        if precision == "int8":
            raise TargetError(
                f"{bundle} holds no int8 model for target `{target}`, nor images to calibrate one",
                hint=f"export again from the network: `hwnas export --targets {target}`",
            )
        import onnx

        from hwnas_export.precision import onnx_in_precision

        source = onnx.load_model(bundle / SOURCE_FILE)
        converted = onnx_in_precision(source, precision)
        return EngineModel(content=bytes(converted.SerializeToString()))

    return model
