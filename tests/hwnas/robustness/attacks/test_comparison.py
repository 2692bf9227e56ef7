"""Attacks beside each other: which comparisons are made, and what they find."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from hwnas.core.decoding import decode_json, encode_json
from hwnas.robustness.attacks import registry
from hwnas.robustness.attacks.comparison import attack_comparisons
from hwnas.robustness.attacks.table import AttackTable, run_attacks
from hwnas.robustness.threat import ThreatModel
from tests.hwnas.robustness.attacks.conftest import EPS, Digits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hwnas.robustness.attacks.table import AttackOutcome

N = 100
THREAT = ThreatModel(eps=EPS["linf"], steps=10)
ITERATIVE, BLACK_BOX = "iterative_beats_single_step", "black_box_gap"


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_STEPS", 10)
    monkeypatch.setattr(registry, "_CLASSES", 2)


def broken(first: int, last: int) -> NDArray[np.bool_]:
    """Return flags of which those from one sample up to another are set."""
    flags = np.zeros(N, dtype=np.bool_)
    flags[first:last] = True
    return flags


def attacked(digits: Digits, *attacks: str, threat: ThreatModel = THREAT) -> AttackOutcome:
    return run_attacks(
        digits.model, digits.images, digits.labels, threat, attacks=attacks, seed=0, batch=64,
        queries=60,
    )  # fmt: skip


def test_steps_that_are_worth_less_than_one_are_found_and_named() -> None:
    flags = {"fgsm": broken(0, 40), "pgd": broken(0, 60), "mi-fgsm": broken(0, 30)}
    (check,) = attack_comparisons(flags, {})
    assert (check.name, check.passed) == (ITERATIVE, False)
    assert check.figure == pytest.approx(10)
    assert "all steps of mi-fgsm" in check.meaning
    assert attack_comparisons(flags | {"mi-fgsm": broken(0, 40)}, {})[0].passed


def test_a_black_box_is_held_against_all_gradients_together() -> None:
    flags = {"pgd": broken(0, 50), "cw": broken(40, 60), "square": broken(30, 65)}
    (check,) = attack_comparisons(flags, {})
    assert (check.name, check.passed) == (BLACK_BOX, False)
    assert check.figure == pytest.approx(5)
    assert attack_comparisons(flags | {"square": broken(0, 62)}, {})[0].passed


def test_an_ensemble_counts_by_its_parts() -> None:
    flags = {"fgsm": broken(0, 40), "autoattack": broken(0, 60)}
    parts = {
        "apgd-ce": broken(0, 30),
        "apgd-t": broken(30, 50),
        "fab-t": broken(0, 0),
        "square": broken(50, 60),
    }
    iterative, black_box = attack_comparisons(flags, parts)
    assert iterative.figure == pytest.approx(10)
    assert "apgd-ce" in iterative.meaning
    assert black_box.figure == pytest.approx(10)
    assert not black_box.passed
    # Square by itself says of all samples what it breaks, not of those that were left.
    (_, black_box) = attack_comparisons(flags | {"square": broken(0, 65)}, parts)
    assert black_box.figure == pytest.approx(15)


@pytest.mark.parametrize("attacks", [("fgsm",), ("pgd", "cw"), ("square",), ("fgsm", "cw")])
def test_attacks_that_allow_no_comparison_have_none(attacks: tuple[str, ...]) -> None:
    assert attack_comparisons({name: broken(0, 10) for name in attacks}, {}) == ()


@pytest.mark.usefixtures("few_steps")
def test_every_table_holds_them(digits: Digits) -> None:
    table = attacked(digits, "fgsm", "autoattack").table
    assert [check.name for check in table.comparisons] == [ITERATIVE, BLACK_BOX]
    assert all(check.passed for check in table.comparisons)
    # The parts are the same attacks as those by themselves.
    alone = attacked(digits, "fgsm", "apgd-ce", "apgd-t", "fab-t", "square").table
    assert alone.comparisons == table.comparisons
    assert attacked(digits, "fgsm", "pgd", threat=replace(THREAT, eps=0.0)).table.comparisons == ()


@pytest.mark.usefixtures("few_steps")
def test_parts_that_are_given_nothing_break_nothing(digits: Digits) -> None:
    table = attacked(digits, "autoattack", threat=replace(THREAT, eps=0.5)).table
    assert table.worst_case.value == 0
    (check,) = table.comparisons
    assert (check.name, check.figure) == (BLACK_BOX, 0)


def test_a_table_of_before_is_still_read(digits: Digits) -> None:
    table = attacked(digits, "fgsm", "pgd").table
    assert len(table.comparisons) == 1
    document = msgspec.json.decode(encode_json(table))
    del document["comparisons"]
    old = decode_json(msgspec.json.encode(document), AttackTable, source="test")
    assert old == replace(table, comparisons=())
