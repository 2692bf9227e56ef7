"""Each stage as a command of its own, on the parts of one finished run."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from hwnas.core.artifacts import sha256_of_file
from hwnas.latency.model import LatencyModel
from hwnas.stages.calibrate import fastest_genotype
from hwnas.stages.spaces import space_of_table
from hwnas_profilers.energy import energy_meter_status
from hwnas_profilers.table import LatencyTable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Call = Callable[..., Result]
    NewConfig = Callable[..., Path]
    Hashes = Callable[[Path], dict[str, str]]

pytestmark = pytest.mark.slow


def result_of(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def error_of(result: Result, *, exit_code: int = 1) -> str:
    """Return the one message and its hint."""
    assert result.exit_code == exit_code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.lower().count("error:") == 1
    return result.stderr[result.stderr.lower().index("error:") :]


def test_profile_and_calibrate_make_a_table(tmp_path: Path, hwnas: Call) -> None:
    table = tmp_path / "table.jsonl"
    profile = (
        "profile", "--space", "rnas-cl-xs", "--target", "torch-cpu", "--image-shape", "1,8,8",
        "--relative-width", 0.3, "--max-samples", 20, "--out", table, "--json",
    )  # fmt: skip
    made = result_of(hwnas(*profile))
    assert made["operators"] == 49
    assert 0 < made["fastest_us"] < made["slowest_us"]
    before = table.read_bytes()
    again = hwnas(*profile)
    assert result_of(again) == made
    assert table.read_bytes() == before
    measured = r"49 of 49 operators and (\d+) of \1 pairs of neighbors are measured already"
    assert re.search(measured, again.stderr)

    calibrate = (
        "calibrate", "--table", table, "--networks", 3, "--holdout", 3, "--relative-width", 0.5,
        "--json",
    )  # fmt: skip
    assert "not `rnas-cl-s3`" in error_of(hwnas(*calibrate, "--space", "rnas-cl-s3"))
    assert "3 networks and 3 held out" in error_of(hwnas(*calibrate, "--networks", 2))
    too_many = error_of(hwnas(*calibrate, "--networks", 1000))
    assert "too few networks to draw 1003 different ones" in too_many
    assert table.read_bytes() == before
    fit = result_of(hwnas(*calibrate, "--space", "rnas-cl-xs"))
    assert fit["holdout"]["n"] == 3
    assert {"mape_percent", "spearman", "kendall", "within_5_percent", "within_10_percent"} < set(
        fit["holdout"]
    )
    assert "macs_affine" in fit["baselines"]
    assert fit["curvature_per_us"] >= 0
    assert table.read_bytes().startswith(before)
    calibrated = LatencyTable.read(table)
    assert calibrated.calibration is not None
    latency = LatencyModel(space_of_table(calibrated), replace(calibrated, calibration=None))
    fastest = latency.space.choices(fastest_genotype(latency))
    assert calibrated.calibration.networks[0].choices == fastest


def test_teacher_is_trained_or_taken(
    finished: Any, tmp_path: Path, hwnas: Call, new_config: NewConfig
) -> None:
    trained = result_of(
        hwnas("teacher", "--config", finished.config, "--out", tmp_path / "trained", "--json")
    )
    assert trained["trained"] is True
    weights = finished.out / "teacher" / "weights.safetensors"
    # One seed, one teacher: here, in another process and in a whole run.
    assert sha256_of_file(tmp_path / "trained" / weights.name) == sha256_of_file(weights)
    taken = result_of(
        hwnas(
            "teacher",
            "--config",
            finished.config,
            "--weights",
            weights,
            "--out",
            tmp_path / "taken",
            "--json",
        )
    )
    assert taken["trained"] is False
    for key in ("params", "clean_accuracy", "robust_accuracy", "n"):
        assert taken[key] == trained[key]
    again = hwnas("teacher", "--config", finished.config, "--out", tmp_path / "trained", "--json")
    assert result_of(again) == trained
    assert "is finished already" in again.stderr
    other = hwnas(
        "teacher", "--config", finished.config, "--seed", 1, "--epochs", 1,
        "--out", tmp_path / "trained", "--json",
    )  # fmt: skip
    assert "is finished already" not in other.stderr
    assert sha256_of_file(tmp_path / "trained" / weights.name) != sha256_of_file(weights)


def test_search_holds_a_budget_and_finds_itself_done(
    finished: Any, tmp_path: Path, hwnas: Call
) -> None:
    search = (
        "search", "--table", finished.table, "--teacher", finished.out / "teacher",
        "--config", finished.config, "--out", tmp_path / "search", "--json",
    )  # fmt: skip
    given = result_of(hwnas(*search, "--budget-ms", 5, "--epochs", 3, "--seed", 2))
    assert (given["budget_ms"], given["epochs"]) == (5.0, 3)
    assert len(given["most_likely"]) == 6
    again = hwnas(*search, "--budget-ms", 5, "--epochs", 3, "--seed", 2)
    assert result_of(again) == given
    assert "is finished already" in again.stderr
    small = error_of(hwnas(*search, "--budget-ms", 1e-6))
    assert "no network meets a budget of 1e-06 ms" in small


def smallest_and_largest_ms(table: Path) -> tuple[float, float]:
    from hwnas.latency.model import LatencyModel
    from hwnas.stages.spaces import space_of_table
    from hwnas_profilers.table import LatencyTable

    read = LatencyTable.read(table)
    return LatencyModel(space_of_table(read), read).range_ms()


def made_up_times(table: str) -> str:
    """An uncalibrated table in which wider operators take longer, whatever this machine does."""
    header, *lines = table.splitlines()
    records = [each for each in map(json.loads, lines) if each["record"] == "measurement"]
    for record in records:
        key = record["key"]
        record["statistics"]["median_us"] = 1.0 + key["in_shape"][0] + key["out_shape"][0]
    return "\n".join([header, *map(json.dumps, records)]) + "\n"


def derive_call(finished: Any, out: Path, table: Path | None = None) -> tuple[object, ...]:
    return (
        "derive", "--search", finished.out / "search", "--table", table or finished.table,
        "--out", out, "--json",
    )  # fmt: skip


def test_derive_serves_other_budgets_without_training(
    finished: Any, tmp_path: Path, hwnas: Call, hashes_in: Hashes
) -> None:
    table = tmp_path / "table.jsonl"
    table.write_text(made_up_times(finished.table.read_text()))
    low, high = smallest_and_largest_ms(table)
    before = hashes_in(finished.out / "search")
    out = tmp_path / "genotype.json"
    macs = []
    for budget in (low, (low + high) / 2, high * 1.01):
        derived = result_of(
            hwnas(*derive_call(finished, out, table), "--budget-ms", repr(budget), "--no-measure")
        )
        assert derived["predicted_ms"] <= budget * (1 + 1e-9)
        assert derived["measured_ms"] is None
        macs.append(derived["macs"])
        assert json.loads(out.read_text())["budget_ms"] == budget
    assert macs[0] < macs[1] <= macs[2]
    measured = result_of(hwnas(*derive_call(finished, out), "--budget-ms", 10))
    assert 0 < measured["measured_ms"] <= 10
    assert hashes_in(finished.out / "search") == before


def test_derive_tightens_by_what_a_measurement_is_over(
    finished: Any, tmp_path: Path, hwnas: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With made-up times: networks take a little, or a lot, longer than the table says."""
    from hwnas_profilers import profiler
    from hwnas_profilers.records import Statistics

    table = tmp_path / "table.jsonl"
    table.write_text(made_up_times(finished.table.read_text()))
    low, high = smallest_and_largest_ms(table)
    out = tmp_path / "genotype.json"
    call = (*derive_call(finished, out, table), "--budget-ms", repr(high))
    free = result_of(hwnas(*call, "--no-measure"))["predicted_ms"]
    assert low < free <= high
    # So far over the budget that the likeliest network must give way, and another one remains.
    times = iter([*[high + (free - low) / 2] * 3, low])  # what is over is confirmed twice

    def timed(*_: object, **__: object) -> list[profiler.NetworkTiming]:
        median = next(times) * 1e3
        names = ("median_us", "low_us", "high_us", "min_us", "p10_us", "p90_us")
        statistics = Statistics(n=20, **dict.fromkeys(names, median))
        return [profiler.NetworkTiming(statistics=statistics, first_us=median, second_us=median)]

    monkeypatch.setattr(profiler.Profiler, "time_networks", timed)
    derived = hwnas(*call)
    assert result_of(derived)["attempts"] == 2
    assert "over the budget: tightened by that much" in derived.stderr
    bounds = [each["bound_ms"] for each in json.loads(out.read_text())["attempts"]]
    assert bounds[1] < bounds[0] == high

    before = out.read_bytes()
    times = iter([high * 3] * 6)  # no network is so much faster than predicted, nor the fastest
    said = error_of(hwnas(*call))
    assert "no derived network measured within" in said
    assert "profile again" in said
    times = iter([high * 1.0000001] * 100)  # ten times over by a hair
    assert "no derived network measured within" in error_of(hwnas(*call))
    assert out.read_bytes() == before


def test_what_the_table_lacks_is_estimated_where_asked_and_flagged(
    finished: Any, tmp_path: Path, hwnas: Call
) -> None:
    table, out = tmp_path / "table.jsonl", tmp_path / "genotype.json"
    table.write_text(made_up_times(finished.table.read_text()))
    _, high = smallest_and_largest_ms(table)
    call = (*derive_call(finished, out, table), "--budget-ms", repr(high), "--no-measure")
    whole = result_of(hwnas(*call))
    assert whole["estimated_operators"] == 0

    first, second = whole["blocks"][:2]
    header, *lines = table.read_text().splitlines(keepends=True)
    kept = [
        line
        for line in lines
        if (key := json.loads(line)["key"])["kind"] != "mbconv"
        or (key["in_shape"][0], key["out_shape"][0]) != (first, second)
    ]
    assert len(kept) < len(lines)
    table.write_text("".join([header, *kept]))
    assert "--estimate" in error_of(hwnas(*call))
    guessed = hwnas(*call, "--estimate")
    assert "estimated, as asked" in guessed.stderr
    result = result_of(guessed)
    assert result["predicted_ms"] == pytest.approx(whole["predicted_ms"], rel=0.3)
    used = json.loads(out.read_text())["estimated"]
    if result["blocks"][:2] == [first, second]:
        assert result["estimated_operators"] == used["operators"] > 0
        assert result["widest_estimate_percent"] > 0


@pytest.mark.parametrize(
    ("budget", "exit_code", "says"),
    [
        ("1e-6", 1, "ask for at least"),
        ("0", 1, "a budget is a positive number"),
        ("-1", 1, "a budget is a positive number"),
        ("nan", 2, "'nan' is not a finite number"),
        ("inf", 2, "'inf' is not a finite number"),
        ("abc", 2, "'abc' is not a number"),
    ],
)
def test_derive_refuses_a_budget_that_is_none(
    budget: str, exit_code: int, says: str, finished: Any, tmp_path: Path, hwnas: Call
) -> None:
    result = hwnas(*derive_call(finished, tmp_path / "g.json"), "--budget-ms", budget)
    said = error_of(result, exit_code=exit_code)
    assert says in said
    if exit_code == 1:
        low, _ = smallest_and_largest_ms(finished.table)
        assert f"{low:.4g}" in said
    assert not list(tmp_path.iterdir())


def test_derive_refuses_a_table_of_other_images(finished: Any, tmp_path: Path, hwnas: Call) -> None:
    other = tmp_path / "other.jsonl"
    header, *rest = finished.table.read_text().splitlines()
    document = json.loads(header)
    document["space_spec"]["classes"] = 7
    document["space_fingerprint"] = "0123456789abcdef"
    other.write_text("\n".join([json.dumps(document), *rest]) + "\n")
    call = ["derive", "--search", finished.out / "search", "--table", other]
    said = error_of(hwnas(*call, "--budget-ms", 10, "--out", tmp_path / "g.json"))
    assert "or other images or classes" in said
    assert "--image-shape 1,8,8 --classes 10" in said
    assert not (tmp_path / "g.json").exists()


def test_train_with_the_search_and_without(finished: Any, tmp_path: Path, hwnas: Call) -> None:
    train = (
        "train", "--genotype", finished.out / "genotype.json",
        "--teacher", finished.out / "teacher", "--json",
    )  # fmt: skip
    inherited = (
        *train, "--search", finished.out / "search", "--config", finished.config,
        "--out", tmp_path / "inherited",
    )  # fmt: skip
    result = result_of(hwnas(*inherited))
    assert result["epochs"] == 6
    weights = "weights.safetensors"
    assert sha256_of_file(tmp_path / "inherited" / weights) == sha256_of_file(
        finished.out / "network" / weights
    )
    source = json.loads(finished.config.read_text().split("source = ")[1].splitlines()[0])
    fresh = result_of(
        hwnas(
            *train,
            "--data",
            source,
            "--epochs",
            1,
            "--robust",
            "none",
            "--out",
            tmp_path / "fresh",
        )
    )
    assert (fresh["epochs"], fresh["params"]) == (1, result["params"])
    assert sha256_of_file(tmp_path / "fresh" / weights) != sha256_of_file(
        tmp_path / "inherited" / weights
    )
    said = error_of(hwnas(*train, "--config", finished.config, "--out", tmp_path / "none"))
    assert "give --search DIR" in said
    assert not (tmp_path / "none").exists()


def test_train_refuses_another_teacher(
    finished: Any, tmp_path: Path, hwnas: Call, new_config: NewConfig
) -> None:
    config = new_config(("teacher.blocks", [1, 2]), ("teacher.epochs", 1))
    result_of(hwnas("teacher", "--config", config, "--out", tmp_path / "teacher", "--json"))
    said = error_of(
        hwnas(
            "train",
            "--genotype",
            finished.out / "genotype.json",
            "--teacher",
            tmp_path / "teacher",
            "--search",
            finished.out / "search",
            "--config",
            finished.config,
            "--out",
            tmp_path / "network",
        )
    )
    assert "other layers than the teacher" in said
    assert not (tmp_path / "network").exists()


def test_export_verify_and_report(
    finished: Any, tmp_path: Path, hwnas: Call, hashes_in: Hashes
) -> None:
    bundle = tmp_path / "bundle"
    exported = result_of(
        hwnas("export", "--network", finished.out / "network", "--out", bundle, "--json")
    )
    assert exported["size_bytes"] == (bundle / "model.onnx").stat().st_size
    assert exported["parity"]["agreement"] == 1.0
    # The same network gives the same bytes, whoever exports it.
    assert hashes_in(bundle)["model.onnx"] == hashes_in(finished.bundle)["model.onnx"]

    figures = tmp_path / "figures.json"
    verified = result_of(hwnas("verify", bundle, "--out", figures, "--json"))
    assert verified["passed"] is True
    assert json.loads(figures.read_text()) == verified
    gates = {gate["name"] for gate in verified["verification"]["gates"]}
    assert {"latency", "agreement", "robust_drop"} < gates

    page = tmp_path / "page.html"
    assert result_of(hwnas("report", finished.out, "--out", page, "--json")) == {
        "report": str(page)
    }
    assert page.read_text() == (finished.bundle / "report.html").read_text()
    assert "no folder of a run" in error_of(hwnas("report", tmp_path / "nowhere"))
    assert "has not reached its verification" in error_of(hwnas("report", tmp_path))


def test_export_refuses_an_engine_that_computes_other_numbers(
    finished: Any, tmp_path: Path, hwnas: Call
) -> None:
    network = tmp_path / "network"
    shutil.copytree(finished.out / "network", network)
    settings = json.loads((network / "settings.json").read_text())
    settings["verify"]["tolerances"]["max_abs_diff"] = 0.0
    (network / "settings.json").write_text(json.dumps(settings))
    said = error_of(hwnas("export", "--network", network, "--out", tmp_path / "bundle"))
    assert "settings.json was changed after it was made" in said
    manifest = json.loads((network / "manifest.json").read_text())
    manifest["outputs"]["settings.json"] = sha256_of_file(network / "settings.json")
    (network / "manifest.json").write_text(json.dumps(manifest))
    said = error_of(hwnas("export", "--network", network, "--out", tmp_path / "bundle"))
    assert "logits differ from PyTorch's" in said
    assert not (tmp_path / "bundle").exists()


def test_doctor_says_what_is_usable_and_what_to_do_about_the_rest(hwnas: Call) -> None:
    result = hwnas("doctor", "--json")
    assert result.exit_code == 0
    statuses = {status["name"]: status for status in json.loads(result.stdout)}
    assert statuses["onnxruntime-cpu"]["usable"] is True
    assert statuses["onnxruntime-cpu"]["version"]
    unusable = [status for status in statuses.values() if not status["usable"]]
    assert unusable
    for status in unusable:
        assert status["reason"], status
        assert status["fix"], status


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "takes a search space or a model"),
        (("--space", "rnas-cl-xs", "--model", "m.onnx"), "takes a search space or a model"),
        (("--space", "rnas-cl-xs"), "the table needs a file"),
        (("--space", "rnas-cl-xs", "--quick", "--precise"), "contradict each other"),
        (
            ("--space", "rnas-cl-xs", "--target", "ssh://-oProxy/onnxruntime-cpu", "--out", "t"),
            "dash",
        ),
        (("--space", "rnas-cl-xs", "--target", "tensorrt-fp16", "--out", "t"), "cannot be used"),
        (("--space", "mbconv-23", "--out", "t.jsonl"), "did you mean `mbconv-32`"),
    ],
)
def test_profile_says_what_it_cannot_do(
    hwnas: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in error_of(hwnas("profile", *arguments))
    assert not list(tmp_path.iterdir())


def test_energy_is_refused_where_nothing_tells_it_and_leaves_no_table(
    hwnas: Call, tmp_path: Path
) -> None:
    meters = [status for status in energy_meter_status() if status.device == "cpu"]
    if any(status.usable for status in meters):
        pytest.skip("this machine has a meter")
    table = tmp_path / "table.jsonl"
    said = error_of(hwnas("profile", "--space", "rnas-cl-xs", "--out", table, "--energy"))
    assert "RAPL" in said
    assert not table.exists()
