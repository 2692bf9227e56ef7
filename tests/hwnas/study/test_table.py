from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hwnas.core.decoding import convert, decode_json, encode_json
from hwnas.core.errors import DataError
from hwnas.robustness.criteria import black_box_check, iterative_check
from hwnas.study.records import StudyTable
from hwnas.study.table import main_figure, markdown_from_table, notes, study_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas.study.records import ArmSeed

    Results = Callable[..., list[ArmSeed]]
    Tables = Callable[..., StudyTable]


def test_rows_are_in_the_order_of_the_arms_whatever_that_of_the_results(
    made_up: Results, table_of_arms: Tables
) -> None:
    table = table_of_arms()
    again = study_table(
        made_up()[::-1],
        arms={row.arm: row.description for row in table.rows},
        figures=table.figures,
        baseline="base",
    )
    assert again == table
    assert [row.arm for row in table.rows] == ["base", "better", "worse"]


def test_the_baseline_is_compared_with_all_but_itself(table_of_arms: Tables) -> None:
    base, better, worse = table_of_arms().rows
    assert all(cell.difference is None for cell in base.cells)
    cell = better.cell("pixel.worst")
    assert cell is not None
    assert cell.difference is not None
    # Spreads of the two arms are -0.01, 0, 0.02 and the double of it.
    assert cell.difference.mean == pytest.approx(0.1 + 0.01 / 3)
    assert cell.difference.above == 3
    lower = worse.cell("pixel.worst")
    assert lower is not None
    assert lower.difference is not None
    assert lower.difference.below == 3


def test_the_front_is_of_the_main_figure_over_latency(table_of_arms: Tables) -> None:
    assert table_of_arms().main == "pixel.worst"
    assert table_of_arms().front == ("base", "better")
    assert table_of_arms(measured=False).front == ()


def test_shares_have_an_interval_over_images_and_harmonic_means_have_none(
    table_of_arms: Tables,
) -> None:
    row = table_of_arms().rows[0]
    clean, harmonic, params = (row.cell(name) for name in ("clean", "pixel.hrs", "params"))
    assert clean is not None
    assert harmonic is not None
    assert params is not None
    assert clean.low_images is not None
    assert clean.low_images < clean.over_seeds.mean
    assert harmonic.low_images is None
    assert params.low_images is None


def test_an_interval_of_a_share_ends_where_shares_do(made_up: Results) -> None:
    results = [
        replace(
            result, figures={"clean": 0.9 + 0.09 * result.seed, "measured_ms": 1.0 * result.seed}
        )
        for result in made_up((0, 1))
    ]
    arms = {"base": "", "better": "", "worse": ""}
    row = study_table(results, arms=arms, figures=("clean", "measured_ms")).rows[0]
    clean, latency = row.cell("clean"), row.cell("measured_ms")
    assert clean is not None
    assert latency is not None
    assert clean.over_seeds.high == 1.0
    assert latency.over_seeds.high is not None
    assert latency.over_seeds.high > 5.0


def test_an_arm_without_results_and_a_figure_that_is_lacking_are_left_out(
    made_up: Results,
) -> None:
    table = study_table(
        [result for result in made_up(measured=False) if result.arm != "better"],
        arms={"base": "", "better": "", "worse": ""},
        figures=("clean", "measured_ms"),
        baseline="better",
    )
    assert [row.arm for row in table.rows] == ["base", "worse"]
    assert table.rows[0].cell("measured_ms") is None
    assert "–" in markdown_from_table(table)  # noqa: RUF001
    assert all(cell.difference is None for row in table.rows for cell in row.cells)


def test_markdown_is_a_table_with_as_many_cells_in_each_line(table_of_arms: Tables) -> None:
    lines = markdown_from_table(table_of_arms()).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert len(rows) == 2 + 3
    assert "80.3 (76.5 to 84.1)" in rows[2]
    assert "323" in rows[2]
    assert rows[2].startswith("| **base** | 3 |")
    assert rows[4].startswith("| worse | 3 |")
    assert "+10.3" in rows[3]


def test_what_never_varies_has_no_interval_in_markdown(table_of_arms: Tables) -> None:
    rows = markdown_from_table(table_of_arms()).splitlines()
    assert "323 k |".replace(" ", chr(160), 1) in rows[2]
    assert "0.5 |" in rows[2]


def test_one_seed_is_said_to_tell_nothing_of_others(table_of_arms: Tables) -> None:
    said = " ".join(notes(table_of_arms((1,))))
    assert "over 1 seed and" in said
    assert "of one seed there is none" in said
    assert "same 500 test images" in said


def test_failed_checks_are_named_with_what_they_mean(
    made_up: Results, table_of_arms: Tables
) -> None:
    flags = np.ones(500, dtype=np.bool_)
    fails, passes = iterative_check({"pgd": 0.5}, 0.3, 2.0), black_box_check(flags, flags, 2.0)
    results = [
        replace(result, checks={"pixel": (fails if result.arm == "worse" else passes, passes)})
        for result in made_up((0, 1))
    ]
    arms = {"base": "", "better": "", "worse": ""}
    table = study_table(results, arms=arms, figures=("clean",))
    assert table.checks == 12
    assert [(each.arm, each.seed, each.threat) for each in table.failed] == [
        ("worse", 0, "pixel"), ("worse", 1, "pixel"),
    ]  # fmt: skip
    text = markdown_from_table(table)
    assert "12 times, and 2 of these checks failed" in text
    assert "- worse, seed 1, threat pixel: iterative_beats_single_step: 20, allowed" in text
    assert "one step of FGSM breaks more than all steps of pgd" in text
    assert decode_json(encode_json(table), StudyTable, source="table") == table
    # Of results that were made before there were checks, nothing is said.
    assert "checks" not in markdown_from_table(table_of_arms())


def test_results_that_do_not_belong_together_are_refused(made_up: Results) -> None:
    arms = {"base": "", "better": "", "worse": ""}
    with pytest.raises(DataError, match="two results for seed 0"):
        study_table([*made_up((0,)), made_up((0,))[0]], arms=arms, figures=("clean",))
    both = [*made_up((0,)), *made_up((1,), images=20)]
    with pytest.raises(DataError, match="different numbers of images"):
        study_table(both, arms=arms, figures=("clean",))
    with pytest.raises(DataError, match="or none"):
        study_table([], arms=arms, figures=("clean",))


def test_the_main_figure_is_the_first_under_attack() -> None:
    assert main_figure(["clean", "params"]) == "clean"
    assert main_figure(["params", "macs"]) == "params"
    assert main_figure(["clean", "b.pgd", "a.worst"]) == "b.pgd"


def test_a_table_comes_back_from_json_as_it_was(table_of_arms: Tables) -> None:
    table = table_of_arms()
    assert decode_json(encode_json(table), StudyTable, source="table") == table
    assert convert({"figures": [], "baseline": "", "main": "", "images": 1, "rows": [],
                    "front": []}, StudyTable, source="table").rows == ()  # fmt: skip
