from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwnas.data.images import ImageData, Split, batches, pixels_from_bytes

pytestmark = pytest.mark.usefixtures("one_thread")


def numbered(count: int, *, size: int = 4) -> Split:
    """Images of which each is its own number, everywhere and never zero."""
    images = torch.arange(1, count + 1, dtype=torch.uint8)[:, None, None, None]
    return Split(images=images.expand(count, 3, size, size), labels=torch.arange(count))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(count=st.integers(2, 40), batch=st.integers(2, 15), seed=st.integers(0, 99))
def test_every_image_comes_once_with_its_label(count: int, batch: int, seed: int) -> None:
    seen = []
    for pixels, labels in batches(numbered(count), batch, generator(seed)):
        assert 2 <= len(labels) <= batch
        assert torch.equal((pixels[:, 0, 0, 0] * 255).round().long(), labels + 1)
        seen += labels.tolist()
    assert len(set(seen)) == len(seen)
    # A last batch of one is left out, and nothing else.
    assert len(seen) == count - (count % batch == 1)


@given(pad=st.integers(0, 2), flip=st.booleans(), seed=st.integers(0, 99))
def test_the_generator_alone_decides_an_epoch(pad: int, flip: bool, seed: int) -> None:
    split = numbered(9)
    runs = [
        [p for p, _ in batches(split, 4, generator(seed), pad=pad, flip=flip)] for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_used_generator_gives_another_order() -> None:
    source = generator(0)
    first, second = (
        torch.cat([labels for _, labels in batches(numbered(30), 10, source)]) for _ in range(2)
    )
    assert not torch.equal(first, second)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    list(batches(numbered(9), 4, generator(0), pad=1, flip=True))
    assert torch.equal(torch.get_rng_state(), before)


@given(pad=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_shift_moves_each_image_by_at_most_pad_and_fills_with_zeros(pad: int, seed: int) -> None:
    size = 6
    picture = torch.randint(1, 256, (1, 2, size, size), generator=generator(1)).to(torch.uint8)
    split = Split(images=picture.expand(8, -1, -1, -1), labels=torch.arange(8))
    padded = torch.nn.functional.pad(picture[0], (pad,) * 4)
    crops = {
        tuple(padded[:, top : top + size, left : left + size].flatten().tolist())
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
    }
    ((pixels, _),) = batches(split, 8, generator(seed), pad=pad)
    for image in (pixels * 255).round().long():
        assert tuple(image.flatten().tolist()) in crops


def test_shifts_reach_every_place_and_differ_within_a_batch() -> None:
    picture = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    split = Split(images=picture.expand(200, -1, -1, -1), labels=torch.zeros(200).long())
    ((pixels, _),) = batches(split, 200, generator(0), pad=1)
    assert len({tuple(image.flatten().tolist()) for image in pixels}) == 9


def test_about_half_of_the_images_are_mirrored() -> None:
    picture = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).view(1, 1, 2, 2)
    split = Split(images=picture.expand(400, -1, -1, -1), labels=torch.zeros(400).long())
    ((pixels, _),) = batches(split, 400, generator(0), flip=True)
    straight = (pixels == pixels_from_bytes(picture)).all(dim=(1, 2, 3))
    mirrored = (pixels == pixels_from_bytes(picture.flip(3))).all(dim=(1, 2, 3))
    assert (straight ^ mirrored).all()
    assert 0.4 < mirrored.float().mean() < 0.6


def test_the_split_itself_is_not_augmented() -> None:
    split = Split(images=torch.full((8, 1, 4, 4), 7, dtype=torch.uint8), labels=torch.arange(8))
    list(batches(split, 4, generator(0), pad=2, flip=True))
    assert (split.images == 7).all()


def test_pixels_live_between_zero_and_one() -> None:
    pixels = pixels_from_bytes(torch.arange(256, dtype=torch.uint8))
    assert pixels.dtype == torch.float32
    assert pixels[0] == 0
    assert pixels[-1] == 1
    assert torch.equal((pixels * 255).round().to(torch.uint8), torch.arange(256).to(torch.uint8))


def test_a_subset_is_part_of_the_whole() -> None:
    whole = numbered(20)
    part = whole.subset(7, generator(3))
    assert len(part) == len(set(part.labels.tolist())) == 7
    assert torch.equal(part.images[:, 0, 0, 0].long(), part.labels + 1)
    assert torch.equal(part.labels, whole.subset(7, generator(3)).labels)
    assert whole.subset(20, generator(3)) is whole


def test_statistics_are_those_of_the_training_pixels() -> None:
    images = torch.zeros(4, 2, 2, 2, dtype=torch.uint8)
    images[:, 1] = torch.tensor([0, 255], dtype=torch.uint8)
    split = Split(images=images, labels=torch.arange(4))
    data = ImageData(
        name="two", train=split, validation=numbered(2), test=numbered(2), class_names=("a",) * 4
    )
    mean, std = data.pixel_statistics()
    assert mean == pytest.approx([0, 0.5])
    assert std == pytest.approx([0, 0.5], rel=0.05)
    assert data.image_shape == (2, 2, 2)
