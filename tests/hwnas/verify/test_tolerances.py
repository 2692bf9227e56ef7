from __future__ import annotations

import dataclasses

import pytest

from hwnas.core.errors import ConfigError
from hwnas.verify.tolerances import Tolerances

SHARES_TO_REACH = ("agreement", "adversarial_agreement", "distinct_logits")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_lower_precision_is_allowed_no_less(precision: str) -> None:
    single, other = Tolerances(), Tolerances.for_precision(precision)
    for field in dataclasses.fields(Tolerances):
        before, after = getattr(single, field.name), getattr(other, field.name)
        assert after <= before if field.name in SHARES_TO_REACH else after >= before
    # What attacks may find beyond replay, and what blinds them, is no matter of rounding.
    for name in ("adaptive_gap_points", "square_gap_points", "tie_rate", "distinct_logits"):
        assert getattr(other, name) == getattr(single, name)


def test_single_precision_has_the_defaults() -> None:
    assert Tolerances.for_precision("fp32") == Tolerances()


def test_what_was_set_holds_in_every_precision() -> None:
    own = Tolerances(agreement=0.5, latency_over_budget=0.0)
    at_int8 = own.at_precision("int8")
    assert (at_int8.agreement, at_int8.latency_over_budget) == (0.5, 0.0)
    assert at_int8.relative_l2 == Tolerances.for_precision("int8").relative_l2
    assert own.at_precision("fp32") == own


@pytest.mark.parametrize(("name", "says"), [("int-8", "did you mean `int8`"), ("", "known: fp32")])
def test_an_unknown_precision_is_refused(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Tolerances.for_precision(name)
