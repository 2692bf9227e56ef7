"""Killed at any moment and run again: nothing is repeated, lost or different."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    NewConfig = Callable[..., Path]
    Hashes = Callable[[Path], dict[str, str]]
    Start = Callable[..., subprocess.Popen[str]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc"),
]

# All that hwnas writes is synced before it is renamed into its place, but for latency tables, which
# are written line by line. So the command line sends itself a signal at the n-th sync of a file, or
# line of a table, whose path holds a text: the worst of moments.
SCRIPT = """
import os, signal, sys

text, number, name, *sys.argv[1:] = sys.argv[1:]
left = int(number)
fsync, pwrite = os.fsync, os.pwrite

def count(file, is_line):
    global left
    path = os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}")
    left -= text in path and is_line == path.endswith(".jsonl")
    if left == 0:
        left = -1
        os.kill(os.getpid(), signal.Signals[name])

def fsync_or_stop(file):
    count(file, False)
    fsync(file)

def pwrite_or_stop(file, *arguments):
    count(file, True)
    return pwrite(file, *arguments)

os.fsync, os.pwrite = fsync_or_stop, pwrite_or_stop
from hwnas.cli.main import main
main()
"""
FINISHED = "is finished already"

# Where, at which time of writing there, by which signal, and what is finished by then.
MOMENTS = [
    ("/.teacher.checkpoint.", 2, "SIGKILL", ()),
    ("/.search.checkpoint.", 2, "SIGINT", ("teacher",)),
    ("/.supernet.safetensors.", 1, "SIGKILL", ("teacher",)),
    ("/.genotype.json.", 1, "SIGKILL", ("teacher", "search")),
    ("/.network.checkpoint.", 2, "SIGINT", ("teacher", "search")),
    ("/.SHA256SUMS.", 1, "SIGKILL", ("teacher", "search", "network")),
    ("/.bundle.", 1, "SIGINT", ("teacher", "search", "network", "engine", "verification")),
]


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """How one interrupted run ended."""

    moment: tuple[str, int, str, tuple[str, ...]]
    exit_code: int
    stdout: str
    stderr: str
    manifests: dict[str, bytes]
    names: list[str]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A run that was stopped again and again, and at last was not."""

    out: Path
    stops: list[Stopped]
    stdout: str
    stderr: str


def manifests_in(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob("[!.]*/manifest.json")}


@pytest.fixture(scope="module")
def chain(
    finished: Any, new_config: NewConfig, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> Chain:
    out = tmp_path_factory.mktemp("chain") / "run"
    config = new_config(("table.path", str(finished.table)))
    stops = []
    for text, number, name, parts in MOMENTS:
        given = (text, number, name, "run", config, "--out", out, "--json")
        process = start(*given, code=SCRIPT, covered=name != "SIGKILL")
        stdout, stderr = process.communicate(timeout=400)
        stops.append(
            Stopped(
                moment=(text, number, name, parts),
                exit_code=process.returncode,
                stdout=stdout,
                stderr=stderr,
                manifests=manifests_in(out),
                names=sorted(path.name for path in out.iterdir()),
            )
        )
    process = start("run", config, "--out", out, "--json")
    stdout, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    return Chain(out=out, stops=stops, stdout=stdout, stderr=stderr)


def test_each_stop_came_where_it_was_meant(chain: Chain) -> None:
    for stop in chain.stops:
        _, _, name, parts = stop.moment
        assert stop.exit_code == (130 if name == "SIGINT" else -signal.SIGKILL), stop
        assert set(stop.manifests) == set(parts), stop
        assert stop.stdout == ""


def test_an_interruption_is_one_line(chain: Chain) -> None:
    for stop in chain.stops:
        if stop.moment[2] == "SIGINT":
            assert stop.stderr.count("interrupted") == 1
            assert "the same command goes on from there" in stop.stderr.splitlines()[-1]
            assert "Traceback" not in stop.stderr
            assert not [name for name in stop.names if name.endswith(".part")]


def test_finished_stages_are_not_repeated(chain: Chain) -> None:
    last = manifests_in(chain.out)
    for stop in chain.stops:
        for name, manifest in stop.manifests.items():
            assert last[name] == manifest, (stop.moment, name)
    for stage in ("teacher", "search", "derive", "train", "export", "verify"):
        assert f"{stage}: " in chain.stderr
    assert chain.stderr.count(FINISHED) == 6


def test_the_stage_under_way_goes_on(chain: Chain) -> None:
    after = {stop.moment[:2]: following.stderr for stop, following in _pairs(chain)}
    assert "teacher: going on after epoch 1 of 2" in after["/.teacher.checkpoint.", 2]
    assert "search: going on after epoch 1 of 2" in after["/.search.checkpoint.", 2]
    assert "train: going on after epoch 1 of 6" in after["/.network.checkpoint.", 2]


def test_the_result_is_that_of_a_run_without_interruptions(
    chain: Chain, finished: Any, hashes_in: Hashes
) -> None:
    ours, theirs = hashes_in(chain.out), hashes_in(finished.out)
    for name in (
        "teacher/weights.safetensors",
        "search/supernet.safetensors",
        "search/search.json",
        "network/weights.safetensors",
        "bundle/weights.safetensors",
        "bundle/model.onnx",
    ):
        assert ours[name] == theirs[name], name
    ends = [json.loads((out / "genotype.json").read_text()) for out in (chain.out, finished.out)]
    for key in ("genotype", "space", "tutor_weights", "predicted_ms", "table_sha256"):
        assert ends[0][key] == ends[1][key]
    results = [json.loads(chain.stdout), json.loads(finished.stdout)]
    for result in results:
        for key in ("measured_ms", "bundle", "report"):
            del result[key]
    assert results[0] == results[1]


def test_nothing_temporary_is_left(chain: Chain) -> None:
    assert any(name.endswith(".part") for stop in chain.stops for name in stop.names)
    assert not list(chain.out.rglob(".*"))
    assert not list(chain.out.glob("*.checkpoint"))


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_profiling_goes_on_with_the_table(
    name: str, start: Start, users_code: Path, tmp_path: Path, hwnas: Callable[..., Any]
) -> None:
    table = tmp_path / "table.jsonl"
    arguments = (
        "profile", "--space", f"user:{users_code}:network", "--target", "torch-cpu",
        "--relative-width", 0.3, "--max-samples", 20, "--out", table, "--json",
    )  # fmt: skip
    given = ("table.jsonl", 6, name, *arguments)
    process = start(*given, code=SCRIPT, covered=name != "SIGKILL")
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == (130 if name == "SIGINT" else -signal.SIGKILL), stderr
    before = table.read_bytes()
    assert before.count(b"\n") in (5, 6)  # stopped at the sixth, which was not yet safe
    again = hwnas(*arguments)
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["operators"] == 11
    assert re.search(
        r"\d of 11 operators and \d of \d+ pairs of neighbors are measured already", again.stderr
    )
    assert table.read_bytes().startswith(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.jsonl"]


def test_a_process_group_killed_from_outside_while_training(
    finished: Any, new_config: NewConfig, start: Start, tmp_path: Path, hwnas: Callable[..., Any]
) -> None:
    """No hook in the process: killed whenever the first checkpoint of a long training is seen."""
    out = tmp_path / "teacher"
    config = new_config(("teacher.epochs", 20))
    with start("teacher", "--config", config, "--out", out, covered=False) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "teacher.checkpoint").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    on = hwnas("teacher", "--config", config, "--out", out, "--json")
    assert on.exit_code == 0, on.stderr
    assert "teacher: going on after epoch" in on.stderr
    whole = hwnas("teacher", "--config", config, "--out", tmp_path / "whole", "--json")
    assert whole.exit_code == 0
    weights = [folder / "weights.safetensors" for folder in (out, tmp_path / "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["teacher", "whole"]


@pytest.mark.parametrize("delay_s", [0.2, 0.9])
def test_ctrl_c_while_networks_are_exported(delay_s: float, start: Start, tmp_path: Path) -> None:
    """PyTorch's exporter takes any exception for one of its own failures."""
    arguments = ("--space", "rnas-cl-xs", "--target", "onnxruntime-cpu", "--out", tmp_path / "t")
    with start("profile", *arguments) as process:
        assert process.stderr is not None
        while "exporting: " not in (line := process.stderr.readline()):
            assert line, "it ended before it exported"
        time.sleep(delay_s)
        os.kill(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=200)
    # Where it met text that is run by `exec`, as dataclasses are made, CPython itself ends the
    # process by the signal after all is said: a shell says 130 of both.
    assert process.returncode in (130, -signal.SIGINT), stderr
    assert stderr.splitlines() == [
        "error: interrupted; what was finished is kept: the same command goes on from there"
    ]


def _pairs(chain: Chain) -> list[tuple[Stopped, Stopped]]:
    return list(zip(chain.stops, chain.stops[1:], strict=False))
