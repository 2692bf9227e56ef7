"""Whole studies, tiny: what is shared, resumed, refused, and told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click.testing
import numpy as np
import pytest

from hwnas.cli.main import cli
from hwnas.core.artifacts import sha256_of_file
from hwnas.core.decoding import read_json
from hwnas.core.errors import ConfigError, InputFileError, StudyError, UnfinishedError
from hwnas.study.gather import gathered
from hwnas.study.records import ArmSeed, StudyRecord
from hwnas.study.run import StudyResult, study_run, study_show

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    NewStudy = Callable[..., Path]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

# `searched` alone fails: no network of the space is so small. The other's budget is a wide one.
FAILS = ('description = "what the search finds"', "settings.budget.params_k = 0.001")
SHARES = ("clean", "pixel.fgsm", "pixel.worst", "pixel.hrs", "normalized.pgd")
TORCHRUN = """
import sys
from torch.distributed.run import main
sys.argv[1:] = ["--standalone", "--nproc-per-node", "2", "-m", "hwnas.cli", *sys.argv[1:]]
main()
"""


@dataclass(frozen=True, kw_only=True)
class Finished:
    study: Path
    out: Path
    result: StudyResult


@pytest.fixture(scope="module")
def finished(new_study: NewStudy, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("finished") / "out"
    study = new_study()
    return Finished(study=study, out=out, result=study_run(study, out))


def hashes(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): sha256_of_file(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def accuracies(out: Path, arm: str, seed: int) -> dict[str, float]:
    found = read_json(out / "results" / arm / f"seed-{seed}.json", ArmSeed)
    return {name: value for name, value in found.figures.items() if name[0] in "cnp"}


def works(out: Path, stage: str) -> list[str]:
    """Return the pieces of work of a stage that are done."""
    names = {path.name.partition(".")[0] for path in (out / "work").iterdir()}
    return sorted(name for name in names if name.startswith(f"{stage}-"))


def test_every_arm_and_seed_has_its_figures(finished: Finished) -> None:
    result = finished.result
    assert (result.finished, result.planned, result.pending, result.failed) == (4, 4, (), ())
    assert [(row.arm, row.seeds) for row in result.arms] == [("searched", 2), ("smallest", 2)]
    record = read_json(finished.out / "study.json", StudyRecord)
    for found in record.results:
        assert found.images == 40
        assert set(found.figures) > {*SHARES, "params", "macs", "predicted_ms", "train_minutes"}
        assert found.figures["pixel.worst"] <= found.figures["clean"]
        assert found.figures["images_per_s"] > 0
        assert ("choice_evenness" in found.figures) == (found.arm == "searched")
    smallest, searched = (
        next(each for each in record.results if each.arm == arm) for arm in ("smallest", "searched")
    )
    assert smallest.figures["params"] <= searched.figures["params"]
    assert 0 < searched.figures["choice_evenness"] <= 1


def test_arms_and_seeds_share_what_they_can(finished: Finished) -> None:
    assert len(works(finished.out, "teacher")) == 1  # one for all seeds
    assert len(works(finished.out, "search")) == 2  # one per seed; `smallest` needs none
    assert len(works(finished.out, "train")) == 4
    assert len(works(finished.out, "attacks")) == 8  # two threats
    assert not list((finished.out / "work").glob("*.checkpoint"))
    assert not list((finished.out / "work").glob("*.state"))


def test_table_pictures_and_page_are_written(finished: Finished) -> None:
    names = {path.name for path in finished.out.iterdir() if path.is_file()}
    assert {"study.json", "table.md", "study.html", "arms.svg", "differences.svg", "plan.json",
            "study.toml"} <= names  # fmt: skip
    table = (finished.out / "table.md").read_text()
    assert "| searched | 2 |" in table
    assert "40 test images" in table
    page = (finished.out / "study.html").read_text()
    assert "Does anything run?" in page
    assert "what the search finds" in page
    assert "eps 0.1 in normalized units, protocol normalized" in page
    assert "No latency was measured yet." in page


def test_which_samples_each_attack_broke_is_kept(finished: Finished) -> None:
    found = read_json(finished.out / "results" / "smallest" / "seed-0.json", ArmSeed)
    folder = finished.out / found.artifacts["attacks pixel"]
    broken = np.load(folder / "broken.npz")["broken"]
    assert broken.shape == (1, 40)
    assert 1 - broken[0].mean() == pytest.approx(found.figures["pixel.fgsm"])


def test_a_finished_study_repeats_nothing(finished: Finished) -> None:
    before = hashes(finished.out / "work") | hashes(finished.out / "results")
    again = study_run(finished.study, finished.out)
    assert hashes(finished.out / "work") | hashes(finished.out / "results") == before
    assert again == finished.result


def test_show_needs_nothing_but_the_folder(finished: Finished, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "moved"
    shutil.copytree(finished.out, folder, ignore=shutil.ignore_patterns("work", "*.md", "*.html"))
    shown = study_show(folder)
    assert shown.arms == finished.result.arms
    assert (folder / "table.md").read_text() == (finished.out / "table.md").read_text()
    assert (folder / "study.html").is_file()


def test_an_edited_arm_is_done_anew_and_the_other_is_kept(
    finished: Finished, new_study: NewStudy, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "out"
    shutil.copytree(finished.out, folder)
    edited = new_study(('train = { init = "scratch" }', 'train = { init = "scratch", epochs = 1 }'))
    before = hashes(folder / "results" / "searched")
    result = study_run(edited, folder, seeds=(0,))
    assert hashes(folder / "results" / "searched") == before
    # Its other seed was not asked for, and what there was is of other settings.
    assert result.pending == ("smallest seed 1",)
    assert result.finished == 3


def test_an_interrupted_study_goes_on_to_the_same_figures(
    finished: Finished,
    tmp_path: Path,
    interrupted_after: Callable[[int], Any],
) -> None:
    out = tmp_path / "out"
    kept = []
    for steps in (5, 12):  # within the teacher, and within the training
        progress = interrupted_after(steps)
        with pytest.raises(KeyboardInterrupt):
            study_run(finished.study, out, arms=("smallest",), seeds=(0,), progress=progress)
        kept += [path.name.partition("-")[0] for path in (out / "work").glob("*.checkpoint")]
    assert kept == ["teacher", "train"]
    study_run(finished.study, out, arms=("smallest",), seeds=(0,))
    assert accuracies(out, "smallest", 0) == accuracies(finished.out, "smallest", 0)


def test_in_pieces_the_study_ends_where_it_would_have_in_one(
    finished: Finished, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pieces = 0
    while pieces < 40:
        pieces += 1
        try:
            # Over nearly at once: each piece gets one epoch, or one batch of an attack, further.
            study_run(finished.study, out, arms=("smallest",), seeds=(0,), minutes=1e-3)
            break
        except UnfinishedError as error:
            result = error.result
            assert isinstance(result, StudyResult)
    assert pieces > 3
    assert accuracies(out, "smallest", 0) == accuracies(finished.out, "smallest", 0)


def test_an_arm_that_fails_is_named_and_the_others_go_on(
    new_study: NewStudy, tmp_path: Path
) -> None:
    study, out = new_study(FAILS), tmp_path / "out"
    with pytest.raises(StudyError, match="searched seed 0: no network meets") as caught:
        study_run(study, out, seeds=(0,))
    result = caught.value.result
    assert isinstance(result, StudyResult)
    assert [row.arm for row in result.arms] == ["smallest"]
    assert len(result.failed) == 1
    assert "failed in search" in (out / "study.html").read_text()
    assert [failure.stage for failure in gathered(out).failures] == ["search"]
    # The command line gives the result, the error and its exit code.
    arguments = ["study", "run", str(study), "--out", str(out), "--seeds", "0", "--json"]
    told = click.testing.CliRunner().invoke(cli, arguments)
    assert told.exit_code == 1
    assert json.loads(told.stdout)["failed"] == list(result.failed)
    assert "searched seed 0" in told.stderr


def test_unfinished_is_an_exit_code_of_its_own(new_study: NewStudy, tmp_path: Path) -> None:
    arguments = ["study", "run", str(new_study()), "--out", str(tmp_path / "out"),
                 "--minutes", "0.001", "--arms", "smallest", "--json"]  # fmt: skip
    told = click.testing.CliRunner().invoke(cli, arguments)
    assert told.exit_code == 4
    assert json.loads(told.stdout)["finished"] == 0
    assert "run the same command again" in told.stderr
    shown = click.testing.CliRunner().invoke(cli, ["study", "show", str(tmp_path / "out")])
    assert shown.exit_code == 0
    assert "Does anything run?" in shown.stdout


def test_networks_are_measured_side_by_side_where_their_table_is_from(
    new_study: NewStudy, tmp_path: Path
) -> None:
    """A teacher too can be an arm; it has no latency, as it is not what is deployed."""
    text = '\n[[arm]]\nname = "teacher"\nkind = "teacher"\n[[arm]]\nname = "largest"\n'
    text += 'kind = "train"\ngenotype = "largest"\nsettings = { search = { tutors = "last" }, '
    text += 'train = { init = "scratch", epochs = 1 } }\n'
    study = new_study(("table.jsonl", "here.jsonl"))
    study.write_text(study.read_text() + text)
    out = tmp_path / "out"
    result = study_run(study, out, arms=("smallest", "largest", "teacher"), seeds=(0,))
    by_arm = {row.arm: row for row in result.arms}
    assert by_arm["smallest"].measured_ms is not None
    assert by_arm["largest"].measured_ms is not None
    assert by_arm["teacher"].measured_ms is None
    (session,) = gathered(out).latency
    assert len(session.networks) == 2
    assert "in one session on onnxruntime-cpu" in (out / "study.html").read_text()
    before = sha256_of_file(out / "latency.json")
    study_run(study, out, arms=("smallest", "largest", "teacher"), seeds=(0,))
    assert sha256_of_file(out / "latency.json") == before


def test_a_handcrafted_network_is_an_arm_like_others(new_study: NewStudy, tmp_path: Path) -> None:
    study = new_study(
        ('kind = "train"', 'kind = "handcrafted"\nwidth = 0.25'),
        ('genotype = "smallest"', 'genotype = "resnet20"'),
        ('train = { init = "scratch" }', 'train = { init = "scratch", epochs = 1 }'),
    )
    result = study_run(study, tmp_path / "out", arms=("smallest",), seeds=(0,))
    (row,) = result.arms
    found = gathered(tmp_path / "out").results[0]
    assert found.network == "resnet20 x 0.25"
    assert found.figures["params"] == row.params
    assert "predicted_ms" not in found.figures
    assert found.figures["macs"] > 0


BAD = [
    ((('"smallest"\nset', '"smalest"\nset'),), "there is no architecture `smalest`"),
    ((('genotype = "smallest"', "genotype = [8]"),), "2 searched blocks, the genotype 1"),
    ((('kind = "train"', 'kind = "handcrafted"'),), "unknown hand-crafted network `smallest`"),
    (
        (('kind = "train"', 'kind = "handcrafted"'), ('"smallest"\nset', '"resnet20"\nset'),
         ('tutors = "none"', 'tutors = "searched"')),
        "is hand-crafted: no search has",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("others", "message"), BAD)
def test_what_cannot_be_done_is_refused_before_anything_is(
    others: tuple[tuple[str, str], ...], message: str, new_study: NewStudy, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=re.escape(message)):
        study_run(new_study(*others), out)
    assert not (out / "work").exists()


def test_a_folder_of_another_study_is_refused(
    finished: Finished, new_study: NewStudy, tmp_path: Path
) -> None:
    other = new_study(('name = "tiny"', 'name = "other"'))
    with pytest.raises(ConfigError, match="holds the study `tiny`, not `other`"):
        study_run(other, finished.out)
    scaled = new_study()
    scaled.write_text(scaled.read_text() + "\n[scale.smoke.study]\nseeds = [0]\n")
    with pytest.raises(ConfigError, match="holds the scale ``, not `smoke`"):
        study_run(scaled, finished.out, scale="smoke")
    with pytest.raises(InputFileError, match="no folder of a study"):
        study_show(tmp_path)
    with pytest.raises(ConfigError, match="`minutes` is a positive number"):
        study_run(finished.study, finished.out, minutes=0.0)


def test_processes_share_the_work_and_do_nothing_twice(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["study", "run", finished.study, "--out", out, "--seeds", "0", "--json"]
    process = subprocess.run(
        [sys.executable, "-c", TORCHRUN, *map(str, given)],
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["finished"] == 2
    assert process.stderr.count("python: hwnas.api.study_run(") == 1
    for stage, count in (("teacher", 1), ("search", 1), ("train", 2), ("attacks", 4)):
        assert len(works(out, stage)) == count
    for arm in ("searched", "smallest"):
        assert accuracies(out, arm, 0) == accuracies(finished.out, arm, 0)
