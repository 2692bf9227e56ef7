"""Whether a network that is not ours can teach: found by running it on a few images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hwnas.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

_PART_OF_THE_WAY = 0.25
"""How far from chance to perfect a teacher should be, at least. What is fed images of another
normalization or size than it was trained on hardly leaves chance; no useful teacher is this bad."""


def check_outputs(network: nn.Module, images: Tensor, classes: int, *, what: str) -> None:
    """Check that a network takes images and gives logits for the classes of a data set.

    Args:
        network: The network, in eval mode.
        images: A few images, (batch, channels, height, width), in [0, 1].
        classes: Classes of the data set.
        what: What the network is, for errors.

    Raises:
        ConfigError: It cannot take such images, gives something else, tells other classes apart,
            gives what is not finite, or not the same for the same images.
    """
    shape = "x".join(map(str, images.shape[1:]))
    try:
        with torch.no_grad():
            logits: object = network(images)
            again: object = network(images)
    except Exception as error:  # of code that is not ours
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{what} cannot take images of {shape}: {type(error).__name__}: {reason}",
            hint="set `image_size` in [data] to what it was trained on, or give another teacher",
        ) from error
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"{what} gives {_described(logits)} instead of logits, (batch, classes)",
            hint="wrap it in a callable whose network returns its logits alone",
        )
    if logits.ndim != 2 or len(logits) != len(images):
        raise ConfigError(
            f"{what} gives {tuple(logits.shape)} for {len(images)} images of {shape} instead of "
            f"logits, ({len(images)}, {classes})",
            hint="it must end in a classifier, e.g. after an average over height and width",
        )
    if logits.shape[1] != classes:
        raise ConfigError(
            f"{what} tells {logits.shape[1]} classes apart, the data has {classes}",
            hint="give a teacher that was trained on these classes; of a zoo's network, `weights` "
            "of one that was",
        )
    if not logits.isfinite().all():
        raise ConfigError(
            f"{what} gives logits that are not finite (NaN or infinity) for images of {shape}",
            hint="its weights are damaged, or it does not take pixels in [0, 1]",
        )
    assert isinstance(again, Tensor)
    if not torch.allclose(logits, again, rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"{what} gives different logits for the same images, in eval mode",
            hint="something in it is random or keeps a state, e.g. dropout that does not heed "
            "`self.training`",
        )


def doubt_about(accuracy: float, classes: int) -> str:
    """Say what is likely wrong with a teacher that is hardly better than chance, or nothing.

    Args:
        accuracy: Its share of images classified right.
        classes: Classes of the data set.
    """
    chance = 1.0 / classes
    if accuracy >= chance + _PART_OF_THE_WAY * (1.0 - chance):
        return ""
    return (
        f"the teacher classifies {accuracy:.1%} of the validation images right, where chance is "
        f"{chance:.1%}: was it trained on images of another size, order of classes or "
        "normalization? It is given pixels in [0, 1], so normalization belongs inside its network"
    )


def _described(value: object) -> str:
    name = type(value).__name__
    if isinstance(value, dict):
        return f"a {name} of {', '.join(map(repr, list(value)[:4]))}"
    if isinstance(value, list | tuple):
        return f"a {name} of {len(value)}"
    return f"`{name}`"
