"""Where images come from: the bundled digits, CIFAR-10 on disk, or a user's own arrays."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
import torch
from torch.nn import functional

from hwnas.core.errors import (
    ConfigError,
    DataError,
    InputFileError,
    MissingDependencyError,
    nearest,
)
from hwnas.data.images import ImageData, Split

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

DOWNLOADED = "cifar10-torchvision"
"""The source whose images come with the first use of them."""
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which images, and how they are split.

    Attributes:
        source: `digits` (bundled with scikit-learn), `cifar10:FOLDER` (the standard binary files),
            `cifar10-torchvision:FOLDER` (as torchvision keeps it, which downloads what is missing),
            or `npz:FILE` (arrays `images`, uint8, (n, height, width[, channels]), and `labels`).
        image_size: Height and width to resize to; 0 keeps the source's own (16 for digits).
        validation: Share held out for architecture choices and for judging while training.
        test: Share held out for the final figures, where the source brings no test split.
        seed: What the split is drawn with.
        pad: Augmentation: shift by up to this many pixels.
        flip: Augmentation: mirror at random. Wrong for digits, right for photographs.
    """

    source: str = "digits"
    image_size: int = 0
    validation: float = 0.2
    test: float = 0.2
    seed: int = 0
    pad: int = 1
    flip: bool = False

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            share = getattr(self, name)
            if not 0.0 < share < 0.8:
                raise ConfigError(f"`{name}` is a share between 0 and 0.8, not {share}")
        if self.validation + self.test >= 1.0:
            raise ConfigError(
                f"`validation` ({self.validation}) and `test` ({self.test}) leave nothing to train "
                "on: together they are less than 1"
            )
        for name in ("image_size", "pad", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"`{name}` cannot be negative")

    def as_settings(self) -> dict[str, object]:
        """Return every setting under its name in a configuration, e.g. `data.seed`.

        Of the source, only its kind: images that were moved are the same images. What a source
        holds is told by its hash, which is among the inputs of whatever is made from it.
        """
        settings = asdict(self) | {"source": self.source.partition(":")[0]}
        return {f"data.{name}": value for name, value in settings.items()}


def load_data(config: DataConfig) -> ImageData:
    """Load and split a data set.

    The split depends on the source and the seed alone, so every stage sees the same one. It is
    drawn per class, so that each part has every class in the same share.

    Raises:
        ConfigError: The source is unknown.
        InputFileError: A file is missing or unreadable.
        DataError: A file holds something else, or too few images to split.
    """
    kind, _, place = config.source.partition(":")
    if kind not in _LOADERS:
        similar = nearest(kind, _LOADERS)
        hint = (
            f"did you mean `{similar[0]}`?"
            if similar
            else "known: digits, cifar10:FOLDER, cifar10-torchvision:FOLDER, npz:FILE"
        )
        raise ConfigError(f"unknown data source `{config.source}`", hint=hint)
    if kind != "digits" and not place:
        raise ConfigError(f"data source `{kind}` needs a path: `{kind}:PATH`")
    raw = _LOADERS[kind](Path(place))
    size = config.image_size or (16 if kind == "digits" else 0)
    generator = np.random.default_rng(config.seed)
    kept, validation = _held_out(raw.labels, config.validation, generator)
    if raw.official_test is None:
        # Shares are of the whole, so the second draw's is of what the first left.
        share = config.test / (1.0 - config.validation)
        inner, outer = _held_out(raw.labels[kept], share, generator)
        train, test = kept[inner], kept[outer]
        held_out = (raw.images[test], raw.labels[test])
    else:
        train, held_out = kept, raw.official_test
    return ImageData(
        name=kind,
        train=_split(raw.images[train], raw.labels[train], size),
        validation=_split(raw.images[validation], raw.labels[validation], size),
        test=_split(*held_out, size),
        class_names=raw.class_names,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Raw:
    """uint8 images (n, channels, height, width) and int64 labels, as the source has them."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    official_test: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = None


def _digits(_: Path) -> _Raw:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)[:, None]
    return _Raw(
        images=images,
        labels=bunch.target.astype(np.int64),
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _cifar10(folder: Path) -> _Raw:
    inner = folder / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else folder
    images, labels = zip(*(_cifar10_file(folder / f"data_batch_{i}.bin") for i in range(1, 6)),
                         strict=True)  # fmt: skip
    return _Raw(
        images=np.concatenate(images),
        labels=np.concatenate(labels),
        class_names=CIFAR10_CLASSES,
        official_test=_cifar10_file(folder / "test_batch.bin"),
    )


def _cifar10_file(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        records = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputFileError(
            f"{path.absolute()} cannot be read: {error.strerror}",
            hint="name the folder of CIFAR-10's binary version (cifar-10-batches-bin): "
            "`cifar10:FOLDER`, or let torchvision download it: `cifar10-torchvision:FOLDER`",
        ) from error
    if records.size == 0 or records.size % 3073:
        raise DataError(
            f"{path} is no CIFAR-10 binary file: its size is no multiple of 3,073 bytes"
        )
    records = records.reshape(-1, 3073)
    if records[:, 0].max() >= len(CIFAR10_CLASSES):
        raise DataError(
            f"{path} is no CIFAR-10 binary file: it has a label of {records[:, 0].max()}"
        )
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def _cifar10_of_torchvision(folder: Path) -> _Raw:
    try:
        from torchvision.datasets import CIFAR10
    except (ImportError, RuntimeError) as error:  # RuntimeError: one that is of another torch
        raise MissingDependencyError(
            f"cifar10-torchvision needs torchvision, which cannot be loaded: {error}",
            hint='install it: `pip install "hwnas[torchvision]"`',
        ) from error
    try:
        train, test = (CIFAR10(str(folder), train=is_train, download=True) for is_train in (1, 0))
    except (OSError, RuntimeError) as error:  # no network, no room, files of another content
        raise InputFileError(
            f"torchvision cannot bring CIFAR-10 to {folder}: {error}",
            hint="unpack the binary version by hand, and take `cifar10:FOLDER`",
        ) from error
    (images, labels), held_out = (
        (np.ascontiguousarray(np.moveaxis(part.data, 3, 1)), np.array(part.targets, dtype=np.int64))
        for part in (train, test)
    )
    return _Raw(images=images, labels=labels, class_names=CIFAR10_CLASSES, official_test=held_out)


def _npz(path: Path) -> _Raw:
    try:
        # Opened here, as numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            missing = {"images", "labels"} - set(arrays.files)
            if missing:
                raise DataError(f"{path} holds no array `{min(missing)}`")
            images, labels = arrays["images"], arrays["labels"]
            names = arrays["class_names"] if "class_names" in arrays.files else None
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except DataError:
        raise
    # What numpy raises for a file that is empty, cut, damaged, of pickles or of one bare array.
    except (ValueError, EOFError, TypeError, BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no npz file of plain arrays: {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"{path}: `images` is {images.dtype} of {images.ndim} dimensions, "
            f"not uint8 of shape (n, height, width[, channels])"
        )
    if 0 in images.shape:
        raise DataError(f"{path}: `images` of shape {list(images.shape)} holds nothing")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: `labels` must be {len(images)} whole numbers, one per image")
    images = images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)
    classes = int(labels.max()) + 1
    if labels.min() < 0 or len(np.unique(labels)) != classes:
        raise DataError(f"{path}: `labels` must use every class from 0 to {classes - 1}")
    class_names = tuple(map(str, range(classes) if names is None else names.ravel()))
    if len(class_names) != classes:
        raise DataError(f"{path}: {len(class_names)} class names for {classes} classes")
    return _Raw(images=np.ascontiguousarray(images), labels=labels.astype(np.int64),
                class_names=class_names)  # fmt: skip


_LOADERS: dict[str, Callable[[Path], _Raw]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    DOWNLOADED: _cifar10_of_torchvision,
    "npz": _npz,
}


def _held_out(
    labels: NDArray[np.int64], share: float, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw a share of each class; return the indices kept and those held out, both sorted."""
    held = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = round(share * len(members))
        if not 0 < count < len(members):
            raise DataError(
                f"class {label} has {len(members)} images: too few to hold out {share:.2g} of them"
            )
        held.append(members[:count])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), out), out


def _split(images: NDArray[np.uint8], labels: NDArray[np.int64], size: int) -> Split:
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    if size and tensor.shape[-2:] != (size, size):
        resized = functional.interpolate(
            tensor.to(torch.float32), size=(size, size), mode="bilinear", align_corners=False
        )
        tensor = resized.round().clamp(0, 255).to(torch.uint8)
    return Split(images=tensor, labels=torch.from_numpy(np.ascontiguousarray(labels)))
