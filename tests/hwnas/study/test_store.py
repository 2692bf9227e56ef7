"""Studies that share a store, and images that are named from outside."""

from __future__ import annotations

import json
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click.testing
import numpy as np
import pytest

from hwnas.cli.main import cli
from hwnas.core.artifacts import sha256_of_file
from hwnas.core.decoding import read_json
from hwnas.core.errors import ConfigError, UnfinishedError
from hwnas.data.sources import DataConfig
from hwnas.study.dependencies import data_of
from hwnas.study.plan import read_study
from hwnas.study.records import ArmSeed
from hwnas.study.run import study_run
from hwnas.study.workshop import Workshop

if TYPE_CHECKING:
    from collections.abc import Callable

    NewStudy = Callable[..., Path]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

LARGEST = """
[[arm]]
name = "largest"
kind = "train"
genotype = "largest"
settings = { search = { tutors = "none" }, train = { init = "scratch" } }
"""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A study that one arm of was run of, and a store that a second one went on with.

    Attributes:
        study: The first study's file.
        store: What both share.
        first: The first one's folder.
        second: The second one's, which has an arm more.
        before: Time and content of every file of the store between the two.
    """

    study: Path
    store: Path
    first: Path
    second: Path
    before: dict[str, tuple[int, str]]


@pytest.fixture(scope="module")
def shared(new_study: NewStudy, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    folder = tmp_path_factory.mktemp("shared")
    store, first, second = folder / "store", folder / "first", folder / "second"
    study = new_study()
    study_run(study, first, store=store, arms=("smallest",), seeds=(0,))
    before = stamps(store)
    other = new_study(('name = "tiny"', 'name = "second"'))
    other.write_text(other.read_text() + LARGEST)
    given = ["study", "run", other, "--out", second, "--store", store, "--seeds", "0"]
    arguments = [*map(str, given), "--arms", "smallest,largest", "--json"]
    told = click.testing.CliRunner().invoke(cli, arguments)
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["finished"] == 2
    return Shared(study=study, store=store, first=first, second=second, before=before)


def stamps(folder: Path) -> dict[str, tuple[int, str]]:
    """Return time and content of every file of the pieces of work."""
    return {
        file.relative_to(folder).as_posix(): (file.stat().st_mtime_ns, sha256_of_file(file))
        for file in sorted((folder / "work").rglob("*"))
        if file.is_file()
    }


def pieces(names: dict[str, tuple[int, str]]) -> list[str]:
    """Return the stages of the pieces of work that files belong to, one for each piece."""
    keys = {name.split("/")[1].partition(".")[0] for name in names}
    return sorted(key.partition("-")[0] for key in keys)


def found_in(out: Path, arm: str) -> ArmSeed:
    return read_json(out / "results" / arm / "seed-0.json", ArmSeed)


def source_of(study: Path) -> Path:
    """Return the file of a study's images."""
    source: str = tomllib.loads(study.read_text())["base"]["data"]["source"]
    return Path(source.removeprefix("npz:"))


def keys_of(study: Path, data: str | None = None) -> list[set[str]]:
    """Return the keys of all that the arms' figures come from, goal by goal."""
    goals = Workshop(read_study(study, data=data), Path("nowhere")).goals()
    return [
        {goal.key, *(work.key for work in (*goal.stages.values(), *goal.works))} for goal in goals
    ]


# One store


def test_a_second_study_repeats_nothing_that_both_share(shared: Shared) -> None:
    after = stamps(shared.store)
    assert {name: after[name] for name in shared.before} == shared.before
    added = {name: stamp for name, stamp in after.items() if name not in shared.before}
    # The new arm's own: it learns from the teacher that the first study trained.
    assert pieces(added) == ["attacks", "attacks", "genotype", "train"]
    assert pieces(shared.before) == [*pieces(added)[:3], "teacher", "train"]
    assert found_in(shared.first, "smallest") == found_in(shared.second, "smallest")


def test_only_results_are_in_a_studys_own_folder(shared: Shared) -> None:
    for out in (shared.first, shared.second):
        assert (out / "study.json").is_file()
        assert not (out / "work").exists()
        assert not (out / "locks").exists()


def test_artifacts_are_named_by_where_they_are_in_the_store(shared: Shared) -> None:
    for arm in ("smallest", "largest"):
        found = found_in(shared.second, arm)
        assert set(found.artifacts) == {
            "teacher", "genotype", "train", "attacks pixel", "attacks normalized",
        }  # fmt: skip
        for place in found.artifacts.values():
            assert not Path(place).is_absolute()
            assert (shared.store / place).exists()
    broken = np.load(shared.store / found.artifacts["attacks pixel"] / "broken.npz")["broken"]
    assert 1 - broken[0].mean() == pytest.approx(found.figures["pixel.fgsm"])


# Images from outside


def test_data_from_outside_is_every_arms_and_leaves_their_other_settings(
    new_study: NewStudy,
) -> None:
    study = new_study(("settings = {", "settings = { data = { pad = 3, test = 0.3 },"))
    own = LARGEST.replace("settings = {", 'settings = { data = { source = "digits" },')
    scaled = '[scale.other.base.data]\nsource = "npz:other.npz"\nseed = 4\n'
    study.write_text(study.read_text() + own + scaled)
    for scale, seed in (("", 0), ("other", 4)):
        configs = read_study(study, scale, data="npz:given.npz").configs
        assert {config.data.source for config in configs.values()} == {"npz:given.npz"}
        assert {config.data.seed for config in configs.values()} == {seed}
        assert (configs["smallest"].data.pad, configs["smallest"].data.test) == (3, 0.3)
        assert configs["largest"].data.pad == 1
    without = read_study(study).configs
    assert without["largest"].data.source == "digits"
    assert without["smallest"].data.source == f"npz:{source_of(study)}"


def test_images_that_were_moved_are_the_same_images(shared: Shared, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "moved.npz"
    moved.parent.mkdir()
    shutil.copy(source_of(shared.study), moved)
    assert keys_of(shared.study, f"npz:{moved}") == keys_of(shared.study)
    before = stamps(shared.store)
    arguments = ["study", "run", str(shared.study), "--out", str(tmp_path / "out"), "--store",
                 str(shared.store), "--data", f"npz:{moved}", "--arms", "smallest", "--seeds",
                 "0", "--json"]  # fmt: skip
    told = click.testing.CliRunner().invoke(cli, arguments)
    assert told.exit_code == 0, told.stderr
    assert stamps(shared.store) == before
    assert found_in(tmp_path / "out", "smallest") == found_in(shared.first, "smallest")


def test_a_training_goes_on_where_its_images_were_moved(
    new_study: NewStudy, tmp_path: Path
) -> None:
    """As on machines that each have them elsewhere, for some minutes at a time."""
    study, out = new_study(), tmp_path / "out"
    for piece in range(2):
        moved = tmp_path / f"{piece}.npz"
        shutil.copy(source_of(study), moved)
        with pytest.raises(UnfinishedError):
            study_run(study, out, data=f"npz:{moved}", arms=("smallest",), minutes=1e-3)
        moved.unlink()
    # The first piece was the teacher's first epoch; the second one finished it.
    assert [path.name for path in (out / "work").glob("teacher-*/manifest.json")]


def test_other_images_under_the_same_name_are_others(shared: Shared, tmp_path: Path) -> None:
    before = keys_of(shared.study)
    with np.load(source_of(shared.study)) as arrays:
        images, labels = 255 - arrays["images"], arrays["labels"]
    np.savez(tmp_path / "digits.npz", images=images, labels=labels)
    after = keys_of(shared.study, f"npz:{tmp_path / 'digits.npz'}")
    for old, new in zip(before, after, strict=True):
        assert not old & new


def test_a_folder_of_images_may_be_moved_too(tmp_path: Path) -> None:
    records = np.zeros((20, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(20) % 10
    here, there = tmp_path / "here", tmp_path / "there" / "deeper"
    here.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records.tofile(here / f"{name}.bin")
    shutil.copytree(here, there)
    before, after = (data_of(DataConfig(source=f"cifar10:{place}")) for place in (here, there))
    assert before == after
    records[0, 1] = 1
    records.tofile(there / "test_batch.bin")
    data_of.cache_clear()
    assert data_of(DataConfig(source=f"cifar10:{there}")).key != before.key


def test_images_that_there_are_not_are_refused_before_anything_is_done(
    new_study: NewStudy, tmp_path: Path
) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    with pytest.raises(ConfigError, match="unknown data source `digit`"):
        study_run(new_study(), out, store=store, data="digit")
    assert not out.exists()
    assert not store.exists()
