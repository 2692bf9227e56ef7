"""From a device to a verified bundle, in spaces whose blocks are more than widths."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from hwnas.core.artifacts import sha256_of_file
from hwnas.search.records import read_derivation, read_search
from hwnas.space.mbconv.spec import MBConvSpec, MBConvStage
from hwnas.space.spec import SPACES
from tests.hwnas.stages.few_cells import CELLS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

    Call = Callable[..., Result]
    NewConfig = Callable[..., Path]

pytestmark = pytest.mark.slow

FEW = MBConvSpec(
    name="few",
    image_shape=(1, 8, 8),
    classes=10,
    stem=8,
    stem_stride=1,
    stages=(
        MBConvStage(blocks=2, widths=(12, 8)),
        MBConvStage(blocks=2, widths=(16,), stride=2),
    ),
    kernels=(3, 5),
    expansions=(1, 2),
)
# Seconds are enough to see that all parts fit together; nothing is judged on how well it learned.
QUICK = (("search.warmup_epochs", 0), ("search.epochs", 1))


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its settings, its folder, its result."""

    config: Path
    out: Path
    result: dict[str, Any]


@pytest.fixture(scope="module")
def spaces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPACES, FEW.name, FEW)
        patch.setitem(SPACES, CELLS.name, CELLS)
        yield


@pytest.fixture(scope="module", params=["mbconv", "user", "cells"])
def made(
    request: pytest.FixtureRequest,
    spaces: None,
    users_code: Path,
    new_config: NewConfig,
    hwnas: Call,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    name, tutors, gates = {
        "mbconv": (FEW.name, "searched", "soft"),
        "user": (f"user:{users_code}:network", "uniform", "soft"),
        "cells": (CELLS.name, "searched", "mixture"),
    }[request.param]
    config = new_config(
        ("space.name", name), ("search.tutors", tutors), ("search.gates", gates), *QUICK
    )
    out = tmp_path_factory.mktemp(request.param) / "run"
    result = hwnas("run", config, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    return Run(config=config, out=out, result=json.loads(result.stdout))


def test_a_run_ends_in_a_bundle_whose_engine_is_its_twin(made: Run) -> None:
    derivation = read_derivation(made.out / "genotype.json")
    assert made.result["blocks"] == list(derivation.genotype.blocks)
    assert made.result["parity"]["max_abs_diff"] < 1e-3
    assert all(made.result["gates"].values())
    assert made.result["params"] == derivation.params
    assert (made.out / "bundle" / "model.onnx").is_file()


def test_the_network_learns_from_the_tutors_of_the_layers_it_has(made: Run) -> None:
    derivation = read_derivation(made.out / "genotype.json")
    record = read_search(made.out / "search" / "search.json")
    rows = dict(zip(record.student_layers, record.tutor_weights, strict=True))
    assert derivation.tutor_weights == tuple(rows[name] for name in derivation.student_layers)
    assert derivation.selection == record.selection
    assert set(derivation.student_layers) <= set(record.student_layers)


def test_training_begins_with_the_supernets_weights_and_says_what_they_are_worth(
    made: Run, tmp_path: Path, hwnas: Call
) -> None:
    result = json.loads((made.out / "network" / "result.json").read_text())
    assert 0 <= result["initial_accuracy"] <= 1
    data = json.loads((made.out / "config.json").read_text())["data"]["source"]
    call = (
        "train", "--genotype", made.out / "genotype.json", "--teacher", made.out / "teacher",
        "--epochs", 1, "--data", data,
    )  # fmt: skip
    scratch = hwnas(*call, "--out", tmp_path / "scratch", "--json")
    assert scratch.exit_code == 0, scratch.stderr
    assert json.loads(scratch.stdout)["initial_accuracy"] is None
    begun = hwnas(*call, "--search", made.out / "search", "--out", tmp_path / "begun", "--json")
    assert begun.exit_code == 0, begun.stderr
    assert json.loads(begun.stdout)["initial_accuracy"] == result["initial_accuracy"]


def test_the_bundle_is_verified_again(made: Run, hwnas: Call) -> None:
    result = hwnas("verify", made.out / "bundle", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["passed"] is True


def test_its_front_is_derived_from_the_same_search(made: Run, tmp_path: Path, hwnas: Call) -> None:
    result = hwnas(
        "pareto", made.out / "search", "--table", made.out / "table.jsonl", "--out",
        tmp_path / "front", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["complete"] is True


def test_a_second_run_repeats_nothing(made: Run, hwnas: Call) -> None:
    before = sha256_of_file(made.out / "network" / "weights.safetensors")
    again = hwnas("run", made.config, "--out", made.out, "--json")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout) == made.result
    for stage in ("teacher", "search", "derive", "train", "export", "verify", "bundle"):
        assert re.search(rf"^{stage}: .* is finished already$", again.stderr, re.MULTILINE)
    assert sha256_of_file(made.out / "network" / "weights.safetensors") == before


def test_the_report_names_the_blocks(made: Run) -> None:
    page = (made.out / "bundle" / "report.html").read_text()
    blocks = read_derivation(made.out / "genotype.json").genotype.blocks
    assert f"blocks {' '.join(blocks)}" in page.replace("&#43;", "+")
    assert '<figure id="options"' in page


def test_only_a_users_space_needs_its_code_and_says_what_to_do_without_it(
    made: Run, users_code: Path, tmp_path: Path, hwnas: Call
) -> None:
    moved = tmp_path / "moved.py"
    shutil.move(users_code, moved)
    try:
        result = hwnas("verify", made.out / "bundle")
    finally:
        shutil.move(moved, users_code)
    space = read_derivation(made.out / "genotype.json").space
    if space.name in (FEW.name, CELLS.name):
        assert result.exit_code == 0
        return
    assert result.exit_code == 1
    assert result.stderr.count("error:") == 1
    said = " ".join(result.stderr.split())
    assert "is built by code that is not in it" in said
    assert f"{users_code} does not exist" in said
    assert "model.onnx itself runs without it" in said


def test_tutors_of_other_layers_are_refused(made: Run, tmp_path: Path, hwnas: Call) -> None:
    document = json.loads((made.out / "genotype.json").read_text())
    document["student_layers"] = document["student_layers"][1:]
    document["tutor_weights"] = document["tutor_weights"][1:]
    genotype = tmp_path / "genotype.json"
    genotype.write_text(json.dumps(document))
    result = hwnas(
        "train", "--genotype", genotype, "--teacher", made.out / "teacher", "--out",
        tmp_path / "network", "--config", made.config, "--search", made.out / "search",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "has tutors for other layers" in result.stderr
    assert "hwnas derive" in result.stderr
