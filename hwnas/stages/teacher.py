"""`hwnas teacher`: the robust network that students learn from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwnas.core.metrics import MetricLog
    from hwnas.data.images import ImageData
    from hwnas.distill.teacher import Precision, TeacherCard
    from hwnas.distill.teacher_network import TeacherSpec
    from hwnas.stages.config import RunConfig
    from hwnas.training.loop import Figures

_PROBED = 8  # images that a network is tried on before it is judged


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherResult:
    """A teacher and how good it is, on validation images.

    Attributes:
        teacher: Its folder.
        trained: Whether it was trained here, or was given.
        source: What built its network; empty for our own.
        params: Its parameters.
        layers: Its layers that may be tutors.
        precision: What it computes in when it teaches.
        clean_accuracy: On validation images as they are.
        robust_accuracy: On PGD examples of the threat model.
        n: Validation images that it was judged on.
        eps: Size of the perturbation in pixel units.
        steps: PGD steps.
    """

    teacher: str
    trained: bool
    source: str
    params: int
    layers: int
    precision: str
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
    source: str | None = None,
    weights: Path | None = None,
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    robust: Literal["none", "fast-at", "pgd-at", "trades"] | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    log: MetricLog | None = None,
    progress: Progress = SILENT,
) -> TeacherResult:
    """Train a robust teacher, or take one that exists.

    Training is adversarial: on PGD examples of the threat model, or as `robust` says. Interrupted,
    it goes on after the last finished epoch. A teacher that exists is built by the code that its
    source names, here and whenever the folder is loaded: docs/teachers.md.

    Args:
        out: Folder of the teacher.
        config: TOML file of `hwnas run`; its [data], [threat] and [teacher] are used.
        data: Images: digits, cifar10:FOLDER, cifar10-torchvision:FOLDER or npz:FILE.
        source: What builds the network: package.module:callable, FILE.py:callable,
            torchvision:NAME, timm:NAME or robustbench:NAME. Without it, our own is taken.
        weights: Trained weights (safetensors) of the source's network, or of our own of [teacher]
            width and blocks.
        precision: What it computes in when it teaches; auto takes bf16 where that is faster and as
            good.
        robust: How it is trained: pgd-at (default), fast-at (single steps: the fastest), trades, or
            none.
        epochs: Epochs of training.
        seed: Seed of everything that is drawn.
        log: Where each epoch's figures go besides.
        progress: Where to report.

    Returns:
        The teacher's figures.

    Raises:
        ConfigError: A setting is unknown or out of range, or the network does not fit the images.
        InputFileError: A file is missing or unreadable, or the folder cannot be written.
        ArtifactError: The weights are none, or of another network.
        MissingDependencyError: The source is of a package that is not installed.
        TrainingDivergedError: The loss is not finite; the last good checkpoint is kept.
    """
    from hwnas.stages.config import load_config

    given: dict[str, Any] = {
        "source": source,
        "weights": str(weights) if weights else None,
        "precision": precision,
        "robust": robust,
        "epochs": epochs,
    }
    settings = load_config(config, data=data, seed=seed, teacher=given)
    return make_teacher(settings, out, log=log, progress=progress)


def teacher_settings(config: RunConfig) -> dict[str, Any]:
    """Return what a teacher depends on."""
    import msgspec

    return {
        "seed": config.seed,
        "data": msgspec.to_builtins(config.data),
        "threat": msgspec.to_builtins(config.threat),
        "teacher": msgspec.to_builtins(config.teacher),
    }


def make_teacher(
    config: RunConfig,
    out: Path,
    *,
    log: MetricLog | None = None,
    progress: Progress = SILENT,
) -> TeacherResult:
    """Train or take a teacher and judge it on validation images. Raises as `teacher`."""
    import torch

    from hwnas.core.artifacts import ManifestDraft, new_artifact, sha256_of_file
    from hwnas.core.decoding import encode_json, read_json
    from hwnas.core.threads import torch_threads
    from hwnas.data.sources import load_data
    from hwnas.distill.teacher import write_teacher
    from hwnas.distill.teacher_checks import doubt_about
    from hwnas.distill.teacher_sources import source_inputs
    from hwnas.stages.artifacts import checkpoint_beside, data_inputs, is_current
    from hwnas.stages.calls import call_text
    from hwnas.stages.logs import logs_of
    from hwnas.training.figures import accuracy_and_robustness

    settings = teacher_settings(config)
    wanted = config.teacher
    inputs = data_inputs(config.data) | dict(source_inputs(wanted.source))
    if wanted.weights:
        inputs["weights"] = sha256_of_file(Path(wanted.weights))
    if is_current(out, kind="teacher", settings=settings, inputs=inputs):
        progress.say(f"teacher: {out} is finished already")
        return read_json(out / "result.json", TeacherResult)
    data = load_data(config.data)
    checkpoint = checkpoint_beside(out)
    on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    with torch_threads(config.training_threads), logs_of(config.tensorboard, log) as logs:
        network, spec, history = _network(config, data, checkpoint, device, logs, progress)
        network.cpu().eval().requires_grad_(requires_grad=False)
        card = _card(config, network, spec, data, progress)
        network.to(device)
        precision = _precision(config, network, card, data, progress)
        judged = data.validation
        if wanted.judged_images:
            generator = torch.Generator().manual_seed(config.seed)
            judged = judged.subset(wanted.judged_images, generator)
        clean, robust = accuracy_and_robustness(
            network, judged, config.threat, seed=config.seed, progress=progress
        )
        network.cpu()
    trained = bool(history)
    doubt = "" if trained else doubt_about(clean.value, card.classes)
    if doubt:
        progress.say(f"warning: {doubt}")
    result = TeacherResult(
        teacher=str(out),
        trained=trained,
        source=wanted.source,
        params=sum(parameter.numel() for parameter in network.parameters()),
        layers=len(card.layers),
        precision=precision,
        clean_accuracy=clean.value,
        robust_accuracy=robust.value,
        n=clean.n,
        eps=config.threat.eps_pixels,
        steps=config.threat.steps,
    )
    draft = ManifestDraft(
        kind="teacher",
        call=call_text(
            "teacher",
            out=out,
            source=wanted.source or None,
            weights=Path(wanted.weights) if wanted.weights else None,
            seed=config.seed,
        ),
        settings=settings,
        inputs=inputs,
    )
    with new_artifact(out, draft) as folder:
        write_teacher(folder, network, replace(card, precision=precision))
        (folder / "history.json").write_bytes(encode_json(history, indent=2))
        (folder / "result.json").write_bytes(encode_json(result, indent=2))
    checkpoint.unlink(missing_ok=True)
    return result


def _network(
    config: RunConfig,
    data: ImageData,
    checkpoint: Path,
    device: str,
    log: MetricLog | None,
    progress: Progress,
) -> tuple[nn.Module, TeacherSpec | None, list[Figures]]:
    """Build and load, or train; return the shape of our own, and the epochs of a training."""
    from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec
    from hwnas.distill.teacher_sources import load_weights, network_from_source
    from hwnas.stages.artifacts import data_inputs
    from hwnas.training.teacher import train_teacher

    wanted = config.teacher
    classes = len(data.class_names)
    if not wanted.source and not wanted.weights:
        return train_teacher(
            data,
            config.data,
            config.threat,
            wanted,
            seed=config.seed,
            checkpoint=checkpoint,
            inputs=data_inputs(config.data),
            device=device,
            log=log,
            progress=progress,
        )
    spec = None
    if wanted.source:
        network = network_from_source(wanted.source, classes=classes, pretrained=not wanted.weights)
    else:
        spec = TeacherSpec(
            image_shape=data.image_shape,
            classes=classes,
            width=wanted.width,
            blocks=wanted.blocks,
        )
        network = TeacherNetwork(spec)
    if wanted.weights:
        load_weights(Path(wanted.weights), network)
    return network, spec, []


def _card(
    config: RunConfig,
    network: nn.Module,
    spec: TeacherSpec | None,
    data: ImageData,
    progress: Progress,
) -> TeacherCard:
    """Try a network on a few images, and find its layers."""
    from hwnas.distill.tapping import choose_layers
    from hwnas.distill.teacher import TeacherCard, check_logits
    from hwnas.distill.teacher_checks import check_outputs
    from hwnas.distill.teacher_network import TeacherNetwork
    from hwnas.distill.teacher_sources import anchored
    from hwnas.space.memory_format import channels_last

    wanted = config.teacher
    what = f"the teacher `{wanted.source}`" if wanted.source else "the teacher"
    classes = len(data.class_names)
    images = _pixels(data, _PROBED)
    check_outputs(network, images, classes, what=what)
    if isinstance(network, TeacherNetwork) and not wanted.layers:
        layers = network.tap_names
    else:
        layers = choose_layers(network, images, wanted.layers, what=what)
    progress.say(f"teacher: {len(layers)} layers may be tutors, {layers[0]} to {layers[-1]}")
    return TeacherCard(
        image_shape=data.image_shape,
        classes=classes,
        layers=layers,
        precision="fp32",
        source=anchored(wanted.source),
        network=spec,
        check_logits=check_logits(channels_last(network), data.image_shape),
    )


def _precision(
    config: RunConfig, network: nn.Module, card: TeacherCard, data: ImageData, progress: Progress
) -> Precision:
    """Take the precision that was asked for, or choose it on a batch as the search has them."""
    from hwnas.distill.teacher import Teacher
    from hwnas.distill.teacher_precision import check_precision, choose_precision
    from hwnas.robustness.evaluate import device_of

    wanted = config.teacher.precision
    if wanted == "fp32":
        return wanted
    teacher = Teacher(
        network,
        card.layers,
        image_shape=card.image_shape,
        classes=card.classes,
        attention_size=config.search.attention_size,
    )
    images = _pixels(data, config.search.batch).to(device_of(network))
    if wanted != "auto":
        check_precision(teacher, images, wanted)
        return wanted
    choice = choose_precision(teacher, images)
    progress.say(f"teacher: computes in {choice.precision}: {choice.reason}")
    return choice.precision


def _pixels(data: ImageData, count: int) -> Tensor:
    """Return the first validation images, in the layout that networks train in."""
    import torch

    from hwnas.data.images import pixels_from_bytes

    images = pixels_from_bytes(data.validation.images[:count])
    return images.contiguous(memory_format=torch.channels_last)
