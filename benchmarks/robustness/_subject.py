"""The trained network and the images that agreement and speed are judged on.

Both interpreters read it: ours, and the rivals', which has torch and numpy but not all that hwnas
needs; so this imports the network alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_FILES = ("spec.json", "weights.pt", "samples.npz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is attacked.

    Attributes:
        network: In eval mode.
        spec: What it was built from.
        images: float32, (N, channels, height, width), in [0, 1].
        labels: int64, (N,).
    """

    network: TeacherNetwork
    spec: TeacherSpec
    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def write_subject(folder: Path, subject: Subject) -> None:
    """Write it for the other interpreter."""
    (folder / _FILES[0]).write_text(json.dumps(asdict(subject.spec)))
    torch.save(subject.network.state_dict(), folder / _FILES[1])
    np.savez(folder / _FILES[2], images=subject.images, labels=subject.labels)


def read_subject(folder: Path) -> Subject:
    """Read what `write_subject` wrote."""
    plain = json.loads((folder / _FILES[0]).read_text())
    spec = TeacherSpec(
        image_shape=tuple(plain["image_shape"]),
        classes=plain["classes"],
        width=plain["width"],
        blocks=tuple(plain["blocks"]),
    )
    network = TeacherNetwork(spec)
    network.load_state_dict(torch.load(folder / _FILES[1], weights_only=True))
    with np.load(folder / _FILES[2]) as stored:
        return Subject(
            network=network.eval(), spec=spec, images=stored["images"], labels=stored["labels"]
        )
