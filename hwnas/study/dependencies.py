"""What a piece of a study's work depends on: settings as plain data, files and images."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwnas.data.sources import DataConfig
    from hwnas.space.chain_space import ChainSpace
    from hwnas.stages.config import RunConfig


def needs_search(config: RunConfig) -> bool:
    """Say whether training a given network takes something from a search."""
    return config.search.tutors == "searched" or config.train.init == "supernet"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What must be known of images before they are used.

    Attributes:
        image_shape: (channels, height, width).
        classes: Classes to tell apart.
        train: Images that are trained on.
        key: Settings, and hashes of the content; not where it is kept, which may move.
    """

    image_shape: tuple[int, int, int]
    classes: int
    train: int
    key: dict[str, Any]


@functools.cache
def data_of(config: DataConfig) -> DataFacts:
    """Load images once in a process, and return what is known of them."""
    from hwnas.data.sources import load_data
    from hwnas.stages.artifacts import data_inputs

    data = load_data(config)
    return DataFacts(
        image_shape=data.image_shape,
        classes=len(data.class_names),
        train=len(data.train),
        key={**plain(config), "source": data.name, **data_inputs(config)},
    )


def training_images(config: RunConfig) -> int:
    """Return how many images an epoch of an arm's training goes through."""
    return data_of(config.data).train


def space_of(config: RunConfig) -> ChainSpace:
    """Return the space of an arm, for the images of its data."""
    from hwnas.space.registry import space_from_spec
    from hwnas.space.spec import space_spec
    from hwnas_profilers.targets import parse_target

    data = data_of(config.data)
    spec = space_spec(config.space.name, image_shape=data.image_shape, classes=data.classes)
    return space_from_spec(spec, dtype=parse_target(config.target.name).runtime.precision)


def settings_of(config: RunConfig, *sections: str) -> dict[str, Any]:
    """Return some sections as plain data, the seed, and the content of the images."""
    chosen: dict[str, Any] = {name: plain(getattr(config, name)) for name in sections}
    if "data" in sections:
        chosen["data"] = data_of(config.data).key
    return {"seed": config.seed, **chosen}


def teacher_inputs(config: RunConfig) -> dict[str, str]:
    """Return the hashes of the files that a teacher is made from."""
    from pathlib import Path

    from hwnas.core.artifacts import sha256_of_file
    from hwnas.distill.teacher_sources import source_inputs

    inputs = dict(source_inputs(config.teacher.source))
    if config.teacher.weights:
        inputs["weights"] = sha256_of_file(Path(config.teacher.weights))
    return inputs | {"images": str(data_of(config.data).key)}


def plain(value: object) -> Any:
    """Return settings as plain data, which keys are made from."""
    import msgspec

    return msgspec.to_builtins(value)
