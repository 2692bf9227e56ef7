"""The verdict and the picture of `hwnas attack`, made from a record by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from matplotlib.axes import Axes

from hwnas.report.attack_page import page_from_record, verdict
from hwnas.report.attack_pictures import attack_picture
from hwnas.report.drawing import drawing_style
from hwnas.robustness.attack_records import (
    CLEAN,
    WORST_CASE,
    AttackLine,
    AttackRecord,
    CheckLine,
)
from hwnas.robustness.attacks.registry import ATTACKS
from hwnas.robustness.criteria import Check
from hwnas.robustness.evaluate import Accuracy

if TYPE_CHECKING:
    from hwnas.robustness.threat import Protocol


def line(attack: str, correct: int, eps: str, protocol: Protocol) -> AttackLine:
    accuracy = Accuracy.from_counts(correct, 100)
    return AttackLine(
        attack=attack, on="model", accuracy=accuracy.value, low=accuracy.low, high=accuracy.high,
        n=100, norm="linf", eps=eps, protocol=protocol, seed=0,
    )  # fmt: skip


def record(
    *attacks: str,
    bounds: tuple[str, ...] = ("8/255",),
    protocol: Protocol = "pixel",
    passed: bool = True,
) -> AttackRecord:
    check = Check(name="more_steps", passed=passed, figure=9.0, relation="at most", limit=2.0,
                  unit="points", meaning="the attack does not converge")  # fmt: skip
    return AttackRecord(
        model="net", kind="module", access="white-box", reason="", parity=None, data="digits",
        classes=10, majority=0.1,
        lines=tuple(
            line(name, correct, eps, protocol)
            for eps in bounds
            for name, correct in ((CLEAN, 90), *((each, 40) for each in attacks), (WORST_CASE, 30))
        ),
        checks=(CheckLine.from_check(check, on="model"),),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "30.0 % are left at eps 8/255; all 1 checks passed"),
        (
            {"protocol": "normalized"},
            "30.0 % are left at eps 8/255 of the normalized protocol; all 1 checks passed",
        ),
        ({"passed": False}, "30.0 % are left at eps 8/255, but 1 of 1 checks failed"),
    ],
)
def test_the_verdict_names_eps_protocol_and_checks(settings: dict[str, object], said: str) -> None:
    found = verdict(record("pgd", **settings))  # type: ignore[arg-type]
    assert found.replace("\N{NO-BREAK SPACE}", " ") == said


def test_a_page_of_the_normalized_protocol_says_so_in_table_and_picture() -> None:
    found = record("pgd", protocol="normalized")
    with drawing_style():
        picture = attack_picture(found)
    page = page_from_record(found, picture, "hwnas.api.attack()")
    assert "protocol normalized" in page
    assert "normalized protocol" in picture.caption


def test_no_two_curves_look_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[object, object]] = []
    plot = Axes.plot

    def noted(axes: Axes, *args: object, **style: object) -> object:
        drawn.append((style["color"], style["marker"]))
        return plot(axes, *args, **style)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "plot", noted)
    with drawing_style():
        attack_picture(record(*ATTACKS, bounds=("4/255", "8/255")))
    assert len(drawn) == len(set(drawn)) == len(ATTACKS) + 1
