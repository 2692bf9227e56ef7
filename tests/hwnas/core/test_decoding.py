from __future__ import annotations

import contextlib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.core.decoding import convert, decode_json, decode_toml, encode_json, read_json, read_text
from hwnas.core.errors import ConfigError, InputFileError


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    blocks: int = 1
    widths: tuple[int, ...] = (8, 4)
    gates: Literal["soft", "hard"] = "soft"

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ConfigError(f"a stage needs a block, not {self.blocks}", hint="ask for 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    ms: float | None = None
    places: dict[str, Stage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    seed: int = 0
    name: str = ""
    robust: bool = True
    first: Stage = field(default_factory=Stage)
    stages: tuple[Stage, ...] = ()
    listed: list[Stage] = field(default_factory=list)
    budget: Budget | None = None
    more: Stage | tuple[Stage, ...] | None = None
    pairs: tuple[tuple[Stage, float], ...] = ()


def toml(tmp_path: Path, text: str) -> Run:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return decode_toml(path, Run)


def test_a_file_is_decoded_with_defaults_for_what_it_leaves_out(tmp_path: Path) -> None:
    run = toml(tmp_path, 'seed = 3\n[[stages]]\nblocks = 2\n[budget.places.here]\ngates = "hard"')
    assert run == Run(
        seed=3, stages=(Stage(blocks=2),), budget=Budget(places={"here": Stage(gates="hard")})
    )


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("sed = 1", "unknown key `sed`", "did you mean `seed`?"),
        ("zzz = 1", "unknown key `zzz`", "known: seed, name"),
        ("[first]\nblock = 1", r"unknown key `block` in \[first\]", "did you mean `blocks`?"),
        ("[[stages]]\n[[stages]]\nblokcs = 1", r"`blokcs` in \[stages\[1\]\]", "`blocks`"),
        ("[[listed]]\nwidhts = [1]", r"`widhts` in \[listed\[0\]\]", "`widths`"),
        ("[budget]\nmss = 1", r"`mss` in \[budget\]", "`ms`"),
        ("[budget.places.x]\nblokcs = 1", r"`blokcs` in \[budget.places.x\]", "`blocks`"),
        ("[more]\nblokcs = 1", r"`blokcs` in \[more\]", "`blocks`"),
        ("[[more]]\nblokcs = 1", r"`blokcs` in \[more\[0\]\]", "`blocks`"),
        ("pairs = [[{blokcs = 1}, 1.0]]", r"`blokcs` in \[pairs\[0\]\[0\]\]", "`blocks`"),
        ("seed = 'a'", "at seed: Expected `int`, got `str`", ""),
        ("seed = 1.0", "at seed: Expected `int`, got `float`", ""),
        ("seed = true", "at seed: Expected `int`, got `bool`", ""),
        ("seed = 1979-05-27", "at seed: Expected `int`", ""),
        ("robust = 1", "at robust: Expected `bool`", ""),
        ("first = 1", "at first: Expected `object`, got `int`", ""),
        ("[first]\nwidths = [8, '4']", r"at first.widths\[1\]: Expected `int`", ""),
        ("[first.widths]\nx = 1", "at first.widths: Expected `array`", ""),
        ("[first]\ngates = 'sfot'", "at first.gates: Invalid enum value 'sfot'", "`soft`"),
        ("[first]\nblocks = 0", "at first: a stage needs a block, not 0", "ask for 1"),
        ("[[stages]]\nblocks = 0", r"at stages\[0\]: a stage needs a block", "ask for 1"),
        ("seed = ", "is not valid TOML", ""),
        ("seed = 1\nseed = 2", "is not valid TOML", ""),
        ("seed = " + "[" * 100_000, "is not valid TOML: nested too deeply", ""),
        ("seed = 1" + "0" * 5_000, "is not valid TOML", ""),
    ],
)
def test_bad_toml_is_one_clear_error(tmp_path: Path, text: str, says: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        toml(tmp_path, text)
    assert str(tmp_path / "run.toml") in caught.value.message
    assert hint in caught.value.hint
    assert bool(hint) == bool(caught.value.hint)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b'{"seed": NaN}', "is not valid JSON"),
        (b'{"name": "\xff\xfe"}', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        ("\ud800", "is not valid JSON"),
        ('{"name": "\ud800"}', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON: nested too deeply"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (b'{"seed": "1"}', "at seed: Expected `int`"),
        (b'{"sed": 1}', "unknown key `sed`"),
    ],
)
def test_bad_json_is_one_clear_error(data: bytes | str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        decode_json(data, Run, source="run.json:7")
    assert caught.value.message.startswith("run.json:7")


def test_a_json_file_is_named_in_its_error(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(encode_json(Run(seed=5), indent=2))
    assert read_json(path, Run) == Run(seed=5)
    path.write_text('{"seed": null}')
    with pytest.raises(ConfigError, match=r"run\.json at seed"):
        read_json(path, Run)


def test_a_required_field_that_is_missing_is_named() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Needs:
        place: int

    with pytest.raises(ConfigError, match="missing required field `place`"):
        convert({}, Needs, source="test")


def test_a_missing_file_names_its_nearest_sibling(tmp_path: Path) -> None:
    (tmp_path / "digits.toml").touch()
    with pytest.raises(InputFileError, match="does not exist") as caught:
        read_text(tmp_path / "digit.toml")
    assert str(tmp_path / "digits.toml") in caught.value.hint
    with pytest.raises(InputFileError, match="does not exist") as caught:
        read_text(tmp_path / "nowhere" / "digits.toml")
    assert caught.value.hint == ""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "cannot be read: Is a directory"),
        ("file.toml/inside", "cannot be read: Not a directory"),
        ("latin.toml", "is not a UTF-8 text file"),
        ("zero\0byte", "cannot be read: .*null"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_input_error(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file.toml").touch()
    (tmp_path / "latin.toml").write_bytes("größe = 1".encode("latin-1"))
    with pytest.raises(InputFileError, match=says):
        read_text(tmp_path / name)


def test_a_folder_that_cannot_be_listed_does_not_hide_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputFileError, match="does not exist"):
        read_text(tmp_path / "run.toml")


stages = st.builds(
    Stage,
    blocks=st.integers(1, 9),
    widths=st.lists(st.integers(1, 512)).map(tuple),
    gates=st.sampled_from(["soft", "hard"]),
)
budgets = st.builds(
    Budget,
    ms=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    places=st.dictionaries(st.text(max_size=5), stages, max_size=2),
)
runs = st.builds(
    Run,
    seed=st.integers(-(2**63), 2**63 - 1),
    name=st.text(st.characters(exclude_categories=["Cs"])),
    robust=st.booleans(),
    first=stages,
    stages=st.lists(stages, max_size=2).map(tuple),
    listed=st.lists(stages, max_size=2),
    budget=st.none() | budgets,
    pairs=st.lists(st.tuples(stages, st.floats(0, 1)), max_size=2).map(tuple),
)


@given(run=runs, indent=st.sampled_from([0, 2]))
def test_what_is_encoded_is_decoded(run: Run, indent: int) -> None:
    data = encode_json(run, indent=indent)
    assert decode_json(data, Run, source="test") == run
    assert encode_json(decode_json(data, Run, source="test"), indent=indent) == data


@given(names=st.lists(st.text("abc", min_size=1), unique=True))
def test_equal_values_give_equal_bytes_whatever_their_order(names: list[str]) -> None:
    forward = dict.fromkeys(names, 1)
    backward = dict.fromkeys(reversed(names), 1)
    assert encode_json(forward) == encode_json(backward)


@given(text=st.text(max_size=60))
def test_any_text_is_decoded_or_refused_as_a_setting(text: str) -> None:
    with contextlib.suppress(ConfigError):
        decode_json(text, Run, source="test")
    try:
        document = tomllib.loads(text)
    except ValueError:
        return
    with contextlib.suppress(ConfigError):
        convert(document, Run, source="test")


@given(data=st.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused_as_a_setting(data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        decode_json(data, Run, source="test")
