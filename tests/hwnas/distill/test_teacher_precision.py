from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hwnas.distill.teacher_precision as subject
from hwnas.core.errors import ConfigError
from hwnas.distill.teacher import Teacher
from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec
from hwnas.distill.teacher_precision import check_precision, choose_precision

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = TeacherSpec(image_shape=(3, 8, 8), classes=4, width=4, blocks=(1, 1))


class Odd(nn.Module):
    """What a network may do in reduced precision alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, features: Tensor) -> Tensor:
        if features.dtype == torch.float32:
            return features
        if self.kind == "refuses":
            raise RuntimeError("no kernel\nof that name")
        if self.kind == "overflows":
            return features * 1e30 * 1e30
        return features.flip(3) if self.kind == "other maps" else -features


def teacher(odd: str = "") -> Teacher:
    torch.manual_seed(0)
    network = TeacherNetwork(SPEC)
    if odd:
        network.stem.append(Odd(odd))
    return Teacher(
        network,
        network.tap_names,
        image_shape=SPEC.image_shape,
        classes=SPEC.classes,
        attention_size=4,
    )


@pytest.fixture
def images() -> Tensor:
    return torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "WORTH_MACS", 0)


def with_times(monkeypatch: pytest.MonkeyPatch, bf16: list[float]) -> None:
    """Let every pass in fp32 take 1 s, and those in bf16 as given."""
    taken = iter(bf16)
    monkeypatch.setattr(
        subject, "_seconds", lambda _, __, precision: 1.0 if precision == "fp32" else next(taken)
    )


@pytest.mark.usefixtures("worth_it")
@pytest.mark.parametrize(
    ("bf16", "chosen"),
    [
        ([0.5] * 5, "bf16"),
        ([0.89] * 5, "bf16"),
        ([0.91] * 5, "fp32"),
        # One pair that does not say so is enough to keep what is exact.
        ([0.5, 0.5, 0.95, 0.5, 0.5], "fp32"),
    ],
)
def test_bf16_is_taken_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, images: Tensor, bf16: list[float], chosen: str
) -> None:
    with_times(monkeypatch, bf16)
    mine = teacher()
    choice = choose_precision(mine, images)
    assert choice.precision == chosen
    assert "32 images take 1e+03 ms in fp32" in choice.reason
    assert mine.precision == "fp32"


@pytest.mark.usefixtures("worth_it")
def test_times_are_really_taken(images: Tensor) -> None:
    assert " ms in bf16" in choose_precision(teacher(), images).reason


def test_a_small_network_is_not_tried(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    with_times(monkeypatch, [0.1] * 5)
    choice = choose_precision(teacher(), images)
    assert choice.precision == "fp32"
    # 3x3 convolutions at 8x8 and 4x4, the shortcut, the classifier: by hand.
    macs = 64 * 9 * (3 * 4 + 4 * 4 * 2) + 16 * 9 * (4 * 8 + 8 * 8) + 16 * 4 * 8 + 8 * 4
    assert f"{macs / 1e6:.1f} million" in choice.reason
    monkeypatch.setattr(subject, "WORTH_MACS", macs)
    assert choose_precision(teacher(), images).precision == "bf16"
    monkeypatch.setattr(subject, "WORTH_MACS", macs + 1)
    assert choose_precision(teacher(), images).precision == "fp32"


@pytest.mark.usefixtures("worth_it")
@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ("refuses", "it cannot compute in bf16: no kernel"),
        ("overflows", "same most likely class on"),
        ("other classes", "same most likely class on"),
        ("other maps", "maps that are up to"),
    ],
)
def test_bf16_that_says_something_else_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, images: Tensor, odd: str, says: str
) -> None:
    with_times(monkeypatch, [0.1] * 5)
    mine = teacher(odd)
    choice = choose_precision(mine, images)
    assert choice.precision == "fp32"
    assert says in choice.reason
    assert mine.precision == "fp32"


@pytest.mark.parametrize(
    ("odd", "says"),
    [("refuses", "cannot compute in bf16: no kernel"), ("overflows", "is not finite")],
)
def test_a_precision_that_was_asked_for_must_work(images: Tensor, odd: str, says: str) -> None:
    check_precision(teacher(), images, "bf16")
    with pytest.raises(ConfigError, match=says) as caught:
        check_precision(teacher(odd), images, "bf16")
    assert "`precision` in [teacher]" in caught.value.hint


def test_settings_know_the_same_precisions() -> None:
    from typing import get_args, get_type_hints

    from hwnas.distill.teacher import Precision
    from hwnas.training.teacher import TeacherConfig

    settings: Any = get_type_hints(TeacherConfig)["precision"]
    assert set(get_args(settings)) == {"auto", *get_args(Precision)}
