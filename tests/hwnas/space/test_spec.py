from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from hwnas.core.decoding import decode_json, encode_json
from hwnas.core.errors import ConfigError
from hwnas.space.channel.spec import CHANNEL_SPACES, ChannelSpec, StageSpec
from hwnas.space.genotype import Genotype
from hwnas.space.spec import space_spec, spec_from_plain


@pytest.mark.parametrize("name", CHANNEL_SPACES)
def test_a_space_survives_its_round_trip(name: str) -> None:
    spec = CHANNEL_SPACES[name]
    assert spec.name == name
    assert decode_json(encode_json(spec), ChannelSpec, source="test") == spec


def test_fingerprints_tell_spaces_apart() -> None:
    spec = CHANNEL_SPACES["rnas-cl-xs"]
    others = [
        *CHANNEL_SPACES.values(),
        replace(spec, image_shape=(3, 16, 16)),
        replace(spec, classes=11),
        replace(spec, stages=spec.stages[:2]),
        replace(spec, kernel=5),
        replace(spec, expansion=4),
        replace(spec, head=32),
        replace(spec, stages=(replace(spec.stages[0], expansion=1), *spec.stages[1:])),
    ]
    assert len({other.fingerprint for other in others}) == len(others)
    assert replace(spec, classes=10).fingerprint == spec.fingerprint


# Tables and records of before hold these: a space that changes needs a new name.
@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("rnas-cl-xs", "4e88280a06f88c2f"),
        ("rnas-cl-s3", "f6d4318dc453d8b1"),
        ("rnas-cl-s5", "1e2cb87205017e7e"),
        ("rnas-cl-s7", "b1cb3575c106805d"),
        ("rnas-cl-m", "9af058fc478d501f"),
        ("rnas-cl-l", "1dff3d1e2a530e76"),
        ("rnas-cl-imagenet", "4f48150344e7b348"),
    ],
)
def test_a_space_is_what_it_was(name: str, fingerprint: str) -> None:
    assert CHANNEL_SPACES[name].fingerprint == fingerprint


def test_a_description_of_before_is_the_same_space() -> None:
    spec = CHANNEL_SPACES["rnas-cl-xs"]
    plain = msgspec.to_builtins(spec)
    del plain["head"]
    for stage in plain["stages"]:
        del stage["expansion"]
    assert spec_from_plain(plain, source="test") == spec


def test_a_genotype_of_before_is_still_read() -> None:
    genotype = Genotype(space="rnas-cl-xs", widths=(16, 8))
    before = '{"space": "rnas-cl-xs", "widths": [16, 8]}'
    assert decode_json(before, Genotype, source="test") == genotype
    assert decode_json(encode_json(genotype), Genotype, source="test") == genotype


def test_a_space_is_fitted_to_images_and_classes() -> None:
    spec = space_spec("rnas-cl-s3", image_shape=(1, 28, 28), classes=7)
    assert (spec.image_shape, spec.classes) == ((1, 28, 28), 7)
    assert spec == replace(CHANNEL_SPACES["rnas-cl-s3"], image_shape=(1, 28, 28), classes=7)
    assert space_spec("rnas-cl-s3") is CHANNEL_SPACES["rnas-cl-s3"]


def test_an_unknown_space_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown space `rnas-cl-s77`") as caught:
        space_spec("rnas-cl-s77")
    assert caught.value.hint.startswith("did you mean `rnas-cl-s7`? known: rnas-cl-xs")
    with pytest.raises(ConfigError) as caught:
        space_spec("?")
    assert caught.value.hint.startswith("known: rnas-cl-xs")
    assert caught.value.hint.endswith("darts, darts-8, darts-xs, pc-darts")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"blocks": 0}, "at least one block"),
        ({"stride": 3}, "stride is 1 or 2"),
        ({"stride": 0}, "stride is 1 or 2"),
        ({"widths": ()}, "widths of at least 1"),
        ({"widths": (8, 0)}, "widths of at least 1"),
        ({"widths": (4, 8)}, "from the widest down, each once"),
        ({"widths": (8, 8)}, "from the widest down, each once"),
        ({"expansion": 0}, "expansion is at least 1, not 0"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(StageSpec(blocks=1, widths=(8, 4)), **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_shape": (0, 16, 16)}, "image_shape is"),
        ({"classes": 1}, "at least two classes"),
        ({"stages": ()}, "at least one stage"),
        ({"kernel": 4}, "odd, not 4"),
        ({"kernel": 0}, "odd, not 0"),
        ({"stem": 0}, "at least 1"),
        ({"expansion": 0}, "at least 1"),
        ({"stem_stride": 3}, "1 or 2"),
        ({"head": -1}, "0 for none of its own, not -1"),
    ],
)
def test_a_space_that_cannot_be_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(CHANNEL_SPACES["rnas-cl-xs"], **changes)
