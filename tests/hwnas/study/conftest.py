from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from sklearn.datasets import load_digits

from hwnas.core.environment import provenance
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas_profilers.records import Measurement, Statistics, TableHeader
from hwnas_profilers.table import TableAppender

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hwnas.study.records import ArmSeed, StudyTable

ARMS = {"base": "the baseline", "better": "more robust, slower", "worse": "slower and no better"}
FIGURES = ("clean", "pixel.worst", "pixel.hrs", "params", "measured_ms")
_MEANS = {"base": (0.8, 0.30, 0.5), "better": (0.78, 0.40, 0.9), "worse": (0.7, 0.28, 1.1)}
_SPREAD = {0: -0.01, 1: 0.0, 2: 0.02}


@pytest.fixture(scope="session")
def made_up() -> Callable[..., list[ArmSeed]]:
    """Make results of arms that never ran."""
    from hwnas.study.records import ArmSeed

    def make(
        seeds: tuple[int, ...] = (0, 1, 2), *, measured: bool = True, images: int = 500
    ) -> list[ArmSeed]:
        found = []
        for arm, (clean, robust, latency_ms) in _MEANS.items():
            for seed in seeds:
                figures = {
                    "clean": clean + _SPREAD[seed],
                    "pixel.worst": robust + _SPREAD[seed] * (2 if arm == "better" else 1),
                    "pixel.hrs": 0.4,
                    "params": 323_000.0,
                }
                if measured:
                    figures["measured_ms"] = latency_ms
                found.append(ArmSeed(arm=arm, seed=seed, figures=figures, images=images))
        return found

    return make


@pytest.fixture(scope="session")
def table_of_arms(made_up: Callable[..., list[ArmSeed]]) -> Callable[..., StudyTable]:
    """Make a table of them."""
    from hwnas.study.table import study_table

    def make(*arguments: Any, **others: Any) -> StudyTable:
        found = made_up(*arguments, **others)
        return study_table(found, arms=ARMS, figures=FIGURES, baseline="base")

    return make


# A space of two searched blocks: it is searched and trained in a second or two.
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
        nn.Conv2d(image_shape[0], 4, 3, padding=1, stride=2),
        Searched({"conv3": conv(3), "conv1": conv(1)}, widths=(8, 4)),
        nn.MaxPool2d(2),
        Searched({"conv3": conv(3), "conv1": conv(1)}, widths=(8, 4)),
        Follows(head(classes)),
    )
"""

STUDY = """
[study]
name = "tiny"
question = "Does anything run?"
seeds = [0, 1]
baseline = "smallest"

[judge]
images = 40
attacks = ["fgsm"]
batch = 20

[[threat]]
name = "pixel"
eps = 0.1
steps = 2

[[threat]]
name = "normalized"
eps = 0.1
steps = 2
protocol = "normalized"
attacks = ["pgd"]

[base]
training_threads = 1

[base.space]
name = "user:{code}:network"

[base.data]
source = "npz:{images}"

[base.budget]
ms = 10.0

[base.threat]
eps = 0.1

[base.table]
path = "{table}"
network_timing = {{ relative_width = 0.2, min_samples = 20, max_samples = 20 }}

[base.teacher]
width = 4
blocks = [1]
epochs = 2
attack_steps = 1
precision = "fp32"

[base.search]
epochs = 2
warmup_epochs = 1
attention_size = 4

[base.train]
epochs = 3
attack_steps = 1
held_out_images = 0

[[arm]]
name = "searched"
description = "what the search finds"

[[arm]]
name = "smallest"
kind = "train"
genotype = "smallest"
settings = {{ search = {{ tutors = "none" }}, train = {{ init = "scratch" }} }}
"""


@pytest.fixture(scope="session")
def new_study(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a study that takes seconds; others of its texts are given as `(old, new)`.

    Its table is of another machine, so that nothing is measured; `here.jsonl` is one of this.
    """
    folder = tmp_path_factory.mktemp("parts")
    code, images, table = folder / "net.py", folder / "digits.npz", folder / "table.jsonl"
    code.write_text(USERS_CODE)
    bunch = load_digits()
    chosen = np.concatenate([np.flatnonzero(bunch.target == label)[:25] for label in range(10)])
    pixels = np.round(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    np.savez(images, images=pixels, labels=bunch.target[chosen].astype(np.int64))
    _write_table(table, f"user:{code}:network", here=False)
    _write_table(folder / "here.jsonl", f"user:{code}:network", here=True)

    def write(*others: tuple[str, str]) -> Path:
        text = STUDY.format(code=code, images=images, table=table)
        for old, new in others:
            assert old in text
            text = text.replace(old, new)
        path: Path = tmp_path_factory.mktemp("study") / "study.toml"
        path.write_text(text)
        return path

    return write


def _write_table(path: Path, name: str, *, here: bool) -> None:
    """Write a table of made-up latencies, as of this device or of another."""
    made = provenance()
    if not here:
        made = replace(made, device=replace(made.device, name="another machine"))
    spec = space_spec(name, image_shape=(1, 8, 8), classes=10)
    space = space_from_spec(spec)
    header = TableHeader(
        target="onnxruntime-cpu",
        space=spec.name,
        space_spec=msgspec.to_builtins(spec),
        space_fingerprint=spec.fingerprint,
        threads=1,
        batch=1,
        dtype="fp32",
        settings={},
        provenance=made,
    )
    with TableAppender(path, header) as table:
        for operator in space.operators():
            median_us = 2.0 + 1e-3 * space.macs_of(operator.key)
            found = Statistics(
                n=60, median_us=median_us, low_us=median_us, high_us=median_us,
                min_us=median_us, p10_us=median_us, p90_us=median_us,
            )  # fmt: skip
            table.append(Measurement(key=operator.key, statistics=found))
