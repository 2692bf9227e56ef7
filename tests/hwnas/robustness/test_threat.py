from __future__ import annotations

import math

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwnas.core.decoding import convert, decode_json, encode_json
from hwnas.core.errors import ConfigError, DataError
from hwnas.robustness.threat import ThreatModel, check_images, parse_eps


@pytest.mark.parametrize(
    ("written", "pixels"),
    [(0.03, 0.03), ("0.03", 0.03), ("8/255", 8 / 255), (" 4 / 255 ", 4 / 255), (0, 0.0), ("0", 0)],
)
def test_eps_is_read_as_written(written: float | str, pixels: float) -> None:
    assert parse_eps(written) == pytest.approx(pixels)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (8, '"8/255"'),
        ("8", '"8/255"'),
        (1.0, '"1/255"'),
        (1000, '"8/255"'),
        (-0.1, "not a size"),
        (math.nan, "not a size"),
        (math.inf, "not a size"),
        ("eight", "not a number"),
        ("8/0", "not a number"),
        ("", "not a number"),
    ],
)
def test_eps_that_means_nothing_is_refused(written: float | str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_eps(written)


@given(numerator=st.integers(0, 254))
def test_a_fraction_is_its_quotient(numerator: int) -> None:
    assert parse_eps(f"{numerator}/255") == numerator / 255


def test_the_default_step_size_follows_eps_and_steps() -> None:
    threat = ThreatModel(eps="8/255", steps=10)
    assert threat.step_size_pixels == pytest.approx(2.5 * 8 / 255 / 10)
    assert ThreatModel(step_size="2/255").step_size_pixels == pytest.approx(2 / 255)


def test_an_l2_eps_may_exceed_1() -> None:
    threat = ThreatModel(norm="l2", eps=3, step_size="3/2")
    assert float(threat.eps_pixels) == 3
    assert threat.step_size_pixels == 1.5
    assert parse_eps("128/255", "l2") == 128 / 255


def test_a_threat_model_survives_its_round_trip() -> None:
    threat = ThreatModel(
        norm="l2", eps="4/255", steps=7, restarts=2, step_size=0.01, protocol="normalized"
    )
    assert decode_json(encode_json(threat), ThreatModel, source="test") == threat


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"eps": 8}, "8/255"),
        ({"steps": 0}, "at least 1 step"),
        ({"restarts": 0}, "at least 1 step and 1 restart"),
        ({"step_size": 0}, "moves nothing"),
        ({"norm": "l1"}, "l1"),
        ({"norm": "l2", "eps": 0}, "not a size"),
        ({"norm": "l2", "eps": "big"}, '"0.5"'),
        ({"protocol": "standard"}, "standard"),
        ({"epz": 0.1}, "did you mean `eps`"),
    ],
)
def test_a_bad_configuration_is_refused(document: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        convert(document, ThreatModel, source="config.toml")


def test_a_threat_model_error_is_one_that_msgspec_understands() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"eps": 8}, ThreatModel)


@pytest.mark.parametrize("pixel", [-0.1, 1.1, 255.0, math.nan])
def test_images_out_of_range_are_refused(pixel: float) -> None:
    images = torch.full((1, 3, 2, 2), 0.5)
    images[0, 0, 0, 0] = pixel
    with pytest.raises(DataError, match=r"pixels in \[0, 1\]"):
        check_images(images)


def test_no_images_are_in_range() -> None:
    check_images(torch.empty(0, 3, 2, 2))
