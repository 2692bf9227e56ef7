from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hwnas.core.decoding import decode_json, encode_json
from hwnas.core.errors import ConfigError
from hwnas.space.channel.spec import CHANNEL_SPACES
from hwnas.space.mbconv.spec import MBCONV_SPACES, MBConvSpec, MBConvStage
from hwnas.space.spec import space_spec

SPEC = MBCONV_SPACES["mbconv-32"]


@pytest.mark.parametrize("name", MBCONV_SPACES)
def test_a_space_survives_its_round_trip(name: str) -> None:
    spec = MBCONV_SPACES[name]
    assert spec.name == name
    assert space_spec(name) is spec
    assert decode_json(encode_json(spec), MBConvSpec, source="test") == spec


def test_fingerprints_tell_spaces_apart() -> None:
    others = [
        *MBCONV_SPACES.values(),
        *CHANNEL_SPACES.values(),
        replace(SPEC, image_shape=(3, 48, 48)),
        replace(SPEC, classes=11),
        replace(SPEC, stages=SPEC.stages[:2]),
        replace(SPEC, kernels=(3, 5)),
        replace(SPEC, expansions=(3, 6)),
        replace(SPEC, se=(False,)),
    ]
    assert len({other.fingerprint for other in others}) == len(others)
    assert replace(SPEC, classes=10).fingerprint == SPEC.fingerprint


def test_a_space_is_fitted_to_images_and_classes() -> None:
    spec = space_spec("mbconv-32", image_shape=(1, 28, 28), classes=7)
    assert spec == replace(SPEC, image_shape=(1, 28, 28), classes=7)


def test_options_go_from_the_largest_down() -> None:
    assert list(replace(SPEC, kernels=(3, 5), expansions=(1, 6)).options) == [
        "k5-e6-se", "k5-e6", "k5-e1-se", "k5-e1", "k3-e6-se", "k3-e6", "k3-e1-se", "k3-e1",
    ]  # fmt: skip
    assert len(SPEC.options) == 18
    assert all(name == option.name for name, option in SPEC.options.items())


def test_only_the_first_block_of_a_stage_changes_the_shape_and_cannot_be_skipped() -> None:
    spec = replace(SPEC, stages=SPEC.stages[:2])
    blocks = [(*block.widths_in, *block.widths, block.stride) for block in spec.blocks]
    assert blocks == [(16, 24, 1), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 40, 1)]
    assert ["skip" in block.options for block in spec.blocks] == [False, True, False, True, True]
    assert all([*block.options][-1] == "skip" for block in spec.blocks if len(block.options) == 19)


def test_options_name_a_width_where_there_are_several() -> None:
    stages = (MBConvStage(blocks=1, widths=(24,)), MBConvStage(blocks=2, widths=(40, 32)))
    spec = replace(SPEC, stages=stages, kernels=(3, 5), expansions=(6,))
    first, second, third = spec.blocks
    assert [*first.options] == ["k5-e6-se", "k5-e6", "k3-e6-se", "k3-e6"]
    assert [*second.options] == [
        "k5-e6-se-w40", "k5-e6-se-w32", "k5-e6-w40", "k5-e6-w32",
        "k3-e6-se-w40", "k3-e6-se-w32", "k3-e6-w40", "k3-e6-w32",
    ]  # fmt: skip
    assert [*third.options] == [*second.options, "skip-w40", "skip-w32"]
    assert (third.widths_in, third.widths) == ((40, 32), (40, 32))
    for block in spec.blocks:
        for name, choice in block.options.items():
            assert choice.width in block.widths
            assert (choice.block is None) == name.startswith("skip")
            assert choice.block is None or name.startswith(choice.block.name)


@pytest.mark.parametrize("size", [32, 224])
def test_a_space_with_widths_is_the_one_without_and_narrower(size: int) -> None:
    plain, widths = MBCONV_SPACES[f"mbconv-{size}"], MBCONV_SPACES[f"mbconv-{size}-widths"]
    narrowed = tuple(replace(stage, widths=stage.widths[:1]) for stage in widths.stages)
    assert replace(widths, name=plain.name, stages=narrowed) == plain
    for stage in widths.stages:
        assert len(stage.widths) in (2, 3)
        assert all(width % 8 == 0 for width in stage.widths)


# Tables and records of before hold these: a space that changes needs a new name.
@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("mbconv-32", "6030d40636aca50c"),
        ("mbconv-224", "0048c02e73d18a20"),
        ("mbconv-32-widths", "96940b2d0247dc9e"),
        ("mbconv-224-widths", "6e4726a32d8a1006"),
    ],
)
def test_a_space_is_what_it_was(name: str, fingerprint: str) -> None:
    assert MBCONV_SPACES[name].fingerprint == fingerprint


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
    ],
)
def test_a_stage_that_cannot_be_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(MBConvStage(blocks=1, widths=(8,)), **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_shape": (0, 16, 16)}, "image_shape is"),
        ({"classes": 1}, "at least two classes"),
        ({"stages": ()}, "at least one stage"),
        ({"stem": 0}, "stem .0. is at least 1"),
        ({"stem_stride": 3}, "1 or 2"),
        ({"kernels": ()}, "kernels are in ascending order"),
        ({"kernels": (5, 3)}, "kernels are in ascending order, each once"),
        ({"kernels": (3, 4)}, "a kernel's side is odd"),
        ({"kernels": (-1, 3)}, "a kernel's side is odd"),
        ({"expansions": (1, 1)}, "expansions are in ascending order, each once"),
        ({"expansions": (0, 3)}, "an expansion is at least 1"),
        ({"se": ()}, "se are in ascending order"),
        ({"se": (True, False)}, "se are in ascending order"),
    ],
)
def test_a_space_that_cannot_be_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(SPEC, **changes)
