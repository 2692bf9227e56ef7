from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.core.errors import ConfigError
from hwnas.distill.teacher_checks import check_outputs, doubt_about

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("one_thread")


class Making(nn.Module):
    """Gives whatever a function makes of the images."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, images: Tensor) -> Any:
        return self.make(images)


IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def pooled(images: Tensor) -> Tensor:
    return images.mean(dim=(2, 3)).repeat(1, 4)[:, :10]


def of_other_size(images: Tensor) -> Tensor:
    return functional.linear(images.flatten(1), torch.rand(10, 3 * 32 * 32))


@pytest.mark.parametrize(
    ("make", "says", "hint"),
    [
        (
            of_other_size,
            "it cannot take images of 3x16x16: RuntimeError: ",
            "`image_size` in [data]",
        ),
        (lambda x: (pooled(x), x), "gives a tuple of 2 instead of logits", "logits alone"),
        (lambda x: {"logits": pooled(x)}, "gives a dict of 'logits' instead", "logits alone"),
        (lambda x: x.shape, "gives a Size of 4 instead", "logits alone"),
        (lambda x: None, "gives `NoneType` instead", "logits alone"),
        (lambda x: x, "gives (6, 3, 16, 16) for 6 images of 3x16x16", "must end in a classifier"),
        (lambda x: pooled(x)[:1], "gives (1, 10) for 6 images", "must end in a classifier"),
        (lambda x: pooled(x)[:, :7], "tells 7 classes apart, the data has 10", "these classes"),
        (lambda x: pooled(x) / 0.0, "not finite", "pixels in [0, 1]"),
        (lambda x: pooled(x).log().log(), "not finite", "pixels in [0, 1]"),
        (lambda x: functional.dropout(pooled(x)), "different logits for the same", "self.training"),
    ],
)
def test_a_network_that_cannot_teach_is_refused(
    make: Callable[[Tensor], Any], says: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_outputs(Making(make), IMAGES, 10, what="it")
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_a_network_that_can_teach_passes() -> None:
    check_outputs(Making(pooled), IMAGES, 10, what="it")
    # In eval mode dropout is off, and batch normalization keeps its statistics.
    dropping = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), Making(pooled))
    with pytest.raises(ConfigError, match="different logits"):
        check_outputs(dropping.train(), IMAGES, 10, what="it")
    check_outputs(dropping.eval(), IMAGES, 10, what="it")


@pytest.mark.parametrize(
    ("accuracy", "classes", "doubtful"),
    [(0.1, 10, True), (0.32, 10, True), (0.33, 10, False), (0.6, 2, True), (0.7, 2, False)],
)
def test_a_teacher_near_chance_is_doubted(accuracy: float, classes: int, doubtful: bool) -> None:
    said = doubt_about(accuracy, classes)
    assert bool(said) == doubtful
    if doubtful:
        assert f"chance is {1 / classes:.1%}" in said
        assert "normalization" in said
