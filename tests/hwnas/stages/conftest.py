"""One small real run, made once, and ways to call the command line on its parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click.testing
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from hwnas.cli.main import cli
from hwnas.core.artifacts import sha256_of_file
from hwnas.data.sources import DataConfig, load_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import nn

    NewConfig = Callable[..., Path]
    Start = Callable[..., subprocess.Popen[str]]

QUICK = {"relative_width": 0.1, "min_samples": 20, "max_samples": 30}
# Small enough to take seconds. The networks are hardly trained: gates that judge how well attacks
# work on them, and how long they take on a busy machine, are widened; parity stays as it is.
SETTINGS: dict[str, Any] = {
    "seed": 0,
    "target": {"name": "onnxruntime-cpu", "threads": 1},
    "space": {"name": "rnas-cl-xs"},
    "data": {"source": "npz:?"},
    # So loose that no measurement makes `derive` tighten it: the same genotype each time.
    "budget": {"ms": 10.0},
    "threat": {"eps": 0.1, "steps": 2},
    "table": {"networks": 3, "holdout": 3, "timing": QUICK, "network_timing": QUICK},
    "teacher": {"width": 8, "blocks": [1, 1], "epochs": 2, "attack_steps": 1},
    "search": {"epochs": 2, "warmup_epochs": 1, "attention_size": 4},
    # In fewer steps the statistics of batch normalization stay near their first values, where so
    # deep a network gives the same logits for all images.
    "train": {"epochs": 6, "attack_steps": 1},
    "verify": {
        "square_queries": 30,
        "square_samples": 50,
        "adaptive_samples": 32,
        "adaptive_steps": 5,
        "masking_samples": 32,
        "throughput_batches": [1, 8],
        "tolerances": {
            "black_box_gap_points": 100.0,
            "square_gap_points": 100.0,
            "rise_points": 100.0,
            "latency_over_budget": 10.0,
        },
    },
}


USERS_CODE = """
from torch import nn

from hwnas.space.user.parts import Follows, Searched


def conv(kernel):
    return lambda width_in, width_out: nn.Sequential(
        nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width_out),
        nn.ReLU(),
    )


def head(classes):
    return lambda width: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )


def network(image_shape=(1, 8, 8), classes=10):
    return nn.Sequential(
        nn.Conv2d(image_shape[0], 8, 3, padding=1),
        Searched({"conv5": conv(5), "conv3": conv(3)}, widths=(12, 8)),
        nn.MaxPool2d(2),
        Searched({"conv3": conv(3), "nothing": None}),
        Follows(head(classes)),
    )
"""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that went from the device to the bundle without interruption."""

    config: Path
    out: Path
    table: Path
    stdout: str
    stderr: str

    @property
    def bundle(self) -> Path:
        return self.out / "bundle"


@pytest.fixture(scope="session", autouse=True)
def one_thread_here() -> Iterator[None]:
    """Two threads that share a busy core wait for each other; these networks need only one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def new_images(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a file of real digits, 8x8."""
    folder = tmp_path_factory.mktemp("images")
    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)

    def write(name: str = "digits", *, classes: int = 10, each: int = 30) -> Path:
        chosen = np.concatenate(
            [np.flatnonzero(bunch.target == label)[:each] for label in range(classes)]
        )
        path: Path = folder / f"{name}.npz"
        labels = bunch.target[chosen].astype(np.int64)
        np.savez(path, images=images[chosen], labels=labels)
        return path

    return write


@pytest.fixture(scope="session")
def that_knows_digits() -> Callable[..., nn.Module]:
    """Build a network and train it, in a second, to know the digits, 16x16; in eval mode."""

    def train(build: Callable[[], nn.Module], *, steps: int) -> nn.Module:
        data = load_data(DataConfig())
        pixels, labels = data.train.pixels(), data.train.labels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build()
            optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
            for _ in range(steps):
                rows = torch.randint(len(labels), (128,))
                loss = functional.cross_entropy(network(pixels[rows]), labels[rows])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
        return network.eval()

    return train


@pytest.fixture(scope="session")
def users_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a user's own space: `user:FILE:network`."""
    path = tmp_path_factory.mktemp("code") / "users_net.py"
    path.write_text(USERS_CODE)
    return path


@pytest.fixture(scope="session")
def digits_file(new_images: Callable[..., Path]) -> Path:
    return new_images()


@pytest.fixture(scope="session")
def new_config(digits_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a run's settings; others are given as `("teacher.epochs", 3)`, None removes one."""

    def write(*others: tuple[str, Any]) -> Path:
        settings = json.loads(json.dumps(SETTINGS))
        settings["data"]["source"] = f"npz:{digits_file}"
        for name, value in others:
            *sections, key = name.split(".")
            place = settings
            for section in sections:
                place = place.setdefault(section, {})
            if value is None:
                del place[key]
            else:
                place[key] = value
        path: Path = tmp_path_factory.mktemp("config") / "config.toml"
        path.write_text("\n".join(_toml_lines(settings)) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def hwnas() -> Callable[..., click.testing.Result]:
    """Call the command line in this process."""

    def call(*arguments: object) -> click.testing.Result:
        texts = [str(argument) for argument in arguments]
        return click.testing.CliRunner().invoke(cli, texts, prog_name="hwnas")

    return call


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start the command line in a process, and a process group, of its own.

    Coverage of one that will be killed is lost, so it need not be measured.
    """

    def begin(*arguments: object, code: str = "", covered: bool = True) -> subprocess.Popen[str]:
        what = ["-c", code] if code else ["-m", "hwnas.cli"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if not covered:
            environment.pop("COVERAGE_PROCESS_CONFIG", None)
        return subprocess.Popen(
            [sys.executable, *what, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment,
        )

    return begin


@pytest.fixture(scope="session")
def finished(
    new_config: NewConfig, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    out = tmp_path_factory.mktemp("finished") / "run"
    config = new_config()
    process = start("run", config, "--out", out, "--json")
    stdout, stderr = process.communicate(timeout=540)
    assert process.returncode == 0, stderr
    return Finished(
        config=config,
        out=out,
        table=out / "table.jsonl",
        stdout=stdout,
        stderr=stderr,
    )


@pytest.fixture(scope="session")
def hashes_in() -> Callable[[Path], dict[str, str]]:
    """Return the hash of every file below a folder; nothing where there is none."""

    def hashes(folder: Path) -> dict[str, str]:
        return {
            file.relative_to(folder).as_posix(): sha256_of_file(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }

    return hashes


def _toml_lines(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Plain values are written alike in JSON and TOML; a table's own come before its tables."""
    for key, value in table.items():
        if not isinstance(value, dict):
            yield f"{key} = {json.dumps(value)}"
    for key, value in table.items():
        if isinstance(value, dict):
            yield f"[{prefix}{key}]"
            yield from _toml_lines(value, f"{prefix}{key}.")
