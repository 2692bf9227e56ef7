"""Teachers: the robust networks that students learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import torch

from hwnas.core.artifacts import read_manifest
from hwnas.core.decoding import encode_json, read_json
from hwnas.core.errors import ArtifactError, ConfigError, InputFileError
from hwnas.core.weights import read_weights, write_weights
from hwnas.distill.attention import maps_of_energies
from hwnas.distill.features import FeatureTaps
from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec
from hwnas.distill.teacher_sources import network_from_source
from hwnas.space.energy import channel_energy
from hwnas.space.memory_format import channels_last

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

TEACHER_FILE = "teacher.json"
WEIGHTS_FILE = "weights.safetensors"

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
"""What a teacher computes in; its weights stay in fp32, and what it gives is fp32."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SAME = 1e-3
"""How far a check's logits may be off, relative to the largest: other processors round in another
order, which moves them by some 1e-5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherCard:
    """What a teacher's folder says of it, beside its weights.

    Attributes:
        image_shape: (channels, height, width) of the images that it takes.
        classes: Classes that it tells apart.
        layers: Its layers that may be tutors, in the order in which they run.
        precision: What it computes in when it teaches.
        source: What builds its network, see `network_from_source`; empty for our own.
        network: Our own network; None where there is a source.
        check_logits: What it gives for `check_image`, in fp32: by it a network that was built again
            is known to compute the same.
    """

    image_shape: tuple[int, int, int]
    classes: int
    layers: tuple[str, ...]
    precision: Precision
    source: str = ""
    network: TeacherSpec | None = None
    check_logits: tuple[float, ...]


class Teacher:
    """A trained network in eval mode that gives logits and attention maps, without gradients.

    Args:
        network: The network; put into eval mode and frozen.
        layers: Its layers that may be tutors, as `FeatureTaps` takes them.
        image_shape: (channels, height, width) of the images that it takes.
        classes: Classes that it tells apart.
        attention_size: Height and width of the attention maps.
        precision: What it computes in.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        *,
        image_shape: tuple[int, int, int],
        classes: int,
        attention_size: int,
        precision: Precision = "fp32",
    ) -> None:
        self.network = channels_last(network).eval().requires_grad_(requires_grad=False)
        self.layers = tuple(layers)
        self.image_shape = image_shape
        self.classes = classes
        self.attention_size = attention_size
        self.precision: Precision = precision
        # Of a tutor only the energy is kept, in the moment in which it runs: less memory, and
        # nothing that works in place afterward can change it.
        self._taps = FeatureTaps(network, self.layers, reduce=channel_energy)

    def to(self, device: torch.device | str) -> Self:
        """Move the network to a device; what it gives is there too."""
        self.network.to(device)
        return self

    def logits(self, images: Tensor) -> Tensor:
        """Return (batch, classes), in fp32."""
        # Tensors made in inference mode cannot take part in a loss; a copy made outside can.
        return self._forward(images).float().clone()

    def observe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (batch, classes) and maps (batch, layers, size * size), in one pass."""
        with self._taps as taps:
            logits = self._forward(images)
            energies = taps.take()
        with torch.no_grad():
            return logits.float().clone(), maps_of_energies(energies, self.attention_size)

    @torch.inference_mode()
    def _forward(self, images: Tensor) -> Tensor:
        reduced = self.precision != "fp32"
        with torch.autocast(images.device.type, dtype=_DTYPES[self.precision], enabled=reduced):
            logits: Tensor = self.network(images)
        return logits


def check_image(image_shape: tuple[int, int, int]) -> Tensor:
    """Return the image that a teacher is checked with: a ramp, (1, channels, height, width)."""
    channels, height, width = image_shape
    ramp = torch.linspace(0.0, 1.0, channels * height * width)
    return ramp.view(1, channels, height, width).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def check_logits(network: nn.Module, image_shape: tuple[int, int, int]) -> tuple[float, ...]:
    """Return what a network in eval mode gives for `check_image`."""
    return tuple(network(check_image(image_shape))[0].tolist())


def write_teacher(folder: Path, network: nn.Module, card: TeacherCard) -> None:
    """Write a teacher's card and weights into its folder."""
    write_weights(folder / WEIGHTS_FILE, network)
    (folder / TEACHER_FILE).write_bytes(encode_json(card, indent=2))


def load_teacher(path: Path, *, attention_size: int) -> Teacher:
    """Load a teacher that `hwnas teacher` made.

    A teacher of a source is built by that source again, which runs the code that it names; its
    weights are the folder's own.

    Raises:
        ArtifactError: The folder is no finished teacher, a file of it was changed, or its source
            now builds another network.
        ConfigError: Its source cannot be found, or fails.
        MissingDependencyError: Its source is of a package that is not installed.
    """
    read_manifest(path, kind="teacher")
    try:
        card = read_json(path / TEACHER_FILE, TeacherCard)
    except ConfigError as error:
        raise ArtifactError(error.message, hint=f"make {path} again: `hwnas teacher`") from error
    network = _network_of(card, path)
    try:
        read_weights(path / WEIGHTS_FILE, network)
        teacher = Teacher(
            network,
            card.layers,
            image_shape=card.image_shape,
            classes=card.classes,
            attention_size=attention_size,
            precision=card.precision,
        )
    except (ArtifactError, ConfigError) as error:
        raise _other_network(path, card, error.message) from error
    now = torch.tensor(check_logits(network, card.image_shape))
    before = torch.tensor(card.check_logits)
    if now.shape != before.shape or not torch.allclose(
        now, before, rtol=0.0, atol=_SAME * max(1.0, float(before.abs().max()))
    ):
        raise _other_network(path, card, "it gives other logits with the same weights")
    return teacher


def _network_of(card: TeacherCard, path: Path) -> nn.Module:
    if card.network is not None:
        return TeacherNetwork(card.network)
    try:
        return network_from_source(card.source, classes=card.classes, pretrained=False)
    except (ConfigError, InputFileError) as error:
        raise type(error)(
            f"the teacher {path} cannot be built again: {error.message}",
            hint=error.hint or "put the code that it was made with back in its place",
        ) from error


def _other_network(path: Path, card: TeacherCard, reason: str) -> ArtifactError:
    built = f"`{card.source}` builds" if card.source else "this hwnas builds"
    return ArtifactError(
        f"{built} another network than the teacher {path} was made of: {reason}",
        hint="put the code that it was made with back, or make it again: `hwnas teacher`",
    )
