"""Bad input: one clear error each, exit code 1, and nothing lost or half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hwnas.robustness import pgd
from hwnas.training import robust as training

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Call = Callable[..., Result]
    NewConfig = Callable[..., Path]
    Hashes = Callable[[Path], dict[str, str]]
    Refused = Callable[..., str]

pytestmark = pytest.mark.slow


def error_of(result: Result) -> str:
    """Return the one message and its hint."""
    assert result.exit_code == 1, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "unexpected" not in result.stderr
    assert result.stderr.count("error: ") == 1
    return result.stderr[result.stderr.index("error: ") :]


@pytest.fixture
def refused(hwnas: Call, tmp_path: Path) -> Refused:
    """Run settings that must be refused before anything is made; return the error."""

    def run(config: Path) -> str:
        said = error_of(hwnas("run", config, "--out", tmp_path / "out" / "run", "--json"))
        assert not (tmp_path / "out").exists()
        return said

    return run


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.toml", None, "does not exist"),
        ("config.tml", None, "config.toml?"),
        ("folder", None, "Is a directory"),
        ("latin.toml", b"# caf\xe9\n", "is not a UTF-8 text file"),
        ("broken.toml", b"[target\nname = 1", "is not valid TOML"),
        ("list.toml", b"target = [1]\n", "at target"),
    ],
)
def test_a_file_of_settings_that_is_none(
    name: str, content: bytes | None, says: str, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "config.toml").touch()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = refused(tmp_path / name)
    assert says in said
    assert name in said


@pytest.mark.parametrize(
    ("misspelled", "nearest"),
    [
        ("sed", "seed"),
        ("target.thread", "threads"),
        ("space.nme", "name"),
        ("data.sorce", "source"),
        ("threat.epsilon", "eps"),
        ("table.network", "networks"),
        ("table.timing.max_sample", "max_samples"),
        ("table.network_timing.warmup", "warmup_calls"),
        ("budget.fractions", "fraction"),
        ("teacher.learning_rat", "learning_rate"),
        ("search.warmup_epoch", "warmup_epochs"),
        ("train.robustness", "robust"),
        ("verify.square_query", "square_queries"),
        ("verify.tolerances.agrement", "agreement"),
    ],
)
def test_an_unknown_key_names_the_nearest(
    misspelled: str, nearest: str, new_config: NewConfig, refused: Refused
) -> None:
    said = refused(new_config((misspelled, 1)))
    section, _, key = misspelled.rpartition(".")
    assert f"unknown key `{key}`" in said
    assert f"`{nearest}`" in said
    assert not section or f"[{section}]" in said


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ([("seed", "0")], "at seed: Expected `int`, got `str`"),
        ([("seed", -1)], "`seed` is at least 0"),
        ([("target.threads", 0)], "`threads` is at least 1"),
        ([("teacher.blocks", 2)], "at teacher.blocks: Expected `array`, got `int`"),
        ([("train.robust", "trade")], "at train.robust: Invalid enum value 'trade'"),
        ([("table.holdout", 2)], "at least 3 each"),
        ([("budget.fraction", 0.5)], "either `ms` or `fraction`"),
        ([("budget.ms", None)], "either `ms` or `fraction`"),
        ([("budget.ms", -1.0)], "is a positive number, not -1"),
        ([("budget.ms", "small")], "at budget.ms: Expected `float | null`, got `str`"),
        ([("budget.ms", None), ("budget.fraction", 1.5)], "between 0 and 1, not 1.5"),
        ([("threat.eps", 8)], 'did you mean "8/255"?'),
        ([("threat.eps", "8/0")], "is not a number"),
        ([("space.name", "rnas-cl-xl")], "did you mean `rnas-cl-"),
        ([("target.name", "onnxruntime-cpi")], "did you mean `onnxruntime-cpu`?"),
        ([("target.name", "tensorrt-fp16")], "cannot be used here"),
        ([("data.source", "digit")], "did you mean `digits`?"),
        ([("data.source", "npz")], "needs a path"),
        ([("data.source", "npz:nowhere.npz")], "nowhere.npz cannot be read"),
        ([("search.epochs", 1)], "must leave some of the 1 `epochs`"),
        ([("table.path", "nowhere.jsonl")], "nowhere.jsonl does not exist"),
    ],
)
def test_a_setting_that_cannot_be(
    others: list[tuple[str, Any]], says: str, new_config: NewConfig, refused: Refused
) -> None:
    assert says in refused(new_config(*others))


def test_a_budget_below_the_smallest_network(
    finished: Any, new_config: NewConfig, refused: Refused
) -> None:
    said = refused(new_config(("budget.ms", 1e-6), ("table.path", str(finished.table))))
    assert "no network meets a budget of 1e-06 ms" in said
    assert "ask for at least" in said


# What is changed in a table's header, and what is said of it.
HEADERS: list[tuple[str, Any, str]] = [
    ("target", "torch-cpu", "target is 'torch-cpu', not 'onnxruntime-cpu'"),
    ("threads", 4, "threads is 4, not 1"),
    ("space_fingerprint", "0123456789abcdef", "another version of space 'rnas-cl-xs'"),
    ("schema", 99, "schema 99"),
    ("provenance.device.name", "Abacus 1", "device is 'Abacus 1'"),
]


@pytest.mark.parametrize(("key", "value", "says"), HEADERS)
def test_a_table_of_something_else(
    key: str,
    value: Any,
    says: str,
    finished: Any,
    tmp_path: Path,
    new_config: NewConfig,
    refused: Refused,
) -> None:
    header, *rest = finished.table.read_text().splitlines()
    document = json.loads(header)
    *sections, last = key.split(".")
    place = document
    for section in sections:
        place = place[section]
    assert last in place
    place[last] = value
    table = tmp_path / "table.jsonl"
    table.write_text("\n".join([json.dumps(document), *rest]) + "\n")
    assert says in refused(new_config(("table.path", str(table))))


def test_a_table_of_other_images(finished: Any, new_config: NewConfig, refused: Refused) -> None:
    config = new_config(("table.path", str(finished.table)), ("data.image_size", 16))
    assert "or for another space" in refused(config)


def test_a_corrupt_line_inside_a_table_is_named(
    finished: Any, tmp_path: Path, new_config: NewConfig, refused: Refused
) -> None:
    lines = finished.table.read_text().splitlines(keepends=True)
    lines[4] = lines[4][: len(lines[4]) // 2] + "\n"
    table = tmp_path / "table.jsonl"
    table.write_text("".join(lines))
    assert "table.jsonl:5" in refused(new_config(("table.path", str(table))))


def test_a_torn_last_line_is_recovered_and_said(
    finished: Any, tmp_path: Path, hwnas: Call, new_config: NewConfig
) -> None:
    """Here the calibration is torn: operators are whole, so the run goes on, uncalibrated."""
    table = tmp_path / "table.jsonl"
    table.write_bytes(finished.table.read_bytes()[:-40])
    config = new_config(("table.path", str(table)), ("budget.ms", 1e-6))
    result = hwnas("run", config, "--out", tmp_path / "out")
    assert "the last line is torn" in result.stderr
    assert "is not calibrated" in result.stderr
    assert f"hwnas calibrate --table {table}" in result.stderr
    assert "no network meets" in error_of(result)


def test_a_missing_operator_names_the_nearest_and_a_command_that_works(
    finished: Any, tmp_path: Path, hwnas: Call, new_config: NewConfig, refused: Refused
) -> None:
    lines = finished.table.read_text().splitlines(keepends=True)
    table = tmp_path / "table.jsonl"
    gone = next(line for line in lines if '"record":"measurement"' in line)
    table.write_text("".join(line for line in lines if line != gone))
    config = new_config(("table.path", str(table)), ("budget.ms", 1e-6))
    said = refused(config)
    assert "has no operator" in said
    assert "nearest: " in said
    command = said.split("`")[1].split()
    assert command[0] == "hwnas"
    measured = hwnas(*command[1:], "--relative-width", "0.3", "--max-samples", "20", "--json")
    assert measured.exit_code == 0, measured.stderr
    assert json.loads(measured.stdout)["operators"] == 49
    assert "no network meets" in refused(config)


@pytest.mark.parametrize(
    ("command", "keys"),
    [("teacher", ()), ("search", ("table", "teacher")), ("train", ("genotype", "teacher"))],
)
def test_a_user_s_folder_is_never_replaced(
    command: str, keys: tuple[str, ...], finished: Any, tmp_path: Path, hwnas: Call
) -> None:
    parts = {
        "table": finished.table,
        "teacher": finished.out / "teacher",
        "genotype": finished.out / "genotype.json",
        "search": finished.out / "search",
    }
    given = [text for key in keys for text in (f"--{key}", parts[key])]
    if command == "train":
        given += ["--search", parts["search"]]
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    call = (command, *given, "--config", finished.config, "--out")
    said = error_of(hwnas(*call, home))
    assert "holds files that hwnas did not make" in said
    assert "cannot be written" in error_of(hwnas(*call, home / "thesis.tex"))
    assert "cannot be written" in error_of(hwnas(*call, home / "thesis.tex" / "out"))
    assert [path.name for path in home.iterdir()] == ["thesis.tex"]
    assert (home / "thesis.tex").read_text() == "years of work"


def test_a_run_into_a_file(
    finished: Any, tmp_path: Path, hwnas: Call, new_config: NewConfig
) -> None:
    place = tmp_path / "file"
    place.write_text("mine")
    for config in (new_config(), new_config(("table.path", str(finished.table)))):
        assert "cannot be written" in error_of(hwnas("run", config, "--out", place))
    assert place.read_text() == "mine"


def test_a_teacher_of_other_images_or_classes(
    finished: Any,
    tmp_path: Path,
    hwnas: Call,
    new_config: NewConfig,
    new_images: Callable[..., Path],
) -> None:
    few = f"npz:{new_images('five', classes=5)}"
    cases = [("data.image_size", 16, "the teacher takes images of 1x16x16"),
             ("data.source", few, "the teacher has 5 classes")]  # fmt: skip
    for key, value, says in cases:
        folder = tmp_path / key
        config = new_config((key, value), ("teacher.epochs", 1))
        assert hwnas("teacher", "--config", config, "--out", folder).exit_code == 0
        search = ("search", "--table", finished.table, "--out", tmp_path / "search", "--config")
        assert says in error_of(hwnas(*search, finished.config, "--teacher", folder))
        assert "the table's space " in error_of(hwnas(*search, config, "--teacher", folder))
    assert not (tmp_path / "search").exists()


def test_weights_that_are_none_or_of_another_teacher(
    finished: Any, tmp_path: Path, hwnas: Call, new_config: NewConfig
) -> None:
    own = finished.out / "teacher" / "weights.safetensors"
    weights = load_file(own)
    (tmp_path / "text").write_text("weights, believe me")
    save_file({**weights, "more": np.zeros(1)}, tmp_path / "more")
    save_file(dict(list(weights.items())[1:]), tmp_path / "fewer")
    wide = new_config(("teacher.width", 12))
    cases = [
        (tmp_path / "text", finished.config, "is no safetensors file"),
        (tmp_path / "nowhere", finished.config, "cannot be read"),
        (tmp_path, finished.config, "cannot be read"),
        (tmp_path / "more", finished.config, "that the network has not: more"),
        (tmp_path / "fewer", finished.config, "holds no tensor"),
        (own, wide, "the network needs [12"),
    ]
    for file, config, says in cases:
        result = hwnas(
            "teacher", "--weights", file, "--config", config, "--out", tmp_path / "teacher"
        )
        assert says in error_of(result)
        assert not (tmp_path / "teacher").exists()


def test_a_changed_part_is_not_built_upon(
    finished: Any, tmp_path: Path, hwnas: Call, new_config: NewConfig
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished.out, out)
    with (out / "teacher" / "weights.safetensors").open("ab") as file:
        file.write(b"\0")
    said = error_of(hwnas("run", finished.config, "--out", out))
    assert "weights.safetensors was changed after it was made" in said
    (out / "genotype.json").write_text("{}")
    shutil.copytree(finished.out / "teacher", out / "teacher", dirs_exist_ok=True)
    assert "genotype.json" in error_of(hwnas("run", finished.config, "--out", out))


@pytest.mark.parametrize("stage", ["teacher", "search", "train"])
def test_a_loss_that_is_not_finite_stops_the_run(
    stage: str, finished: Any, tmp_path: Path, hwnas: Call, new_config: NewConfig
) -> None:
    table = ("table.path", str(finished.table))
    out = tmp_path / "run"
    broken = new_config(table, (f"{stage}.learning_rate", 1e30))
    said = error_of(hwnas("run", broken, "--out", out))
    assert "epoch 1" in said
    assert stage in said
    assert "learning rate" in said
    folder = "network" if stage == "train" else stage
    assert not (out / folder).exists()
    assert not (out / "summary.json").exists()
    if stage == "train":  # with better settings what is finished is kept
        good = hwnas("run", new_config(table), "--out", out, "--json")
        assert good.exit_code == 0, good.stderr
        assert good.stderr.count("is finished already") == 3


def test_the_last_good_checkpoint_is_kept(
    finished: Any,
    tmp_path: Path,
    hwnas: Call,
    new_config: NewConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    perturb = pgd.perturb
    calls = 0

    def fail_in_the_second_epoch(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        images = perturb(*arguments, **named)
        return images * float("nan") if calls == 5 else images

    out = tmp_path / "teacher"
    call = ("teacher", "--config", finished.config, "--out", out, "--json")
    with monkeypatch.context() as patch:
        patch.setattr(training, "perturb", fail_in_the_second_epoch)
        said = error_of(hwnas(*call))
    assert "the loss of teacher is nan in epoch 2" in said
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.checkpoint"]

    kept = (tmp_path / "teacher.checkpoint").read_bytes()
    other = new_config(("teacher.learning_rate", 1e-4))
    said = error_of(hwnas("teacher", "--config", other, "--out", out))
    assert "learning_rate: 0.005 -> 0.0001" in said
    assert f"delete {tmp_path / 'teacher.checkpoint'}" in said
    assert (tmp_path / "teacher.checkpoint").read_bytes() == kept

    on = hwnas(*call)
    assert on.exit_code == 0, on.stderr
    assert "going on after epoch 1 of 2" in on.stderr
    weights = "weights.safetensors"
    assert (out / weights).read_bytes() == (finished.out / "teacher" / weights).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(finished: Any, tmp_path: Path) -> None:
    """On a real file system without room, in a mount namespace that ends with the command."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=64k tmpfs {place}"
    if subprocess.run([*mounted, mount], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    command = f"{sys.executable} -m hwnas.cli teacher --config {finished.config} --out {place}/t"
    result = subprocess.run(
        [*mounted, f"{mount} && {{ {command}; code=$?; find {place} -type f; exit $code; }}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("error: ") == 1
    assert "cannot be written: No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
