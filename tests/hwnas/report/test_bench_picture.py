"""The picture of a race: a panel for each size of batch, each bar with its figures."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from hwnas.deploy.race import Lane
from hwnas.report.bench_picture import bench_picture, bench_svg
from hwnas.report.drawing import drawing_style
from hwnas_profilers.records import Statistics


def lane(name: str, batch: int, median_us: float, kind: str = "rival") -> Lane:
    return Lane(
        batch=batch,
        name=name,
        kind=kind,
        precision="fp32",
        threads=1,
        ready_s=0.1,
        relative_l2=0.0,
        latency=Statistics(
            n=60,
            median_us=median_us,
            low_us=0.9 * median_us,
            high_us=1.1 * median_us,
            min_us=0.8 * median_us,
            p10_us=0.85 * median_us,
            p90_us=50 * median_us,  # a busy machine: the bars must be seen all the same
        ),
        images_per_s=batch / median_us * 1e6,
        samples_us=(),
    )


LANES = [
    lane("onnxruntime-cpu", 1, 100.0, "engine"),
    lane("torch eager", 1, 650.0),
    lane("onnxruntime-cpu", 8, 800.0, "engine"),
    lane("torch eager", 8, 4_000.0),
]


def texts(svg: bytes) -> list[str]:
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return [(element.text or "").replace("\xa0", " ") for element in found]


def test_each_batch_has_a_panel_and_each_bar_its_figures() -> None:
    shown = texts(bench_svg(LANES, "A <processor> & more"))
    assert "Latency of a call on A <processor> & more" in shown
    assert [text for text in shown if "per call" in text] == [
        "1 image per call, µs",
        "8 images per call, ms",
    ]
    figures = [text.replace("\u202f", "") for text in shown if "/s" in text]
    assert figures == [
        "100.0 µs, 10000/s, 6.5×",  # noqa: RUF001 - as it is written
        "650.0 µs, 1538/s, 1×",  # noqa: RUF001
        "0.80 ms, 10000/s, 5×",  # noqa: RUF001
        "4.00 ms, 2000/s, 1×",  # noqa: RUF001
    ]


def test_without_torch_there_are_no_ratios() -> None:
    shown = texts(bench_svg([LANES[0]], "cpu"))
    assert [text for text in shown if "/s" in text and "×" in text] == []  # noqa: RUF001


def test_equal_races_give_equal_pictures_that_say_what_they_show() -> None:
    with drawing_style():
        first, second = (bench_picture(LANES, "cpu") for _ in range(2))
    assert first == second
    assert "onnxruntime-cpu, batch 8" in first.alt
    assert "n at least 60" in first.caption


@pytest.mark.parametrize("count", [1, 9])
def test_any_number_of_batches_can_be_drawn(count: int) -> None:
    lanes = [lane("torch eager", batch, 10.0 * batch) for batch in range(1, count + 1)]
    assert len([text for text in texts(bench_svg(lanes, "cpu")) if "per call" in text]) == count
