"""The picture of a breakdown: what it shows, and that both files can be read."""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hwnas.report.breakdown_picture import (
    MAX_ROWS,
    PIXELS,
    breakdown_picture,
    breakdown_png,
    breakdown_svg,
)
from hwnas.report.drawing import drawing_style
from hwnas_profilers.breakdown.measure import breakdown_from_profile
from hwnas_profilers.breakdown.values import NodeTiming, ProfiledModel

if TYPE_CHECKING:
    from hwnas_profilers.breakdown.values import Breakdown

SVG = "{http://www.w3.org/2000/svg}"


def made_up(times: dict[str, float], *, kinds: int = 2, name: str = "net.onnx") -> Breakdown:
    nodes = [
        NodeTiming(name=each, op_type="Op", kind=f"Kind{index % kinds}", profiled_us=time)
        for index, (each, time) in enumerate(times.items())
    ]
    total = sum(times.values())
    found = ProfiledModel(
        runtime="r 1",
        inputs="x",
        samples_us=np.full(50, total / 2),
        calls=9,
        call_us=1,
        nodes=nodes,
    )
    return breakdown_from_profile(found, model=name, target="onnxruntime-cpu", threads=1)


def texts(svg: bytes) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_bars_stand_in_the_order_of_execution_with_their_figures() -> None:
    shown = texts(breakdown_svg(made_up({"first": 60.0, "second": 30.0, "third": 110.0})))
    rows = [text for text in shown if "#" in text]
    assert [row.split()[0] for row in rows] == ["first", "second", "third"]
    # Shares of 60 : 30 : 110 of half the profile's 200 us.
    figures = [text.replace("\xa0", " ") for text in shown if text.endswith(")") and "." in text]
    assert figures == ["30.0 (30.0 %)", "15.0 (15.0 %)", "55.0 (55.0 %)"]


def test_the_title_says_the_whole_latency_and_the_legend_each_kind() -> None:
    shown = [
        text.replace("\xa0", " ") for text in texts(breakdown_svg(made_up({"a": 30.0, "b": 10.0})))
    ]
    assert any("net.onnx on onnxruntime-cpu: 20.0 µs" in text for text in shown)
    assert any("n = 50; 2 nodes" in text for text in shown)
    assert {"Kind0 (1): 75.0 %", "Kind1 (1): 25.0 %"} <= set(shown)


def test_many_nodes_are_the_slowest_and_the_rest() -> None:
    times = {f"node{index}": 1.0 + index for index in range(MAX_ROWS + 25)}
    shown = texts(breakdown_svg(made_up(times, kinds=9)))
    rows = [text for text in shown if "#" in text]
    assert len(rows) == MAX_ROWS
    assert not any(row.startswith("node24 ") for row in rows)
    assert rows[0].startswith("node25 ")
    assert "the other 25 nodes, each shorter" in shown
    legend = [text for text in shown if re.match(r"Kind\d \(|other kinds \(", text)]
    assert len(legend) == 6
    assert legend[-1].startswith("other kinds (")


def test_names_are_text_whatever_they_hold() -> None:
    wild = "/a<b>&$x_1^2$" + "very" * 20 + "/end"
    shown = texts(breakdown_svg(made_up({wild: 3.0, "b": 2.0}, name="$m$<&>.onnx")))
    (row,) = (text for text in shown if text.startswith("/a<b>&$x"))
    assert "/end" in row
    assert len(row) < 40
    assert any("$m$<&>.onnx" in text for text in shown)


def test_a_dark_screen_gets_other_colors() -> None:
    svg = breakdown_svg(made_up({"a": 3.0, "b": 2.0})).decode()
    (rules,) = re.findall(r"@media \(prefers-color-scheme: dark\) \{(.*)\}</style>", svg)
    replaced = set(re.findall(r'style\*="((?:fill|stroke): #[0-9a-f]{6})"', rules))
    # The text, the ground and the first bar are drawn in colors that a rule replaces.
    for used in ("fill: #20262e", "fill: #fefefe", "fill: #0072b2"):
        assert used in svg.replace(rules, "")
        assert used in replaced


def test_png_is_as_wide_as_promised() -> None:
    png = breakdown_png(made_up({"a": 3.0, "b": 2.0}))
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">I", png[16:20]) == (PIXELS,)


def test_equal_breakdowns_give_equal_files() -> None:
    found = made_up({"a": 3.0, "b": 2.0})
    assert breakdown_svg(found) == breakdown_svg(found)


@pytest.mark.parametrize("total_us", [0.4, 900.0, 5e6])
def test_any_latency_can_be_drawn(total_us: float) -> None:
    with drawing_style():
        picture = breakdown_picture(made_up({"a": total_us, "b": total_us / 1e4}))
    assert "a (Kind0) costs most" in picture.caption
    assert "var(--ink)" in picture.svg
    assert "2 nodes" in picture.alt
