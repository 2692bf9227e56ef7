"""What several studies have in common, in a file of its own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from hwnas.core.errors import ConfigError, InputFileError, UnfinishedError
from hwnas.study.plan import common_file, read_study, study_document
from hwnas.study.run import study_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = """
[judge]
images = 500
attacks = ["fgsm"]

[base]
seed = 7

[base.budget]
fraction = 0.5

[base.train]
epochs = 3
batch = 32

[[threat]]
name = "pixel"
eps = "8/255"

[scale.smoke.base.train]
epochs = 1

[scale.smoke.judge]
images = 6
"""

STUDY = """
common = "common.toml"

[study]
name = "s"
question = "Which?"
seeds = [0]

[judge]
images = 40

[base.budget]
ms = 2.0

[base.train]
batch = 16

[[arm]]
name = "a"
settings.train.epochs = 5

[scale.smoke.study]
seeds = [1]
"""


def write(folder: Path, text: str = STUDY, common: str | None = COMMON) -> Path:
    if common is not None:
        (folder / "common.toml").write_text(common)
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_tables_of_a_studys_own_come_before_the_common_ones(tmp_path: Path) -> None:
    study = read_study(write(tmp_path))
    config = study.configs["a"]
    assert (study.judge.images, study.judge.attacks) == (40, ("fgsm",))
    assert (config.seed, config.train.batch, config.train.epochs) == (7, 16, 5)
    # Of settings that exclude each other, the study's own takes the place of the common one.
    assert (config.budget.ms, config.budget.fraction) == (2.0, None)
    assert [threat.name for threat in study.threats] == ["pixel"]


def test_scales_are_put_together_too(tmp_path: Path) -> None:
    study = read_study(write(tmp_path), "smoke")
    assert study.settings.seeds == (1,)
    assert study.judge.images == 6
    assert study.configs["a"].train.batch == 16
    # An arm's own settings come before those of a scale's [base], wherever that is written.
    assert study.configs["a"].train.epochs == 5


def test_lists_of_tables_are_taken_whole(tmp_path: Path) -> None:
    """A study that names threats of its own names all of them."""
    own = '[[threat]]\nname = "small"\neps = "2/255"\n'
    study = read_study(write(tmp_path, f"{STUDY}\n{own}"))
    assert [threat.name for threat in study.threats] == ["small"]


def test_without_a_common_file_a_study_is_what_it_says(tmp_path: Path) -> None:
    for text in (STUDY.replace('common = "common.toml"', ""), STUDY.replace("common.toml", "")):
        path = write(tmp_path, text)
        assert common_file(path) is None
        assert "threat" not in study_document(path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ('"../common.toml"', "`common` names a TOML file beside it, not '../common.toml'"),
        ('"/tmp/common.toml"', "`common` names a TOML file beside it"),
        ("'deeper\\common.toml'", "`common` names a TOML file beside it"),
        ("3", "`common` names a TOML file beside it, not 3"),
        ('"common.json"', "`common` names a TOML file beside it, not 'common.json'"),
        ('"study.toml"', "`common` names a TOML file beside it, not 'study.toml'"),
        ('["common.toml"]', "`common` names a TOML file beside it"),
    ],
)
def test_what_is_no_name_beside_the_file_is_refused(tmp_path: Path, name: str, says: str) -> None:
    path = write(tmp_path, STUDY.replace('"common.toml"', name))
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        read_study(path)
    assert str(path) in caught.value.message
    assert "common.toml" in caught.value.hint


def test_a_common_file_has_none_itself(tmp_path: Path) -> None:
    path = write(tmp_path, common=f'common = "further.toml"\n{COMMON}')
    with pytest.raises(ConfigError, match=r"common\.toml is common to others and cannot have a"):
        read_study(path)


def test_a_common_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=re.escape(str(tmp_path / "common.toml"))):
        read_study(write(tmp_path, common=None))


@pytest.mark.parametrize(
    ("common", "says"),
    [
        ("[base", r"common\.toml is not valid TOML"),
        (COMMON.replace("epochs = 3", "epoch = 3"), "unknown key `epoch` in"),
        (COMMON.replace("[judge]", "[juge]"), "unknown key `juge`"),
    ],
)
def test_what_is_wrong_in_a_common_file_is_found(tmp_path: Path, common: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_study(write(tmp_path, common=common))


@pytest.mark.slow
def test_it_is_kept_beside_the_study_that_was_run(
    new_study: Callable[..., Path], tmp_path: Path
) -> None:
    study = new_study()
    text, _, judge = study.read_text().partition("[judge]")
    judge, _, rest = judge.partition("[[threat]]")
    study.write_text(f'common = "shared.toml"\n{text}[[threat]]{rest}')
    study.with_name("shared.toml").write_text(f"[judge]{judge}")
    out = tmp_path / "out"
    with pytest.raises(UnfinishedError):  # the teacher's first epoch, and no more
        study_run(study, out, arms=("smallest",), seeds=(0,), minutes=1e-3)
    assert (out / "shared.toml").read_bytes() == study.with_name("shared.toml").read_bytes()
    # Together they are what was run, wherever the folder goes.
    assert read_study(out / "study.toml") == read_study(study)
