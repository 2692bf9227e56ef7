from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hwnas.core.environment import provenance
from hwnas.core.errors import ConfigError, StudyError, TrainingDivergedError
from hwnas.robustness.hrs import harmonic_robustness
from hwnas.study import ensemble_work
from hwnas.study.ensemble import study_ensemble
from hwnas.study.ensemble_arms import widened_to
from hwnas.study.ensemble_latency import EnsembleLatencies, WiderNetwork, measure_latencies
from hwnas.study.ensemble_models import Model, ModelBuilder
from hwnas.study.ensemble_training import train_model
from hwnas.study.latency import Session
from hwnas.study.run import study_show
from hwnas_profilers.statistics import summarize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hwnas.core.progress import Progress
    from hwnas.study.ensemble import EnsembleResult
    from hwnas.study.ensemble_arms import Lineup
    from hwnas.study.ensemble_config import EnsembleConfig

CONFIG = """
seeds = [0]
training_threads = 1
handcrafted = [{{name = "resnet20", width = 0.25}}]
[data]
source = "npz:{images}"
[threat]
eps = "16/255"
steps = 3
[members]
count = 2
sources = ["random"]
combinations = ["average", "logits"]
[train]
epochs = 1
batch = 32
[judge]
images = 24
batch = 12
attacks = ["fgsm", "pgd"]
"""
ARMS = ("random-single", "random-average", "random-logits", "random-wider", "resnet20-x0.25")


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    np.savez(folder / "digits.npz", images=pixels[:240], labels=labels[:240])
    file = folder / "study.toml"
    file.write_text(CONFIG.format(images=folder / "digits.npz"))
    return file


def by_parameters(
    config: EnsembleConfig, lineup: Lineup, builder: ModelBuilder, *, progress: Progress
) -> EnsembleLatencies:
    """Stand in for a device: latency is the number of parameters, the wider one is 1.4 as wide."""
    wider = tuple(
        WiderNetwork(
            source=source,
            seed=seed,
            architecture=widened_to(members[0], 1.4),
        )
        for (source, seed), members in lineup.members.items()
    )
    models = {lineup.model(arm, seed) for arm in lineup.arms for seed in config.seeds}
    models |= {Model(members=(each.architecture,)) for each in wider}
    networks = {}
    for model in models:
        network = builder.model(model, range(len(model.members)))
        microseconds = 0.01 * sum(each.numel() for each in network.parameters())
        networks[model.label] = summarize(np.full(6, microseconds))
    session = Session(target="a stand-in", threads=1, networks=networks, provenance=provenance())
    return EnsembleLatencies(session=session, wider=wider)


@pytest.fixture(autouse=True)
def _no_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "serial" not in request.keywords:
        monkeypatch.setattr(ensemble_work, "measure_latencies", by_parameters)


@pytest.fixture(scope="session")
def finished(
    study_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, EnsembleResult]:
    out = tmp_path_factory.mktemp("ensemble") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble_work, "measure_latencies", by_parameters)
        return out, study_ensemble(out, config=study_file)


def figures(out: Path) -> dict[str, Any]:
    """Return what every arm came to."""
    found = {}
    for path in sorted(out.glob("results/*/seed-*.json")):
        content = json.loads(path.read_text())
        found[path.parent.name] = (content["figures"], content["network"], content["key"])
    return found


def test_every_arm_is_trained_attacked_and_charged(
    finished: tuple[Path, EnsembleResult],
) -> None:
    out, result = finished
    rows = {row.arm: row for row in result.arms}
    assert tuple(rows) == ARMS
    assert (result.finished, result.planned, result.images) == (5, 5, 24)
    assert not result.failed
    assert not result.pending
    for row in result.arms:
        assert row.main_percent <= row.clean_percent
        expected = harmonic_robustness(row.clean_percent / 100, row.main_percent / 100)
        assert row.hrs_percent == pytest.approx(100 * expected)
    single, logits = rows["random-single"], rows["random-logits"]
    assert logits.measured_ms is not None
    assert single.measured_ms is not None
    assert logits.measured_ms > single.measured_ms
    assert logits.macs > single.macs
    assert logits.params > single.params
    found = figures(out)
    assert found["random-wider"][1].endswith("width x1.4")
    assert found["random-logits"][1].startswith("logits of ")


def test_comparisons_are_with_the_wider_network(finished: tuple[Path, EnsembleResult]) -> None:
    out, result = finished
    rows = {row.arm: row for row in result.arms}
    assert [(each.arm, each.against) for each in result.comparisons] == [
        ("random-average", "random-wider"), ("random-logits", "random-wider"),
    ]  # fmt: skip
    for each in result.comparisons:
        arm, against = rows[each.arm], rows[each.against]
        assert arm.measured_ms is not None
        assert against.measured_ms is not None
        assert each.latency_ratio == pytest.approx(arm.measured_ms / against.measured_ms)
        assert each.comparable == (abs(math.log(each.latency_ratio)) <= math.log(1.1))
        assert each.main_points == pytest.approx(arm.main_percent - against.main_percent)
    page = (out / "study.html").read_text()
    assert "At equal latency" in page
    for name in ("study.json", "table.md", "comparisons.json", "comparisons.md", "plan.json"):
        assert (out / name).stat().st_size > 0
    assert "random-wider" in (out / "comparisons.md").read_text()


def test_study_show_reads_the_same_folder(
    finished: tuple[Path, EnsembleResult], tmp_path: Path
) -> None:
    import shutil

    out, result = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    shown = study_show(copy)
    assert [arm.arm for arm in shown.arms] == [row.arm for row in result.arms]
    assert [arm.clean_percent for arm in shown.arms] == [row.clean_percent for row in result.arms]


def test_members_of_averaged_logits_are_trained_once(
    finished: tuple[Path, EnsembleResult],
) -> None:
    out, _ = finished
    # Two members, the averaged model, the wider and the hand-crafted one.
    trained = [path for path in (out / "work").glob("train-*") if path.is_dir()]
    assert len(trained) == 5
    single, logits = (
        json.loads((out / "results" / arm / "seed-0.json").read_text())["artifacts"]
        for arm in ("random-single", "random-logits")
    )
    assert logits["train 1"] == single["train 1"]


def test_run_again_it_does_nothing(
    finished: tuple[Path, EnsembleResult], study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, result = finished

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("finished work was done again")

    for name in ("train_model", "run_attacks", "measure_latencies"):
        monkeypatch.setattr(ensemble_work, name, refuse)
    assert study_ensemble(out, config=study_file) == result


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_interrupted_it_comes_to_the_same_figures(
    finished: tuple[Path, EnsembleResult],
    study_file: Path,
    tmp_path: Path,
    interrupted_after: Callable[[int], Progress],
    steps: int,
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        study_ensemble(out, config=study_file, progress=interrupted_after(steps))
    study_ensemble(out, config=study_file)
    assert figures(out) == figures(finished[0])


def test_an_arm_that_fails_lets_the_others_go_on(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = train_model

    def diverges(model: Any, *arguments: Any, **named: Any) -> Any:
        if hasattr(model, "combination"):
            raise TrainingDivergedError("the loss is nan", hint="a lower learning rate")
        return train(model, *arguments, **named)

    monkeypatch.setattr(ensemble_work, "train_model", diverges)
    with pytest.raises(StudyError, match="1 of 5 arms and seeds failed: random-average") as caught:
        study_ensemble(tmp_path / "out", config=study_file)
    assert caught.value.hint == "a lower learning rate"
    result: Any = caught.value.result
    assert [row.arm for row in result.arms] == [arm for arm in ARMS if arm != "random-average"]
    assert result.failed == ("random-average, seed 0: the loss is nan",)
    assert [each.arm for each in result.comparisons] == ["random-logits"]


def test_maps_that_do_not_fit_are_refused_before_anything_is_trained(
    study_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "study.toml"
    text = study_file.read_text().replace('sources = ["random"]', 'sources = ["handcrafted"]')
    text = text.replace("count = 2", 'count = 2\nnetworks = ["resnet20", "vgg16"]\nwidth = 0.125')
    file.write_text(text)
    with pytest.raises(ConfigError, match="last feature maps cannot be combined by `average`"):
        study_ensemble(tmp_path / "out", config=file)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_study_is_left_alone(
    finished: tuple[Path, EnsembleResult], study_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    plan = json.loads((finished[0] / "plan.json").read_text()) | {"name": "another"}
    (out / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match="holds the study `another`"):
        study_ensemble(out, config=study_file)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"minutes": 0.0}, "`minutes` is a positive number"),
        ({"members": 1}, "at least two members"),
        ({"space": "rnas-cl-xx"}, "unknown space"),
        ({"seeds": ()}, "at least one"),
        ({"robust": "rslad"}, "there is no teacher"),
    ],
)
def test_bad_options_are_named(
    study_file: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        study_ensemble(tmp_path / "out", config=study_file, **given)


@pytest.mark.slow
@pytest.mark.serial
def test_measured_an_ensemble_takes_longer_than_its_members_and_as_long_as_the_wider_one(
    study_file: Path,
) -> None:
    from dataclasses import replace

    from hwnas.core.progress import SILENT
    from hwnas.data.sources import load_data
    from hwnas.space.registry import space_from_spec
    from hwnas.space.spec import space_spec
    from hwnas.study.ensemble import load_ensemble_config
    from hwnas.study.ensemble_arms import lineup
    from hwnas_profilers.timing import TimingSettings

    config = load_ensemble_config(study_file, {}, members={"sources": ("genotype",)})
    config = replace(config, compare=replace(config.compare, timing=TimingSettings.quick()))
    data = load_data(config.data)
    space = space_from_spec(space_spec(config.space.name, image_shape=data.image_shape, classes=10))
    builder = ModelBuilder(space, data.pixel_statistics())
    arms = lineup(config, space)
    found = measure_latencies(config, arms, builder, progress=SILENT)
    measured = {arm.name: found.measured_ms(found.model(arms, arm, 0)) for arm in arms.arms}
    single = measured["genotype-single"]
    for combination in config.members.combinations:
        assert measured[f"genotype-{combination}"] > 1.3 * single
    assert measured["genotype-wider"] > 1.2 * single
