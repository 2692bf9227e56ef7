from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from hwnas.core.decoding import decode_json, encode_json
from hwnas.core.errors import ConfigError
from hwnas.space.cells.spec import CELL_SPACES, CellSpec
from hwnas.space.channel.spec import CHANNEL_SPACES
from hwnas.space.mbconv.spec import MBCONV_SPACES
from hwnas.space.spec import space_spec, spec_from_plain

SPEC = CELL_SPACES["darts-8"]


@pytest.mark.parametrize("name", CELL_SPACES)
def test_a_space_survives_its_round_trip(name: str) -> None:
    spec = CELL_SPACES[name]
    assert spec.name == name
    assert space_spec(name) is spec
    assert decode_json(encode_json(spec), CellSpec, source="test") == spec
    assert spec_from_plain(msgspec.to_builtins(spec), source="test") == spec


def test_fingerprints_tell_spaces_apart() -> None:
    others = [
        *CELL_SPACES.values(),
        *MBCONV_SPACES.values(),
        *CHANNEL_SPACES.values(),
        replace(SPEC, image_shape=(3, 48, 48)),
        replace(SPEC, classes=11),
        replace(SPEC, cells=9),
        replace(SPEC, channels=20),
        replace(SPEC, nodes=3),
        replace(SPEC, operations=SPEC.operations[1:]),
        replace(SPEC, partial=2),
    ]
    assert len({other.fingerprint for other in others}) == len(others)
    assert replace(SPEC, classes=10).fingerprint == SPEC.fingerprint


def test_a_space_is_fitted_to_images_and_classes() -> None:
    spec = space_spec("darts-xs", image_shape=(1, 28, 28), classes=7)
    assert spec == replace(CELL_SPACES["darts-xs"], image_shape=(1, 28, 28), classes=7)


def test_the_published_network_halves_and_doubles_at_each_third() -> None:
    places = CELL_SPACES["darts"].places
    assert [index for index, place in enumerate(places) if place.is_reduction] == [6, 13]
    assert [place.channels for place in places] == [36] * 6 + [72] * 7 + [144] * 7
    assert [place.size_out for place in places] == [(32, 32)] * 6 + [(16, 16)] * 7 + [(8, 8)] * 7
    # Both inputs of the first cell are the stem; behind a reduction one is twice as large.
    assert places[0].sources == ((108, 32, 32), (108, 32, 32))
    assert places[7].sources == ((144, 32, 32), (288, 16, 16))
    kinds = [[key.kind for key in place.preprocess_keys()] for place in places]
    assert [index for index, each in enumerate(kinds) if "factorized" in each] == [7, 14]
    assert CELL_SPACES["darts"].features_shape == (4 * 144, 8, 8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cells": 2}, "needs at least 3, one normal and two reductions, not 2"),
        ({"nodes": 0}, r"nodes \(0\) and channels \(16\) are at least 1"),
        ({"channels": 0}, r"nodes \(4\) and channels \(0\) are at least 1"),
        ({"partial": 3}, r"partial \(3\) is at least 1 and divides the 16 channels"),
        ({"partial": 0}, r"partial \(0\) is at least 1"),
        ({"operations": ("none",)}, "at least one operation other than `none`"),
        ({"operations": ()}, "at least one operation other than `none`"),
        ({"operations": ("sep3", "skip")}, "operations are in their order, each once: sep3, skip"),
        ({"operations": ("skip", "skip")}, "operations are in their order, each once"),
        ({"operations": ("skip", "sep7")}, "unknown operation `sep7`"),
        ({"image_shape": (3, 0, 32)}, "image_shape is"),
        ({"classes": 1}, "at least two classes"),
    ],
)
def test_a_space_that_no_network_is_of_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(SPEC, **changes)


def test_an_unknown_operation_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        replace(SPEC, operations=("skip", "sep"))
    assert caught.value.hint.startswith("did you mean `sep")
    assert "dil5" in caught.value.hint
