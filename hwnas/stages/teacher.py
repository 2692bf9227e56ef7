"""`hwnas teacher`: the robust network that students learn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from hwnas.stages.config import RunConfig
    from hwnas.training.loop import Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherResult:
    """A teacher and how good it is, on validation images.

    Attributes:
        teacher: Its folder.
        trained: Whether it was trained here, or its weights were given.
        params: Its parameters.
        clean_accuracy: On validation images as they are.
        robust_accuracy: On PGD examples of the threat model.
        n: Validation images.
        eps: Size of the perturbation in pixel units.
        steps: PGD steps.
    """

    teacher: str
    trained: bool
    params: int
    clean_accuracy: float
    robust_accuracy: float
    n: int
    eps: float
    steps: int


def teacher(
    out: Path,
    *,
    config: Path | None = None,
    data: str | None = None,
    weights: Path | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    progress: Progress = SILENT,
) -> TeacherResult:
    """Train a robust teacher, or take one from a file of weights.

    Training is adversarial: on PGD examples of the threat model. Interrupted, it goes on after the
    last finished epoch.

    Args:
        out: Folder of the teacher.
        config: TOML file of `hwnas run`; its [data], [threat] and [teacher] are used.
        data: Images: digits, cifar10:FOLDER or npz:FILE.
        weights: Trained weights (safetensors) of a network of [teacher] width and blocks.
        epochs: Epochs of training.
        seed: Seed of everything that is drawn.
        progress: Where to report.

    Returns:
        The teacher's figures.

    Raises:
        ConfigError: A setting is unknown or out of range.
        InputFileError: A file is missing or unreadable, or the folder cannot be written.
        ArtifactError: The weights are none, or of another network.
        TrainingDivergedError: The loss is not finite; the last good checkpoint is kept.
    """
    from hwnas.stages.config import load_config

    settings = load_config(
        config,
        data=data,
        seed=seed,
        teacher={"weights": str(weights) if weights else None, "epochs": epochs},
    )
    return make_teacher(settings, out, progress=progress)


def teacher_settings(config: RunConfig) -> dict[str, Any]:
    """Return what a teacher depends on."""
    import msgspec

    return {
        "seed": config.seed,
        "data": msgspec.to_builtins(config.data),
        "threat": msgspec.to_builtins(config.threat),
        "teacher": msgspec.to_builtins(config.teacher),
    }


def make_teacher(config: RunConfig, out: Path, *, progress: Progress = SILENT) -> TeacherResult:
    """Train or load a teacher and judge it on validation images. Raises as `teacher`."""
    from hwnas.core.artifacts import ManifestDraft, new_artifact, sha256_of_file
    from hwnas.core.decoding import encode_json, read_json
    from hwnas.core.threads import torch_threads
    from hwnas.core.weights import read_weights, write_weights
    from hwnas.data.sources import load_data
    from hwnas.distill.teacher import TEACHER_FILE, WEIGHTS_FILE, TeacherNetwork, TeacherSpec
    from hwnas.stages.artifacts import checkpoint_beside, data_inputs, is_current
    from hwnas.stages.calls import call_text
    from hwnas.training.figures import accuracy_and_robustness
    from hwnas.training.teacher import train_teacher

    settings = teacher_settings(config)
    given = config.teacher.weights
    inputs = data_inputs(config.data)
    if given:
        inputs["weights"] = sha256_of_file(Path(given))
    if is_current(out, kind="teacher", settings=settings, inputs=inputs):
        progress.say(f"teacher: {out} is finished already")
        return read_json(out / "result.json", TeacherResult)
    data = load_data(config.data)
    checkpoint = checkpoint_beside(out)
    if given:
        spec = TeacherSpec(
            image_shape=data.image_shape,
            classes=len(data.class_names),
            width=config.teacher.width,
            blocks=config.teacher.blocks,
        )
        network = TeacherNetwork(spec)
        history: list[Figures] = []
        read_weights(Path(given), network)
    else:
        with torch_threads(config.training_threads):
            network, spec, history = train_teacher(
                data,
                config.data,
                config.threat,
                config.teacher,
                seed=config.seed,
                checkpoint=checkpoint,
                progress=progress,
            )
    clean, robust = accuracy_and_robustness(
        network, data.validation, config.threat, seed=config.seed, progress=progress
    )
    result = TeacherResult(
        teacher=str(out),
        trained=not given,
        params=sum(parameter.numel() for parameter in network.parameters()),
        clean_accuracy=clean.value,
        robust_accuracy=robust.value,
        n=clean.n,
        eps=config.threat.eps_pixels,
        steps=config.threat.steps,
    )
    draft = ManifestDraft(
        kind="teacher",
        call=call_text("teacher", out=out, seed=config.seed),
        settings=settings,
        inputs=inputs,
    )
    with new_artifact(out, draft) as folder:
        write_weights(folder / WEIGHTS_FILE, network)
        (folder / TEACHER_FILE).write_bytes(encode_json(spec, indent=2))
        (folder / "history.json").write_bytes(encode_json(history, indent=2))
        (folder / "result.json").write_bytes(encode_json(result, indent=2))
    checkpoint.unlink(missing_ok=True)
    return result
