from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from hwnas.report.drawing import drawing_style, svg_file_from_picture
from hwnas.study.picture import arms_picture, differences_picture, front_picture, study_pictures
from hwnas.study.table import study_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas.study.records import ArmSeed, StudyTable

    Tables = Callable[..., StudyTable]


def test_every_picture_is_well_formed_and_names_every_arm(table_of_arms: Tables) -> None:
    with drawing_style():
        pictures = study_pictures(table_of_arms())
    assert [picture.name for picture in pictures] == ["arms", "differences", "front"]
    for picture in pictures:
        ET.fromstring(svg_file_from_picture(picture))
        compared = [] if picture.name == "differences" else ["base"]
        for arm in ["better", "worse", *compared]:
            assert arm in picture.svg
            assert arm in picture.alt


def test_equal_tables_give_equal_pictures(table_of_arms: Tables) -> None:
    with drawing_style():
        first, second = (study_pictures(table_of_arms()) for _ in range(2))
    assert first == second


def test_one_seed_is_drawn_without_an_interval(table_of_arms: Tables) -> None:
    with drawing_style():
        one, three = arms_picture(table_of_arms((0,))), arms_picture(table_of_arms())
    assert one is not None
    assert three is not None
    assert "1 seed" in one.svg
    assert one.svg.count("<path") < three.svg.count("<path")


def test_what_is_not_there_is_not_drawn(
    table_of_arms: Tables, made_up: Callable[..., list[ArmSeed]]
) -> None:
    arms = {"base": "", "better": "", "worse": ""}
    costs = study_table(made_up(), arms=arms, figures=("params", "measured_ms"))
    with drawing_style():
        assert front_picture(table_of_arms(measured=False)) is None
        assert differences_picture(study_table(made_up(), arms=arms, figures=("clean",))) is None
        assert study_pictures(costs) == ()


def test_the_alt_text_of_the_front_says_what_is_on_it(table_of_arms: Tables) -> None:
    with drawing_style():
        picture = front_picture(table_of_arms())
    assert picture is not None
    assert "On the front: base, better." in picture.alt
    assert "better 40.7 % at 0.90 ms" in picture.alt.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize("name", ["<b>", "a&b"])
def test_names_are_escaped(name: str, made_up: Callable[..., list[ArmSeed]]) -> None:
    results = [result for result in made_up() if result.arm == "base"]
    table = study_table(
        results, arms={"base": name}, figures=(f"{name}.worst", "clean"), baseline=""
    )
    with drawing_style():
        for picture in study_pictures(table):
            ET.fromstring(svg_file_from_picture(picture))


def test_names_of_points_in_one_place_are_beside_each_other(
    made_up: Callable[..., list[ArmSeed]],
) -> None:
    names = [f"arm-{index}" for index in range(8)]
    (result,) = (each for each in made_up(seeds=(0,)) if each.arm == "base")
    table = study_table(
        [replace(result, arm=name) for name in names],
        arms=dict.fromkeys(names, ""),
        figures=("pixel.worst", "measured_ms"),
    )
    with drawing_style():
        picture = front_picture(table)
    assert picture is not None
    texts = ET.fromstring(svg_file_from_picture(picture)).iter("{http://www.w3.org/2000/svg}text")
    spots = [
        (text.attrib["style"].split("text-anchor: ")[1][:3], float(text.attrib["y"]))
        for text in texts
        if text.text in names
    ]
    assert len(spots) == len(names)
    for index, (side, y) in enumerate(spots):
        assert all(side != other or abs(y - at) > 8 for other, at in spots[:index])
