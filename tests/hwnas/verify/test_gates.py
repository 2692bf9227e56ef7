from __future__ import annotations

import math

import pytest

from hwnas.core.decoding import convert, decode_json, encode_json
from hwnas.core.errors import ConfigError, GateFailedError
from hwnas.verify.gates import Gate, Tolerances, at_least, at_most, require


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        (at_most("a", 0.5, 0.5, unit="", meaning=""), True),
        (at_most("a", 100 * (0.91 - 0.905), 0.5, unit="", meaning=""), True),
        (at_most("a", 0.51, 0.5, unit="", meaning=""), False),
        (at_least("a", 0.5, 0.5, unit="", meaning=""), True),
        (at_least("a", 0.49, 0.5, unit="", meaning=""), False),
        (at_most("a", None, 0.5, unit="", meaning=""), False),
        (at_least("a", None, 0.0, unit="", meaning=""), False),
        (at_most("a", math.nan, 0.5, unit="", meaning=""), False),
        (at_least("a", math.inf, 0.5, unit="", meaning=""), False),
    ],
)
def test_a_gate_is_judged(gate: Gate, passed: bool) -> None:
    assert gate.passed is passed
    assert decode_json(encode_json(gate), Gate, source="test") == gate


def test_failed_gates_are_named_with_figure_tolerance_and_meaning() -> None:
    gates = [
        at_most("max_abs_diff", 0.31, 1e-3, unit="logits", meaning="it computes other numbers"),
        at_least("agreement", 0.999, 0.995, unit="", meaning="it decides otherwise"),
        at_most("relative_l2", None, 1e-4, unit="", meaning="it computes other numbers"),
    ]
    with pytest.raises(GateFailedError) as caught:
        require(gates)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "failed 2 of 3 gates" in message
    assert "max_abs_diff: 0.31, allowed at most 0.001 logits" in message
    assert "relative_l2: not computable" in message
    assert "it computes other numbers" in message
    assert "agreement" not in message


def test_passed_gates_are_no_error() -> None:
    require([at_most("a", 0.0, 1.0, unit="", meaning="")])
    require([])


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"max_abs_diff": -1.0}, "must be 0 or more"),
        ({"clean_drop_points": math.nan}, "must be 0 or more"),
        ({"agreement": 99.5}, r"did you mean 0\.995"),
        ({"agrement": 0.9}, "did you mean `agreement`"),
        ({"agreement": "high"}, "float"),
    ],
)
def test_bad_tolerances_are_refused(document: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        convert(document, Tolerances, source="config.toml")
