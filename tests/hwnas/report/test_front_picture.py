"""The picture of a front, on its page and as a file of its own."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from hwnas.report.drawing import drawing_style, svg_file_from_picture
from hwnas.report.front_picture import front_picture, mean_error_percent
from hwnas.search.budget import Budgets
from hwnas.search.front_records import FrontPoint, FrontRecord
from hwnas.space.genotype import Genotype
from hwnas_profilers.records import Statistics


def point(latency_ms: float, score: float, *, measured_ms: float | None = None) -> FrontPoint:
    statistics = None
    if measured_ms is not None:
        us = measured_ms * 1e3
        statistics = Statistics(
            n=20, median_us=us, low_us=0.99 * us, high_us=1.01 * us, min_us=us, p10_us=us, p90_us=us
        )
    return FrontPoint(
        genotype=Genotype(space="small", widths=(8,)),
        score=score,
        predicted_ms=latency_ms,
        macs=1,
        params=1,
        memory_kib=None,
        weights_kib=None,
        uncalibrated_energy_mj=None,
        measured=statistics,
    )


def front(*points: FrontPoint, complete: bool = True) -> FrontRecord:
    return FrontRecord(
        space="small",
        target="onnxruntime-cpu",
        device="a <device> & more",
        threads=1,
        batch=1,
        budgets=Budgets(latency_ms=9.0),
        networks=len(points),
        complete=complete,
        points=points,
        estimated=None,
        table_sha256="",
        search_sha256="",
    )


MANY = front(*(point(1 + 0.1 * i, -20 + i) for i in range(20)))


def test_both_ends_and_the_number_of_networks_are_said_and_drawn() -> None:
    with drawing_style():
        picture = front_picture(MANY)
    for text in (picture.caption, picture.alt):
        assert "1.00\xa0ms" in text
        assert "2.90\xa0ms" in text
        assert "20 networks" in text
    assert "1.00\xa0ms" in picture.svg
    assert "measured" not in picture.alt


def test_what_was_measured_is_beside_what_was_predicted() -> None:
    measured = front(point(1, -3), point(2, -2, measured_ms=2.2), point(4, -1, measured_ms=4.0))
    with drawing_style():
        picture = front_picture(measured)
    error = mean_error_percent(measured.points)
    assert error == pytest.approx(100 * (1 - 2 / 2.2) / 2)
    assert "Of 2 that were measured, predictions are off by 4.5\xa0%" in picture.caption
    assert "2 diamonds show measured latencies" in picture.alt
    assert mean_error_percent(MANY.points) is None


def test_a_front_of_some_points_does_not_pose_as_the_whole() -> None:
    with drawing_style():
        some, whole = front_picture(replace(MANY, complete=False)), front_picture(MANY)
        one = front_picture(front(point(0.5, -1.0)))
    assert "others between" in some.caption
    assert "others between" not in whole.caption
    assert some.svg.count("<path") < whole.svg.count("<path")  # no line through what is not known
    assert "500.0\xa0\u00b5s" in one.caption


def test_the_file_stands_alone_and_is_the_same_each_time() -> None:
    with drawing_style():
        data = svg_file_from_picture(front_picture(MANY))
        assert data == svg_file_from_picture(front_picture(MANY))
    root = ElementTree.fromstring(data)  # well-formed
    assert root.attrib["role"] == "img"
    text = data.decode()
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert used
    assert used <= set(re.findall(r"(--\w+):", text))  # every color has a value
