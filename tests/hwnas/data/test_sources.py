from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core.errors import ConfigError, DataError, InputFileError, MissingDependencyError
from hwnas.data.sources import CIFAR10_CLASSES, DataConfig, load_data
from hwnas.stages.artifacts import data_inputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas.data.images import ImageData, Split

pytestmark = pytest.mark.usefixtures("one_thread")


def parts(data: ImageData) -> tuple[Split, Split, Split]:
    return data.train, data.validation, data.test


def numbers_of(split: Split) -> set[int]:
    """Read back the number that `numbered_npz` wrote into each image."""
    high, low = split.images[:, 0, 0, 0].long(), split.images[:, 0, 0, 1].long()
    return set((high * 256 + low).tolist())


def numbered_npz(path: Path, count: int, classes: int) -> Path:
    """Write images of which each holds its own number."""
    images = np.zeros((count, 4, 4), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(count), 256)
    np.savez(path, images=images, labels=np.arange(count) % classes)
    return path


# Splits


def test_digits_are_upsampled_bytes(digits: ImageData) -> None:
    for split in parts(digits):
        assert split.images.dtype == torch.uint8
        assert split.images.shape[1:] == (1, 16, 16)
        assert split.labels.dtype == torch.int64
    assert digits.train.images.max() > 240
    assert digits.train.images.min() == 0
    assert digits.image_shape == (1, 16, 16)
    assert digits.class_names == tuple("0123456789")
    assert sum(map(len, parts(digits))) == 1797


def test_upsampled_digits_still_show_their_digit(digits: ImageData) -> None:
    # A nearest-class-mean classifier is enough to tell most of them apart.
    pixels, labels = digits.train.pixels().flatten(1), digits.train.labels
    means = torch.stack([pixels[labels == label].mean(0) for label in range(10)])
    guesses = torch.cdist(digits.validation.pixels().flatten(1), means).argmin(1)
    assert (guesses == digits.validation.labels).float().mean() > 0.8


@settings(max_examples=15)
@given(
    validation=st.floats(0.1, 0.4),
    test=st.floats(0.1, 0.4),
    seed=st.integers(0, 2**32),
)
def test_the_parts_are_disjoint_whole_and_stratified(
    tmp_path_factory: pytest.TempPathFactory, validation: float, test: float, seed: int
) -> None:
    path = numbered_npz(tmp_path_factory.mktemp("npz") / "a.npz", 300, 3)
    data = load_data(DataConfig(source=f"npz:{path}", validation=validation, test=test, seed=seed))
    numbers = [numbers_of(split) for split in parts(data)]
    assert sum(map(len, numbers)) == len(set.union(*numbers)) == 300
    for split, share in zip(parts(data), (1 - validation - test, validation, test), strict=True):
        counts = torch.bincount(split.labels, minlength=3)
        assert ((counts - share * 100).abs() <= 1).all()


def test_the_split_depends_on_the_seed_alone(tmp_path: Path) -> None:
    source = f"npz:{numbered_npz(tmp_path / 'a.npz', 100, 2)}"

    def tests_of(**changes: Any) -> list[set[int]]:
        return [
            numbers_of(split) for split in parts(load_data(DataConfig(source=source, **changes)))
        ]

    torch.manual_seed(1)
    first = tests_of()
    torch.manual_seed(2)
    assert first == tests_of() == tests_of(pad=3, flip=True)
    assert first != tests_of(seed=1)


def test_images_are_resized_as_asked(tmp_path: Path) -> None:
    source = f"npz:{numbered_npz(tmp_path / 'a.npz', 20, 2)}"
    assert load_data(DataConfig(source=source)).image_shape == (1, 4, 4)
    assert load_data(DataConfig(source=source, image_size=8)).image_shape == (1, 8, 8)
    assert load_data(DataConfig(image_size=8)).image_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"validation": 0.0}, "`validation` is a share"),
        ({"test": 0.8}, "`test` is a share"),
        ({"test": float("nan")}, "`test` is a share"),
        ({"validation": 0.6, "test": 0.4}, "leave nothing to train on"),
        ({"image_size": -1}, "`image_size` cannot be negative"),
        ({"pad": -1}, "`pad` cannot be negative"),
        ({"seed": -1}, "`seed` cannot be negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        DataConfig(**changes)


@pytest.mark.parametrize(
    ("source", "says", "hint"),
    [
        ("digit", "unknown data source `digit`", "did you mean `digits`?"),
        ("", "unknown data source", "known: digits"),
        ("imagenet:/x", "unknown data source", "known: digits"),
        ("npz", "data source `npz` needs a path", ""),
        ("cifar10:", "data source `cifar10` needs a path", ""),
        ("cifar10-torchvison:x", "unknown data source", "did you mean `cifar10-torchvision`?"),
        ("cifar10-torchvision", "needs a path: `cifar10-torchvision:PATH`", ""),
    ],
)
def test_an_unknown_source_is_refused(source: str, says: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_data(DataConfig(source=source))
    assert hint in caught.value.hint


# npz


def test_color_images_keep_their_channels_and_names(tmp_path: Path) -> None:
    images = np.zeros((20, 4, 6, 3), dtype=np.uint8)
    images[..., 2] = 255
    path = tmp_path / "a.npz"
    np.savez(path, images=images, labels=np.arange(20, dtype=np.uint8) % 2,
             class_names=np.array(["cat", "dog"]))  # fmt: skip
    data = load_data(DataConfig(source=f"npz:{path}"))
    assert data.image_shape == (3, 4, 6)
    assert data.class_names == ("cat", "dog")
    assert (data.train.images[:, 2] == 255).all()
    assert not data.train.images[:, :2].any()


def arrays(**changes: Any) -> dict[str, Any]:
    good = {"images": np.zeros((20, 4, 4), dtype=np.uint8), "labels": np.arange(20) % 2}
    return {name: value for name, value in (good | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": None}, "holds no array `labels`"),
        ({"images": None}, "holds no array `images`"),
        ({"images": np.zeros((20, 4, 4))}, "`images` is float64 of 3 dimensions"),
        ({"images": np.zeros((20, 4), dtype=np.uint8)}, "`images` is uint8 of 2 dimensions"),
        ({"images": np.uint8(3)}, "`images` is uint8 of 0 dimensions"),
        ({"images": np.zeros((0, 4, 4), np.uint8), "labels": np.zeros(0, int)}, "holds nothing"),
        ({"images": np.zeros((20, 0, 4), np.uint8)}, "holds nothing"),
        ({"labels": np.arange(19) % 2}, "must be 20 whole numbers"),
        ({"labels": np.zeros((20, 1), dtype=int)}, "must be 20 whole numbers"),
        ({"labels": np.int64(1)}, "must be 20 whole numbers"),
        ({"labels": np.arange(20) % 2 + 0.5}, "must be 20 whole numbers"),
        ({"labels": np.array(["a", "b"] * 10)}, "must be 20 whole numbers"),
        ({"labels": np.arange(20) % 2 * 2}, "must use every class from 0 to 2"),
        ({"labels": np.arange(20) % 2 - 1}, "must use every class from 0 to 0"),
        ({"labels": np.arange(20)}, "class 0 has 1 images: too few"),
        ({"class_names": np.array(["a"])}, "1 class names for 2 classes"),
        ({"class_names": np.array("a")}, "1 class names for 2 classes"),
        ({"class_names": np.array([object()])}, "no npz file of plain arrays"),
        ({"labels": np.array([object()] * 20)}, "no npz file of plain arrays"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays(**changes))
    with pytest.raises(DataError, match=says) as caught:
        load_data(DataConfig(source=f"npz:{path}"))
    if "class 0" not in says:
        assert str(path) in caught.value.message


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('code of a data file was run')",))


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("images, labels\n")


def bare_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def cut(path: Path) -> None:
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:300])


def flipped_bits(path: Path) -> None:
    np.savez_compressed(path, **arrays(images=np.arange(320).astype(np.uint8).reshape(20, 4, 4)))
    data = bytearray(path.read_bytes())
    data[150:170] = bytes(255 - byte for byte in data[150:170])
    path.write_bytes(bytes(data))


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil()))


@pytest.mark.parametrize("damage", [empty, text, bare_array, cut, flipped_bits, pickled])
def test_a_file_that_is_no_npz_is_refused_and_never_run(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "a.npz"
    damage(path)
    with pytest.raises(DataError, match="is no npz file of plain arrays"):
        load_data(DataConfig(source=f"npz:{path}"))


@pytest.mark.parametrize("kind", ["npz", "cifar10"])
def test_a_path_to_nothing_is_an_input_error(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputFileError, match="cannot be read: No such file"):
        load_data(DataConfig(source=f"{kind}:{tmp_path / 'nothing'}"))


def test_a_folder_is_no_npz(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="cannot be read: Is a directory"):
        load_data(DataConfig(source=f"npz:{tmp_path}"))


# CIFAR-10


def cifar(folder: Path) -> None:
    """Write six tiny files: image n of file f is red f, green n, blue 255; every class is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        records = np.zeros((20, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(20) % 10
        records[:, 1:1025] = number
        records[:, 1025:2049] = np.arange(20)[:, None]
        records[:, 2049:] = 255
        records.tofile(folder / f"{name}.bin")


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10_is_read_from_its_folder_or_the_one_around_it(tmp_path: Path, inner: str) -> None:
    cifar(tmp_path / inner)
    data = load_data(DataConfig(source=f"cifar10:{tmp_path}", test=0.5))
    assert data.class_names == CIFAR10_CLASSES
    assert data.image_shape == (3, 32, 32)
    assert (data.train.images[:, 2] == 255).all()
    # The official test split is kept whole, and nothing of it is trained or chosen on.
    assert len(data.test) == 20
    assert (data.test.images[:, 0] == 5).all()
    assert data.test.labels.tolist() == [*range(10)] * 2
    assert len(data.train) + len(data.validation) == 100
    seen = torch.cat([data.train.images, data.validation.images])[:, :2, 0, 0]
    assert len(set(map(tuple, seen.tolist()))) == 100
    assert seen[:, 0].max() < 5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "size is no multiple of 3,073"),
        (b"x" * 3072, "size is no multiple of 3,073"),
        (b"\x0a" + bytes(3072), "it has a label of 10"),
    ],
)
def test_a_file_that_is_not_of_cifar10_is_refused(
    tmp_path: Path, content: bytes, says: str
) -> None:
    cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_3.bin is no CIFAR-10 .*{says}"):
        load_data(DataConfig(source=f"cifar10:{tmp_path}"))


def test_a_missing_cifar10_file_says_what_to_unpack(tmp_path: Path) -> None:
    cifar(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(InputFileError, match=r"test_batch\.bin cannot be read") as caught:
        load_data(DataConfig(source=f"cifar10:{tmp_path}"))
    assert "cifar-10-batches-bin" in caught.value.hint
    assert "cifar10-torchvision:FOLDER" in caught.value.hint


# CIFAR-10 as torchvision brings it


class StandIn:
    """CIFAR-10 as torchvision gives it, of 50 images a split; the first use "downloads" it.

    Image n of a split is red n, green 1 (train) or 0 (test), blue 255.
    """

    downloads = 0
    breaks: Exception | None = None

    def __init__(self, root: str, *, train: bool, download: bool) -> None:
        assert download
        if self.breaks is not None:
            raise self.breaks
        place = Path(root) / "cifar-10-batches-py" / ("data_batch_1" if train else "test_batch")
        if not place.exists():
            type(self).downloads += 1
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(f"{'train' if train else 'test'}".encode())
        self.data = np.zeros((50, 32, 32, 3), dtype=np.uint8)
        self.data[..., 0] = np.arange(50)[:, None, None]
        self.data[..., 1] = train
        self.data[..., 2] = 255
        self.targets = [n % 10 for n in range(50)]


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """Put a stand-in in torchvision's place."""

    class CIFAR10(StandIn):
        pass

    package, datasets = ModuleType("torchvision"), ModuleType("torchvision.datasets")
    datasets.CIFAR10 = CIFAR10  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    return CIFAR10


def test_torchvisions_cifar10_is_the_same_in_another_form(
    tmp_path: Path, torchvision: type[StandIn]
) -> None:
    data = load_data(DataConfig(source=f"cifar10-torchvision:{tmp_path}", validation=0.4))
    assert data.class_names == CIFAR10_CLASSES
    assert data.image_shape == (3, 32, 32)
    # The official test split is kept whole, and nothing of it is trained or chosen on.
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 20, 50)
    for split, green in zip(parts(data), (1, 1, 0), strict=True):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert (split.images[:, 1] == green).all()
        assert (split.images[:, 2] == 255).all()
        assert torch.equal(split.images[:, 0, 0, 0].long() % 10, split.labels)
    assert torchvision.downloads == 2


def test_what_was_downloaded_is_an_input_like_any_file(
    tmp_path: Path, torchvision: type[StandIn]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    inputs = data_inputs(DataConfig(source=f"cifar10-torchvision:{here}"))
    assert set(inputs) == {"data"}
    assert torchvision.downloads == 2  # it is brought there to be hashed
    assert data_inputs(DataConfig(source=f"cifar10-torchvision:{here}")) == inputs
    assert torchvision.downloads == 2
    # Of another place the same, of another content not.
    assert data_inputs(DataConfig(source=f"cifar10-torchvision:{there}")) == inputs
    (there / "cifar-10-batches-py" / "test_batch").write_bytes(b"other")
    assert data_inputs(DataConfig(source=f"cifar10-torchvision:{there}")) != inputs


@pytest.mark.parametrize(
    "error",
    [
        OSError("no route to host"),
        RuntimeError("Dataset not found or corrupted"),
        PermissionError("read-only"),
    ],
)
def test_a_download_that_fails_says_what_to_do_without(
    tmp_path: Path, torchvision: type[StandIn], error: Exception
) -> None:
    torchvision.breaks = error
    source = DataConfig(source=f"cifar10-torchvision:{tmp_path}")
    for use in (load_data, data_inputs):
        with pytest.raises(InputFileError, match=f"cannot bring CIFAR-10 to .*: {error}") as caught:
            use(source)
        assert str(tmp_path) in caught.value.message
        assert "`cifar10:FOLDER`" in caught.value.hint


def test_without_torchvision_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.datasets", raising=False)
    with pytest.raises(MissingDependencyError, match="needs torchvision") as caught:
        load_data(DataConfig(source=f"cifar10-torchvision:{tmp_path}"))
    assert 'pip install "hwnas[torchvision]"' in caught.value.hint
    assert not any(tmp_path.iterdir())
