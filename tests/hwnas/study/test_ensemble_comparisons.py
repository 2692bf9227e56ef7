from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hwnas.report.drawing import drawing_style
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.study.ensemble_arms import lineup
from hwnas.study.ensemble_comparisons import (
    comparisons,
    comparisons_picture,
    markdown_from_comparisons,
    pairs,
)
from hwnas.study.ensemble_config import EnsembleConfig, MembersConfig
from hwnas.study.records import ArmSeed

if TYPE_CHECKING:
    from hwnas.study.ensemble_comparisons import Comparison

FIGURES = ("clean", "pixel.worst", "pixel.hrs")
MADE_UP = {
    # arm: clean, worst, latency; by seed
    "random-average": [(0.90, 0.40, 1.00), (0.92, 0.46, 1.02), (0.91, 0.41, 0.98)],
    "random-wider": [(0.88, 0.30, 1.00), (0.90, 0.40, 1.00), (0.90, 0.32, 1.00)],
    "genotype-average": [(0.90, 0.35, 0.80), (0.91, 0.45, 0.50), (0.92, 0.36, 0.80)],
}


def results(seeds: int = 3) -> list[ArmSeed]:
    return [
        ArmSeed(
            arm=arm,
            seed=seed,
            figures={
                "clean": clean,
                "pixel.worst": worst,
                "pixel.hrs": 2 * clean * worst / (clean + worst),
                "measured_ms": latency_ms,
            },
            images=500,
        )
        for arm, found in MADE_UP.items()
        for seed, (clean, worst, latency_ms) in enumerate(found[:seeds])
    ]


def compared(seeds: int = 3, tolerance: float = 0.1) -> tuple[Comparison, ...]:
    asked = [("random-average", "random-wider"), ("random-average", "genotype-average")]
    return comparisons(results(seeds), asked, FIGURES, tolerance=tolerance)


def test_every_ensemble_meets_its_wider_network_and_the_other_source() -> None:
    config = EnsembleConfig(
        seeds=(0,), members=MembersConfig(count=2, combinations=("average", "logits"))
    )
    found = lineup(config, space_from_spec(space_spec("rnas-cl-xs")))
    assert pairs(found) == [
        ("random-average", "random-wider"),
        ("random-logits", "random-wider"),
        ("genotype-average", "genotype-wider"),
        ("genotype-logits", "genotype-wider"),
        ("random-average", "genotype-average"),
        ("random-logits", "genotype-logits"),
    ]


def test_differences_are_paired_and_latencies_compared() -> None:
    wider, children = compared()
    worst = wider.differences["pixel.worst"]
    assert worst.mean == pytest.approx((0.10 + 0.06 + 0.09) / 3)
    assert worst.low is not None
    assert worst.low > 0  # all three seeds agree, though the arms overlap
    assert wider.latency_ratio == pytest.approx(1.0, abs=0.001)
    assert wider.farthest_ratio == pytest.approx(0.98)
    assert wider.comparable
    assert children.farthest_ratio == pytest.approx(1.02 / 0.50)
    assert not children.comparable


def test_the_tolerance_is_of_the_farthest_seed_either_way() -> None:
    assert not compared(tolerance=0.01)[0].comparable
    assert compared(tolerance=0.021)[0].comparable


def test_arms_without_a_common_seed_or_latency_are_left_out() -> None:
    alone = [each for each in results() if each.arm == "random-average"]
    assert not comparisons(alone, [("random-average", "random-wider")], FIGURES, tolerance=0.1)
    blind = results()
    for each in blind:
        del each.figures["measured_ms"]
    asked = [("random-average", "random-wider")]
    assert not comparisons(blind, asked, FIGURES, tolerance=0.1)


def test_picture_and_table_say_what_was_found() -> None:
    with drawing_style():
        picture = comparisons_picture(compared(), "pixel.worst", 0.1)
    assert picture is not None
    assert "+8.3" in picture.alt
    assert "random-wider" in picture.svg
    table = markdown_from_comparisons(compared(), FIGURES, 0.1)
    lines = table.splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert "| yes |" in lines[2]
    assert "| no |" in lines[3]
    assert "+8.3" in lines[2]


def test_one_seed_has_no_interval() -> None:
    (wider, _) = compared(seeds=1)
    assert wider.differences["clean"].low is None
    with drawing_style():
        assert comparisons_picture(compared(seeds=1), "pixel.worst", 0.1) is not None
    assert "(" not in markdown_from_comparisons([wider], FIGURES, 0.1).splitlines()[2]


def test_nothing_found_draws_nothing() -> None:
    with drawing_style():
        assert comparisons_picture((), "pixel.worst", 0.1) is None
