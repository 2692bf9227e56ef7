"""Engines of a study's networks, judged beside their twins."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hwnas.core.artifacts import sha256_of_file
from hwnas.core.decoding import read_json
from hwnas.core.errors import ConfigError, TargetError
from hwnas.study.engine_settings import EngineSettings
from hwnas.study.engines import ArmEngines
from hwnas.study.gather import gathered, read_engine_session
from hwnas.study.plan import read_study
from hwnas.study.records import ArmSeed, EngineTable, StudyRecord
from hwnas.study.run import StudyResult, study_run, study_show
from hwnas.study.table import main_figure
from hwnas.study.workshop import Goal, Workshop

if TYPE_CHECKING:
    from collections.abc import Callable

    NewStudy = Callable[..., Path]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

ENGINES = """
[engines]
targets = ["onnxruntime-cpu", "onnxruntime-cpu-int8"]
queries = 20
steps = 3
calibration_images = 20

[[threat]]
name = "pixel"
"""
PIXEL = '[[threat]]\nname = "pixel"\n'
WITH_ENGINES = (PIXEL, ENGINES)
# So exact a tolerance that sound engines fail it: they are judged all the same.
FAILING = ("[base.space]", "[base.verify.tolerances]\nmax_abs_diff = 1e-12\n\n[base.space]")
TEACHER = '\n[[arm]]\nname = "teacher"\nkind = "teacher"\n'


@dataclass(frozen=True, kw_only=True)
class Finished:
    study: Path
    out: Path
    result: StudyResult
    said: tuple[str, ...]

    @property
    def figures(self) -> dict[str, float]:
        found = next(each for each in gathered(self.out).results if each.arm == "smallest")
        return found.figures


class Said:
    """Progress that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)

    def __getattr__(self, name: str) -> object:
        from hwnas.core.progress import SILENT

        return getattr(SILENT, name)


@pytest.fixture(scope="module")
def study(new_study: NewStudy) -> Path:
    path = new_study(WITH_ENGINES, FAILING, ("table.jsonl", "here.jsonl"))
    path.write_text(path.read_text() + TEACHER)
    return path


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("engines") / "out"
    said = Said()
    result = study_run(
        study, out, arms=("smallest", "teacher"), seeds=(0,),
        progress=said,  # type: ignore[arg-type] # the rest is that of SILENT
    )  # fmt: skip
    return Finished(study=study, out=out, result=result, said=tuple(said.lines))


def goal_of(path: Path, store: Path) -> Goal:
    """Return the work of arm `smallest` in seed 0."""
    chosen = read_study(path).only(arms=("smallest",), seeds=(0,))
    return Workshop(chosen, store).goals()[0]


def test_the_twin_is_judged_on_the_images_that_the_study_judges_by(finished: Finished) -> None:
    figures = finished.figures
    assert figures["twin.clean"] == figures["clean"]
    (found,) = [each for each in gathered(finished.out).results if each.arm == "smallest"]
    assert found.engine_images == found.images == 40


def test_an_engine_in_single_precision_is_right_where_its_twin_is(finished: Finished) -> None:
    figures = finished.figures
    assert figures["fp32.agreement"] == figures["fp32.adversarial_agreement"] == 1.0
    for what in ("clean", "replay"):
        assert figures[f"fp32.{what}"] == figures[f"twin.{what}"]


def test_more_attacks_leave_no_more(finished: Finished) -> None:
    figures = finished.figures
    for name in ("fp32", "int8"):
        found = {what: figures[f"{name}.{what}"] for what in ("clean", "replay")}
        assert figures[f"{name}.adaptive"] <= min(found.values())
        assert figures[f"{name}.worst"] <= figures[f"{name}.adaptive"]
        assert figures[f"{name}.size_kib"] > 0
    assert figures["int8.agreement"] > 0.5


def test_gates_that_fail_stop_nothing(finished: Finished) -> None:
    assert finished.result.failed == ()
    assert finished.figures["fp32.failed_gates"] >= 1
    raw = finished.out / "results" / "smallest" / "seed-0.engines.json"
    found = read_json(raw, ArmEngines)
    assert [each.target for each in found.engines] == ["onnxruntime-cpu", "onnxruntime-cpu-int8"]
    fp32, int8 = (each.verification for each in found.engines)
    assert "max_abs_diff" in [gate.name for gate in fp32.gates if not gate.passed]
    assert (fp32.precision, int8.precision) == ("fp32", "int8")
    assert int8.adaptive is not None
    assert int8.adaptive.gradients == "fake quantization of the engine"
    assert found.engines[1].card.calibration is not None
    assert found.engines[1].card.calibration.n == 20


def test_the_raw_record_can_be_committed(finished: Finished) -> None:
    raw = finished.out / "results" / "smallest" / "seed-0.engines.json"
    assert str(finished.out) not in raw.read_text()
    assert str(Path.home()) not in raw.read_text()
    assert raw.stat().st_size < 50_000


def test_engines_are_timed_side_by_side(finished: Finished) -> None:
    session = read_engine_session(finished.out)
    assert session is not None
    assert len(session.engines) == 2
    for name in ("fp32", "int8"):
        assert finished.figures[f"{name}.latency_ms"] > 0


def test_the_difference_to_the_twin_stands_in_the_table(finished: Finished) -> None:
    table = (finished.out / "table.md").read_text()
    (head,) = [line for line in table.splitlines() if line.startswith("| arm | engine |")]
    assert head.count("to the twin, points") == 3
    lines = table[table.index(head) :].splitlines()[2:5]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| smallest", "twin"], ["| smallest", "fp32"], ["| smallest", "int8"],
    ]  # fmt: skip
    cells = dict(zip(head.split(" | "), lines[1].split(" | "), strict=True))
    assert cells["clean, %"] == f"{100 * finished.figures['twin.clean']:.1f}"
    assert "| 0.0 |" in lines[1]  # single precision differs in nothing
    assert "int8 is onnxruntime-cpu-int8" in table
    page = (finished.out / "study.html").read_text()
    assert "Engines beside their twins" in page
    assert "2 engines in one session" in page


def test_arms_without_engines_are_named(finished: Finished) -> None:
    line = "there are no engines of teacher"
    assert any(line in said for said in finished.said)
    assert line in (finished.out / "table.md").read_text()
    assert not list((finished.out / "results" / "teacher").glob("*.engines.json"))


def test_differences_to_the_twin_are_paired_by_seed(finished: Finished) -> None:
    from hwnas.study.engine_table import engine_table, engine_text

    record = gathered(finished.out)
    (first,) = [each for each in record.results if each.arm == "smallest"]
    figures = {**first.figures, "twin.clean": 0.5, "int8.clean": 0.4, "fp32.clean": 0.5}
    other = figures | {"twin.clean": 0.7, "int8.clean": 0.58}
    results = [replace(first, figures=figures), replace(first, seed=1, figures=other)]
    table = engine_table(record.plan, results)
    assert isinstance(table, EngineTable)
    (row,) = [row for row in table.rows if row.engine == "int8"]
    cell = row.cell("clean")
    assert cell is not None
    assert cell.difference is not None
    assert cell.difference.mean == pytest.approx(-0.11)
    assert (cell.difference.n, cell.difference.below) == (2, 2)
    assert cell.low_images is not None
    _, rows = engine_text(table)
    assert any("−11.0 (" in text for text in rows[2])  # noqa: RUF001 - a minus sign


def test_figures_of_engines_can_be_columns_of_arms(finished: Finished, tmp_path: Path) -> None:
    """And so the baseline is compared with by them."""
    from hwnas.core.artifacts import write_atomically
    from hwnas.core.decoding import encode_json

    folder = tmp_path / "out"
    shutil.copytree(finished.out, folder, ignore=shutil.ignore_patterns("work"))
    plan = gathered(folder).plan
    shown = ("clean", "int8.clean", "int8.worst", "int8.latency_ms")
    write_atomically(folder / "plan.json", encode_json(replace(plan, figures=shown)))
    study_show(folder)
    table = read_json(folder / "study.json", StudyRecord).table
    assert table is not None
    assert table.main == "int8.worst" == main_figure(shown)
    (row,) = [row for row in table.rows if row.arm == "smallest"]
    assert [cell.figure for cell in row.cells] == list(shown)
    assert "int8, worst case, %" in (folder / "table.md").read_text()


def test_a_finished_study_repeats_nothing_and_is_shown_without_its_work(
    finished: Finished, tmp_path: Path
) -> None:
    def hashes() -> dict[Path, str]:
        kept = [*(finished.out / "work").rglob("*"), *(finished.out / "results").rglob("*"),
                finished.out / "engine_latency.json"]  # fmt: skip
        return {file: sha256_of_file(file) for file in kept if file.is_file()}

    before = hashes()
    again = study_run(finished.study, finished.out, arms=("smallest", "teacher"), seeds=(0,))
    assert hashes() == before
    assert again == finished.result
    folder = tmp_path / "moved"
    shutil.copytree(finished.out, folder, ignore=shutil.ignore_patterns("work", "*.md"))
    study_show(folder)
    assert (folder / "table.md").read_text() == (finished.out / "table.md").read_text()


def test_an_engine_is_known_by_all_that_it_depends_on(
    study: Path, finished: Finished, tmp_path: Path
) -> None:
    """What was edited is done anew, and no more: networks and other engines are kept."""
    before = goal_of(study, finished.out)
    edited = tmp_path / "study.toml"
    text = study.read_text()

    def after(old: str, new: str) -> Goal:
        assert old in text
        edited.write_text(text.replace(old, new))
        return goal_of(edited, finished.out)

    def changed(goal: Goal) -> list[str]:
        assert goal.trained.key == before.trained.key
        return [
            target
            for target, work in goal.engines.items()
            if target not in before.engines or work.key != before.engines[target].key
        ]

    fp16 = after('"onnxruntime-cpu-int8"]', '"onnxruntime-cpu-int8", "onnxruntime-cpu-fp16"]')
    assert changed(fp16) == ["onnxruntime-cpu-fp16"]
    assert fp16.key != before.key  # the arm's figures are not whole without it
    every = ["onnxruntime-cpu", "onnxruntime-cpu-int8"]
    for old, new in (
        ("queries = 20", "queries = 21"),
        ("steps = 3\ncal", "steps = 4\ncal"),
        ("calibration_images = 20", "calibration_images = 21"),
        ("max_abs_diff = 1e-12", "max_abs_diff = 1e-3"),
        ("images = 40", "images = 39"),
        ('name = "pixel"\neps = 0.1', 'name = "pixel"\neps = 0.2'),
    ):
        assert changed(after(old, new)) == every
    none = after('targets = ["onnxruntime-cpu", "onnxruntime-cpu-int8"]', "targets = []")
    assert none.engines == {}
    assert none.trained.key == before.trained.key


def test_a_target_that_cannot_be_run_is_refused_before_anything_is_trained(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwnas.deploy import engine_targets

    monkeypatch.setattr(engine_targets, "check_buildable", lambda target: False)
    with pytest.raises(TargetError, match="cannot be judged"):
        study_run(study, tmp_path / "out")
    assert not (tmp_path / "out" / "work").exists()


BAD = [
    (('"onnxruntime-cpu-int8"]', '"onnxruntime-cpu-int4"]'), "onnxruntime-cpu-int4", "int8"),
    (('"onnxruntime-cpu-int8"]', '"torch-cpu"]'), "can be profiled, not deployed", "onnx"),
    (('"onnxruntime-cpu-int8"]', '"onnxruntime-cpu"]'), "each named once", ""),
    (("queries = 20", "querries = 20"), "[engines]: unknown key `querries`", "`queries`"),
    (("queries = 20", "queries = 0"), "`queries`", ""),
    (("queries = 20", 'threat = "pixle"'), "there is no threat in pixel units `pixle`", "`pixel`"),
    (("queries = 20", 'threat = "normalized"'), "threat in pixel units `normalized`", "pixel"),
    (('name = "pixel"', 'name = "int8"'), "a threat is called `int8`", ""),
    (('seeds = [0, 1]', 'seeds = [0, 1]\narms = ["teacher"]\nbaseline = ""'), "no arm has one",
     "search or train"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "message", "hint"), BAD)
def test_bad_engines_are_refused_with_one_clear_message(
    edit: tuple[str, str], message: str, hint: str, study: Path, tmp_path: Path
) -> None:
    text = study.read_text()
    assert edit[0] in text
    if "baseline" in edit[1]:
        text = text.replace('baseline = "smallest"\n', "")
    bad = tmp_path / "study.toml"
    bad.write_text(text.replace(*edit))
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read_study(bad)
    assert hint in caught.value.hint


def test_a_scale_may_have_engines_of_its_own(study: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(study.read_text() + "\n[scale.more.engines]\nimages = 7\nqueries = 9\n")
    assert read_study(path).engines.images == 40  # those of [judge]
    more = read_study(path, "more").engines
    assert (more.images, more.queries, more.steps, more.threat) == (7, 9, 3, "pixel")
    path.write_text(path.read_text().replace("queries = 9", "queries = -1"))
    with pytest.raises(ConfigError, match="at scale more"):
        read_study(path)


def test_without_targets_there_is_nothing_of_engines(new_study: NewStudy, tmp_path: Path) -> None:
    study = read_study(new_study())
    assert study.engines == EngineSettings(images=40)
    assert study.arms_without_engines == ()
    assert all(not goal.engines for goal in Workshop(study, tmp_path).goals())


def test_results_of_earlier_versions_are_read(finished: Finished, tmp_path: Path) -> None:
    import json

    path = finished.out / "results" / "smallest" / "seed-0.json"
    document = json.loads(path.read_text())
    del document["engine_images"]
    old = tmp_path / "old.json"
    old.write_text(json.dumps(document))
    assert read_json(old, ArmSeed).engine_images == 0


CIFAR10 = Path(__file__).parents[3] / "benchmarks" / "cifar10"


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_the_study_of_deployed_networks_takes_those_that_others_train(scale: str) -> None:
    study = read_study(CIFAR10 / "deployment.toml", scale)
    assert list(study.engines.names.values()) == ["fp32", "fp16", "int8"]
    for name, arms in (("search", ("rnas-cl", "widest")), ("size", ("s7-320k",))):
        other = read_study(CIFAR10 / f"{name}.toml", scale)
        for arm in arms:
            assert study.configs[arm] == other.configs[arm]
        assert study.settings.teachers == other.settings.teachers
        assert study.settings.measure == other.settings.measure
        assert set(study.settings.seeds) <= set(other.settings.seeds)


def test_it_has_a_scale_that_is_tried_in_a_minute() -> None:
    study = read_study(CIFAR10 / "deployment.toml", "smoke")
    assert [arm.name for arm in study.arms] == ["rnas-cl", "widest"]
    assert study.engines.images == 40
