"""Training steps in both memory layouts: why networks train channels last here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from _results import compare
from torch import Tensor, nn
from torch.nn import functional

from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import CHANNEL_SPACES
from hwnas.space.memory_format import channels_last

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 64
IMAGE = (1, 16, 16)


def training_step(network: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return one forward and backward pass."""

    def step() -> None:
        network.zero_grad(set_to_none=True)
        functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]

    return step


def main() -> None:
    """Measure both networks of the demo in both layouts."""
    torch.manual_seed(0)
    images, labels = torch.rand(BATCH, *IMAGE), torch.randint(10, (BATCH,))
    last = images.contiguous(memory_format=torch.channels_last)
    space = ChannelSpace(CHANNEL_SPACES["rnas-cl-xs"])
    spec = TeacherSpec(image_shape=IMAGE, classes=10)
    rivals = {
        "student contiguous": training_step(space.supernet(), images, labels),
        "student channels last": training_step(channels_last(space.supernet()), last, labels),
        "teacher contiguous": training_step(TeacherNetwork(spec), images, labels),
        "teacher channels last": training_step(channels_last(TeacherNetwork(spec)), last, labels),
    }
    facts = {"batch": BATCH, "image": IMAGE, "threads": torch.get_num_threads(), "dtype": "fp32"}
    for name in ("student", "teacher"):
        pair = {rival: step for rival, step in rivals.items() if rival.startswith(name)}
        compare(
            f"memory_format_{name}", pair, baseline=f"{name} contiguous", samples=40, facts=facts
        )


if __name__ == "__main__":
    main()
