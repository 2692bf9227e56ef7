"""Whether a plan is one for a place, and that it comes with what it is checked by."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from hwnas.core.artifacts import sha256_of
from hwnas.core.environment import this_device
from hwnas.core.errors import ConfigError
from hwnas.deploy.plans import PlanPlace, given_plan, plan_mismatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas.deploy.records import EngineCard

    NewCard = Callable[..., EngineCard]


RTX = PlanPlace(package="tensorrt_rtx", version="1.7", device="GPU A", compute_capability="8.9")
FULL = PlanPlace(package="tensorrt", version="10.3", device="GPU A", compute_capability="8.9")


@pytest.fixture
def card(new_card: NewCard) -> EngineCard:
    device = replace(this_device(), name="GPU A")
    return new_card(
        target="tensorrt-fp16",
        plan="engines/tensorrt-fp16/engine.plan",
        plan_sha256=sha256_of(b"plan"),
        packages={"tensorrt_rtx": "1.7"},
        compute_capabilities=("8.6", "8.9"),
        device=device,
    )


@pytest.mark.parametrize(
    ("changed", "place", "says"),
    [
        ({}, RTX, ""),
        ({"device": None}, RTX, ""),
        ({}, replace(RTX, device="GPU B"), ""),  # of the same capability: RTX takes it
        ({"packages": {"tensorrt": "10.3"}}, FULL, ""),
        ({"packages": {"tensorrt": "10.3"}}, replace(FULL, device="GPU B"), "built on GPU A"),
        ({}, replace(RTX, version="1.6"), "built by tensorrt_rtx 1.7; here is tensorrt_rtx 1.6"),
        ({}, FULL, "built by tensorrt_rtx 1.7; here is tensorrt 10.3"),
        ({"packages": {}}, RTX, "built by an unknown version"),
        ({}, replace(RTX, compute_capability="9.0"), "compute capability 8.6, 8.9; GPU A has 9.0"),
    ],
)
def test_why_a_plan_is_none_for_a_place(
    card: EngineCard, changed: dict[str, Any], place: PlanPlace, says: str
) -> None:
    found = plan_mismatch(replace(card, **changed), place)
    assert says in found
    assert bool(found) == bool(says)


def test_a_plan_comes_with_its_hash_and_its_devices(card: EngineCard) -> None:
    plan = given_plan(card, b"plan")
    assert plan.content == b"plan"
    assert plan.sha256 == card.plan_sha256
    assert plan.compute_capabilities == ("8.6", "8.9")
    with pytest.raises(ConfigError, match="SHA-256"):
        given_plan(replace(card, plan_sha256=""), b"plan")
