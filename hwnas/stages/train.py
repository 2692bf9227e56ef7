"""`hwnas train`: the derived network, slim, with its tutors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.core.metrics import MetricLog
    from hwnas.data.images import ImageData
    from hwnas.space.supernet import SlimNetwork
    from hwnas.stages.config import RunConfig

GENOTYPE_FILE = "genotype.json"
WEIGHTS_FILE = "weights.safetensors"
SETTINGS_FILE = "settings.json"
_MEASURED_ON = 2048
"""Images that statistics of batch normalization are measured on: more change them little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """A trained network and its accuracy on validation images.

    Attributes:
        network: Its folder.
        params: Its parameters.
        macs: Its multiply-accumulates per image.
        epochs: Epochs trained.
        initial_accuracy: On validation images, before training, of what was cut out of the
            supernet, its batch normalization measured anew; None where training began with new
            weights.
        clean_accuracy: On validation images as they are.
        robust_accuracy: On PGD examples of the threat model.
        n: Validation images.
        eps: Size of the perturbation in pixel units.
        steps: PGD steps.
    """

    network: str
    params: int
    macs: int
    epochs: int
    initial_accuracy: float | None
    clean_accuracy: float
    robust_accuracy: float
    n: int
    eps: float
    steps: int


def train(
    genotype: Path,
    teacher: Path,
    out: Path,
    *,
    search: Path | None = None,
    config: Path | None = None,
    data: str | None = None,
    robust: Literal["none", "fast-at", "pgd-at", "trades", "ard", "rslad"] | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    log: MetricLog | None = None,
    progress: Progress = SILENT,
) -> TrainResult:
    """Train the derived network with the tutors that the search chose.

    By default robustly: the teacher's predictions on clean images are distilled into the student's
    on adversarial ones. Interrupted, it goes on after the last finished epoch.

    Args:
        genotype: The file that `hwnas derive` wrote.
        teacher: Folder of the teacher that the search learned from.
        out: Folder of the trained network.
        search: Folder of the search, whose weights the network begins with; without it, with new
            ones.
        config: TOML file of `hwnas run`; its [data], [threat] and [train] are used.
        data: Images: digits, cifar10:FOLDER, cifar10-torchvision:FOLDER or npz:FILE.
        robust: How robustly: rslad (default), ard, trades, pgd-at, fast-at, or none for the paper's
            loss on clean images.
        epochs: Epochs of training.
        seed: Seed of everything that is drawn.
        log: Where each epoch's figures go besides.
        progress: Where to report.

    Returns:
        The network's figures.

    Raises:
        ConfigError: A setting is unknown or out of range, or the parts do not fit.
        ArtifactError: A folder is unfinished or was changed.
        TrainingDivergedError: The loss is not finite; the last good checkpoint is kept.
    """
    from hwnas.stages.config import load_config

    init = None if search is not None or config is not None else "scratch"
    settings = load_config(
        config, data=data, seed=seed, train={"robust": robust, "epochs": epochs, "init": init}
    )
    return make_network(settings, genotype, teacher, search, out, log=log, progress=progress)


def train_settings(config: RunConfig) -> dict[str, Any]:
    """Return what a trained network depends on, besides its inputs."""
    import msgspec

    return {
        "seed": config.seed,
        "data": msgspec.to_builtins(config.data),
        "threat": msgspec.to_builtins(config.threat),
        "train": msgspec.to_builtins(config.train),
    }


def make_network(
    config: RunConfig,
    genotype_path: Path,
    teacher_path: Path,
    search_path: Path | None,
    out: Path,
    *,
    log: MetricLog | None = None,
    progress: Progress = SILENT,
) -> TrainResult:
    """Train, or find the network trained. Raises as `train`."""
    import torch

    from hwnas.core.artifacts import (
        MANIFEST,
        ManifestDraft,
        new_artifact,
        read_manifest,
        sha256_of_file,
    )
    from hwnas.core.decoding import encode_json, read_json
    from hwnas.core.errors import ConfigError
    from hwnas.core.threads import torch_threads
    from hwnas.core.weights import read_weights, write_weights
    from hwnas.data.sources import load_data
    from hwnas.distill.teacher import load_teacher
    from hwnas.search.records import read_derivation
    from hwnas.space.registry import space_from_spec
    from hwnas.stages.artifacts import checkpoint_beside, data_inputs, is_current
    from hwnas.stages.calls import call_text
    from hwnas.stages.checks import check_images_fit
    from hwnas.stages.logs import logs_of
    from hwnas.stages.search import SUPERNET_FILE
    from hwnas.training.figures import accuracy_and_robustness
    from hwnas.training.student import train_student

    derivation = read_derivation(genotype_path)
    teacher = load_teacher(teacher_path, attention_size=derivation.attention_size)
    if teacher.layers != derivation.teacher_layers:
        raise ConfigError(
            f"{teacher_path} has other layers than the teacher that {genotype_path} was searched "
            "with: its tutors would be others",
            hint="give the teacher of the search",
        )
    settings = train_settings(config)
    inputs = data_inputs(config.data) | {
        "genotype": sha256_of_file(genotype_path),
        "teacher": sha256_of_file(teacher_path / MANIFEST),
    }
    if config.train.init == "supernet":
        if search_path is None:
            raise ConfigError(
                '[train] init = "supernet" needs the search whose weights it begins with',
                hint='give --search DIR, or set init = "scratch"',
            )
        read_manifest(search_path, kind="search")
        inputs["search"] = sha256_of_file(search_path / MANIFEST)
    if is_current(out, kind="train", settings=settings, inputs=inputs):
        progress.say(f"train: {out} is finished already")
        return read_json(out / "result.json", TrainResult)

    data = load_data(config.data)
    space = space_from_spec(derivation.space)
    check_images_fit(data, space.spec.image_shape, space.spec.classes, what="the network")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = space.network(derivation.genotype)
    if network.tap_names != derivation.student_layers:
        raise ConfigError(
            f"{genotype_path} has tutors for other layers ({', '.join(derivation.student_layers)}) "
            f"than its network has ({', '.join(network.tap_names)})",
            hint="derive it again: `hwnas derive`",
        )
    network.normalize.set_statistics(*data.pixel_statistics())
    initial_accuracy = None
    if search_path is not None and config.train.init == "supernet":
        supernet = space.supernet()
        read_weights(search_path / SUPERNET_FILE, supernet)
        network.load_state_dict(supernet.slim_state(derivation.genotype))
        initial_accuracy = _initial_accuracy(network, data, config.seed)
    checkpoint = checkpoint_beside(out)
    on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    with torch_threads(config.training_threads), logs_of(config.tensorboard, log) as logs:
        history = train_student(
            network,
            derivation.tutor_weights,
            teacher.to(device),
            data,
            config.data,
            config.threat,
            config.train,
            seed=config.seed,
            checkpoint=checkpoint,
            inputs=inputs,
            device=device,
            log=logs,
            progress=progress,
        )
    network.cpu()
    clean, robust = accuracy_and_robustness(
        network, data.validation, config.threat, seed=config.seed, progress=progress
    )
    result = TrainResult(
        network=str(out),
        params=derivation.params,
        macs=derivation.macs,
        epochs=len(history),
        initial_accuracy=initial_accuracy,
        clean_accuracy=clean.value,
        robust_accuracy=robust.value,
        n=clean.n,
        eps=config.threat.eps_pixels,
        steps=config.threat.steps,
    )
    draft = ManifestDraft(
        kind="train",
        call=call_text(
            "train",
            genotype=genotype_path,
            teacher=teacher_path,
            out=out,
            search=search_path,
            seed=config.seed,
        ),
        settings=settings,
        inputs=inputs,
    )
    with new_artifact(out, draft) as folder:
        write_weights(folder / WEIGHTS_FILE, network)
        (folder / GENOTYPE_FILE).write_bytes(encode_json(derivation, indent=2))
        (folder / SETTINGS_FILE).write_bytes(encode_json(config, indent=2))
        (folder / "history.json").write_bytes(encode_json(history, indent=2))
        (folder / "result.json").write_bytes(encode_json(result, indent=2))
    checkpoint.unlink(missing_ok=True)
    return result


def _initial_accuracy(network: SlimNetwork, data: ImageData, seed: int) -> float:
    """Judge a network as it was cut out of its supernet, and leave it as it is.

    The statistics that a supernet leaves are of its mix: judged by them, networks of digits that
    get 97 % right are at chance. Training begins with them all the same, as it adapts them within
    its first epoch: begun with measured ones it ended no better (two spaces, 1 and 3 epochs).
    """
    import copy

    import torch

    from hwnas.training.figures import accuracy
    from hwnas.training.recalibration import recalibrate

    measured = copy.deepcopy(network)
    images = data.train.subset(_MEASURED_ON, torch.Generator().manual_seed(seed))
    recalibrate(measured, images.pixels())
    return accuracy(measured, data.validation.pixels(), data.validation.labels)
