"""Hand-crafted networks as arms: trained as derived ones are, with a teacher and its tutors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.core.progress import Progress
    from hwnas.space.handcrafted.parts import HandcraftedNetwork
    from hwnas.stages.config import RunConfig

CARD_FILE = "network.json"
KIND = "handcrafted"


@dataclass(frozen=True, slots=True, kw_only=True)
class HandcraftedCard:
    """What a trained hand-crafted network is.

    Attributes:
        name: Its name in `hwnas.space.handcrafted`.
        width: What its channels are multiplied by.
        image_shape: (channels, height, width) of an image.
        classes: Classes that it tells apart.
        params: Trained parameters.
        macs: Multiply-accumulates per image.
        epochs: Epochs trained.
    """

    name: str
    width: float
    image_shape: tuple[int, int, int]
    classes: int
    params: int
    macs: int
    epochs: int

    def build(self) -> HandcraftedNetwork:
        """Build it, newly initialized, in eval mode."""
        from hwnas.space.handcrafted.registry import network

        built = network(self.name, self.image_shape, self.classes, self.width)
        built.eval()
        return built


def check_handcrafted(config: RunConfig, arm: str) -> None:
    """Refuse settings that only a searched network can have.

    Raises:
        ConfigError: Tutors or first weights are those of a search.
    """
    if config.train.init == "supernet" or config.search.tutors == "searched":
        raise ConfigError(
            f"arm `{arm}` is hand-crafted: no search has weights or tutors for it",
            hint='set `init = "scratch"` in its [train], and `tutors` in its [search] to none, '
            "uniform, random, depth or last",
        )


def make_handcrafted(
    config: RunConfig,
    name: str,
    width: float,
    teacher_path: Path,
    out: Path,
    *,
    progress: Progress = SILENT,
) -> HandcraftedCard:
    """Train a hand-crafted network. Interrupted, it goes on after the last finished epoch.

    Args:
        config: The arm's settings.
        name: Its name in `hwnas.space.handcrafted`.
        width: What its channels are multiplied by.
        teacher_path: Folder of the teacher.
        out: Folder of the trained network.
        progress: Where to report.

    Raises:
        ConfigError: The teacher does not take these images.
        TrainingDivergedError: The loss is not finite; the last good checkpoint is kept.
    """
    import torch

    from hwnas.core.artifacts import MANIFEST, ManifestDraft, new_artifact, sha256_of_file
    from hwnas.core.decoding import encode_json
    from hwnas.core.threads import torch_threads
    from hwnas.core.weights import write_weights
    from hwnas.data.sources import load_data
    from hwnas.distill.teacher import load_teacher
    from hwnas.space.handcrafted.registry import network as network_of
    from hwnas.space.macs import macs_of_network
    from hwnas.stages.artifacts import checkpoint_beside, data_inputs
    from hwnas.stages.checks import check_images_fit
    from hwnas.stages.train import WEIGHTS_FILE, train_settings
    from hwnas.study.given import tutor_weights
    from hwnas.training.student import train_student

    data = load_data(config.data)
    teacher = load_teacher(teacher_path, attention_size=config.search.attention_size)
    check_images_fit(data, teacher.image_shape, teacher.classes, what="the teacher")
    classes = len(data.class_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = network_of(name, data.image_shape, classes, width)
    macs = macs_of_network(network, data.image_shape)
    network.normalize.set_statistics(*data.pixel_statistics())
    inputs = data_inputs(config.data) | {"teacher": sha256_of_file(teacher_path / MANIFEST)}
    checkpoint = checkpoint_beside(out)
    device = "cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    with torch_threads(config.training_threads):
        history = train_student(
            network,
            tutor_weights(config, network.tap_names, teacher.layers),
            teacher.to(device),
            data,
            config.data,
            config.threat,
            config.train,
            seed=config.seed,
            checkpoint=checkpoint,
            inputs=inputs,
            device=device,
            progress=progress,
        )
    network.cpu()
    card = HandcraftedCard(
        name=name,
        width=width,
        image_shape=data.image_shape,
        classes=classes,
        params=sum(parameter.numel() for parameter in network.parameters()),
        macs=macs,
        epochs=len(history),
    )
    draft = ManifestDraft(kind=KIND, settings=train_settings(config), inputs=inputs)
    with new_artifact(out, draft) as folder:
        write_weights(folder / WEIGHTS_FILE, network)
        (folder / CARD_FILE).write_bytes(encode_json(card, indent=2))
        (folder / "history.json").write_bytes(encode_json(history, indent=2))
    checkpoint.unlink(missing_ok=True)
    return card


def load_handcrafted(folder: Path) -> HandcraftedNetwork:
    """Load a trained hand-crafted network, in eval mode.

    Raises:
        ArtifactError: It is unfinished or was changed.
    """
    from hwnas.core.artifacts import read_manifest
    from hwnas.core.weights import read_weights
    from hwnas.stages.train import WEIGHTS_FILE

    read_manifest(folder, kind=KIND)
    network = read_card(folder).build()
    read_weights(folder / WEIGHTS_FILE, network)
    return network


def read_card(folder: Path) -> HandcraftedCard:
    """Read what a trained hand-crafted network is."""
    from hwnas.core.decoding import read_json

    return read_json(folder / CARD_FILE, HandcraftedCard)
