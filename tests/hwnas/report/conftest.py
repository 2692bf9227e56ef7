"""A small run folder, made by code: what `hwnas run` leaves behind, with invented figures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch

from hwnas.core.artifacts import (
    MANIFEST,
    ManifestDraft,
    new_artifact,
    sha256_of_file,
    write_atomically,
)
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance
from hwnas.data.sources import DataConfig
from hwnas.distill.tutors import fixed_tutors
from hwnas.latency.calibration import calibration_record
from hwnas.report.page import page_from_run
from hwnas.robustness.evaluate import Accuracy
from hwnas.robustness.threat import ThreatModel
from hwnas.search.budget import Budgets
from hwnas.search.records import Derivation, SearchRecord
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import ChannelSpec, StageSpec
from hwnas.verify.gates import Gate, at_least, at_most
from hwnas.verify.masking import MaskingSigns
from hwnas.verify.parity import Parity
from hwnas.verify.verification import BlackBox, TwinAndEngine, Verification, VerifySettings
from hwnas_profilers.records import Measurement, NetworkMeasurement, Statistics, TableHeader
from hwnas_profilers.table import TableAppender

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hwnas.distill.tutors import TutorSelection
    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.genotype import Genotype

    NewRun = Callable[..., Path]

SPEC = ChannelSpec(
    name="tiny",
    image_shape=(1, 8, 8),
    classes=3,
    stem=8,
    stem_stride=1,
    stages=(StageSpec(blocks=1, widths=(8, 4)), StageSpec(blocks=1, widths=(16, 8), stride=2)),
)
SPACE = ChannelSpace(SPEC)
TEACHER_LAYERS = ("stem", "blocks.0")
GATES = (
    at_most("finite_logits", 0, 0, unit="images", meaning="the engine gives NaN"),
    at_least("agreement", 0.999, 0.995, unit="of clean images", meaning="it decides otherwise"),
    at_most("latency", -0.1, 0.05, unit="of the budget above it", meaning="it takes too long"),
)
MASKING = MaskingSigns(
    n=20,
    attacked=0.6,
    more_steps=0.55,
    larger_eps=0.2,
    unbounded=0.0,
    majority=0.4,
    attacked_loss=1.2,
    noise_loss=0.3,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a test's run is like."""

    gates: tuple[Gate, ...] = GATES
    class_names: tuple[str, ...] = ("zero", "one", "two")
    calibrated: bool = True
    measured_when_derived: bool = True
    latency: bool = True
    masking: MaskingSigns | None = MASKING
    teacher_trained: bool = True
    initial_accuracy: float | None = None
    square_samples: int = 100
    threat: ThreatModel = field(default_factory=lambda: ThreatModel(eps=0.1, steps=10))
    space: ChainSpace = SPACE
    choices: tuple[int, ...] = (0, 1)
    log_probabilities: tuple[tuple[float, ...], ...] = (
        (math.log(0.7), math.log(0.3)),
        (math.log(0.4), math.log(0.6)),
    )
    selection: TutorSelection = "searched"
    budgets: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    scale: float = 1.0
    networks: int = 5
    curvature_per_us: float = 0.0
    elsewhere: Path | None = None
    teacher_layers: tuple[str, ...] = TEACHER_LAYERS
    governor: str = ""


def statistics(median_us: float) -> Statistics:
    return Statistics(
        n=60,
        median_us=median_us,
        low_us=0.99 * median_us,
        high_us=1.01 * median_us,
        min_us=0.95 * median_us,
        p10_us=0.97 * median_us,
        p90_us=1.05 * median_us,
    )


def _write_table(path: Path, case: Case) -> None:
    made = provenance()
    made = replace(made, device=replace(made.device, governor=case.governor))
    header = TableHeader(
        target="onnxruntime-cpu",
        space=case.space.spec.name,
        space_spec=msgspec.to_builtins(case.space.spec),
        space_fingerprint=case.space.spec.fingerprint,
        threads=1,
        batch=1,
        dtype="fp32",
        settings={},
        provenance=made,
    )
    space = case.space
    keys = [operator.key for operator in space.operators()]
    isolated_us = case.scale * np.array([3.0 + 1e-3 * space.macs_of(key) for key in keys])
    generator = np.random.default_rng(0)

    def measured(genotype: Genotype, index: int) -> tuple[Any, NetworkMeasurement]:
        operators = space.operators_of(genotype)
        counts = np.array([operators.count(key) for key in keys], dtype=np.float64)
        median = float(counts @ isolated_us) * (0.9 + 0.01 * math.sin(index)) - 2 * case.scale
        median *= 1 + case.curvature_per_us * median
        return counts, NetworkMeasurement(
            choices=space.choices(genotype),
            macs=space.macs(genotype),
            statistics=statistics(median),
            first_us=median,
            second_us=1.01 * median,
        )

    with TableAppender(path, header) as table:
        for key, latency_us in zip(keys, isolated_us, strict=True):
            table.append(Measurement(key=key, statistics=statistics(float(latency_us))))
        if not case.calibrated:
            return
        drawn = [
            measured(space.random_genotype(generator), index) for index in range(2 * case.networks)
        ]
        fit, holdout = drawn[: case.networks], drawn[case.networks :]
        table.append(
            calibration_record(
                keys=keys,
                isolated_us=isolated_us,
                prior_us=isolated_us,
                weights_bytes=np.ones_like(isolated_us),
                counts=np.stack([counts for counts, _ in fit]),
                networks=[network for _, network in fit],
                holdout_counts=np.stack([counts for counts, _ in holdout]),
                holdout_networks=[network for _, network in holdout],
                seed=0,
                utc="2026-01-01T00:00:00+00:00",
            )
        )


def _trained(robust: float) -> dict[str, Any]:
    return {
        "params": 1234,
        "macs": 5678,
        "clean_accuracy": 0.95,
        "robust_accuracy": robust,
        "n": 50,
        "eps": 0.1,
        "steps": 10,
    }


def _epochs(count: int) -> list[dict[str, float]]:
    return [
        {"loss": 2.0 / epoch, "validation_accuracy": 1 - 0.5 / epoch}
        for epoch in range(1, count + 1)
    ]


def _search_history(budget_ms: float, figures: dict[str, float]) -> list[dict[str, float]]:
    return [
        {
            "loss": 2.0 / (epoch + 1),
            **({"choice_loss": 1.0 / (epoch + 1)} if epoch else {}),
            "expected_ms": budget_ms * (1.1 - 0.05 * epoch),
            "entropy": 0.7,
            "temperature": 5.0 / (epoch + 1),
            "multiplier": 0.0,
            **{name: value * (1.2 - 0.05 * epoch) for name, value in figures.items()},
        }
        for epoch in range(4)
    ]


def _tutors(
    selection: TutorSelection, students: int, teachers: int
) -> tuple[tuple[float, ...], ...]:
    generator = torch.Generator().manual_seed(0)
    if selection == "searched":
        logits = 1.5 * torch.randn(students, teachers, generator=generator)
        found = torch.softmax(logits, dim=1)
    else:
        found = fixed_tutors(selection, students, teachers, generator)
    return tuple(tuple(row) for row in found.tolist())


def make_run(run: Path, case: Case) -> Path:
    """Write the folder of a run that has reached its verification."""
    table = case.elsewhere or run / "table.jsonl"
    _write_table(table, case)
    budget_ms = 0.05 * case.scale
    config = {
        "seed": 0,
        "table": {"path": str(case.elsewhere or ""), "networks": 5},
        "budget": {"ms": budget_ms, "fraction": None},
    }
    write_atomically(run / "config.json", encode_json(config, indent=2))

    def folder(name: str, kind: str, files: dict[str, object], **inputs: str) -> None:
        draft = ManifestDraft(kind=kind, call=f"hwnas.api.{kind}()", inputs=inputs)
        with new_artifact(run / name, draft) as new:
            for file, value in files.items():
                (new / file).write_bytes(encode_json(value, indent=2))

    epochs = _epochs(3 if case.teacher_trained else 0)
    folder("teacher", "teacher", {"result.json": _trained(0.7), "history.json": epochs})
    space = case.space
    genotype = space.genotype_of_choices(case.choices)
    layers = space.supernet().tap_names
    record = SearchRecord(
        space=space.spec,
        target="onnxruntime-cpu",
        budget_ms=budget_ms,
        expected_ms=0.9 * budget_ms,
        budgets=Budgets(latency_ms=budget_ms, **case.budgets),
        log_probabilities=case.log_probabilities,
        tutor_probabilities=_tutors(case.selection, len(layers), len(case.teacher_layers)),
        selection=case.selection,
        student_layers=layers,
        teacher_layers=case.teacher_layers,
        attention_size=4,
        seed=0,
    )
    history = _search_history(budget_ms, case.figures)
    folder("search", "search", {"search.json": record, "history.json": history})
    layers = space.network(genotype).tap_names
    derivation = Derivation(
        genotype=genotype,
        space=space.spec,
        target="onnxruntime-cpu",
        threads=1,
        budget_ms=budget_ms,
        predicted_ms=0.8 * budget_ms,
        measured_ms=0.82 * budget_ms if case.measured_when_derived else None,
        macs=space.macs(genotype),
        params=space.parameters(genotype),
        student_layers=layers,
        teacher_layers=case.teacher_layers,
        tutor_weights=record.tutor_weights_of(layers),
        selection=case.selection,
        attention_size=4,
        attempts=(),
        table_sha256=sha256_of_file(table),
        search_sha256=sha256_of_file(run / "search" / "search.json"),
    )
    write_atomically(run / "genotype.json", encode_json(derivation, indent=2))
    trained = _trained(0.65) | {"initial_accuracy": case.initial_accuracy}
    folder("network", "train", {"result.json": trained, "history.json": _epochs(4)})
    card = {
        "opset": 20,
        "image_shape": space.spec.image_shape,
        "class_names": case.class_names,
        "data": DataConfig(),
        "seed": 0,
        "target": "onnxruntime-cpu",
    }
    folder("engine", "export", {"card.json": card})
    clean, robust = Accuracy.from_counts(95, 100), Accuracy.from_counts(60, 100)
    n = case.square_samples
    verification = Verification(
        engine="onnxruntime-cpu",
        threat=case.threat,
        parity=Parity(
            n=100,
            max_abs_diff=None,
            relative_l2=None,
            agreement=1.0,
            margin_drift_p99=None,
            nonfinite=1,
            distinct_logits_twin=300,
            distinct_logits_engine=300,
            tie_rate=0.0,
        ),
        clean_accuracy=TwinAndEngine(twin=clean, engine=clean),
        robust_accuracy=TwinAndEngine(twin=robust, engine=Accuracy.from_counts(59, 100)),
        adversarial_agreement=0.99,
        black_box=BlackBox(
            replay=Accuracy.from_counts(59 * n // 100, n),
            square=Accuracy.from_counts(62 * n // 100, n),
            worst_case=Accuracy.from_counts(57 * n // 100, n),
            queries=12345,
        ),
        masking=case.masking,
        budget_ms=budget_ms,
        latency=statistics(0.9e3 * budget_ms) if case.latency else None,
        settings=VerifySettings(),
        gates=case.gates,
    )
    engine = sha256_of_file(run / "engine" / MANIFEST)
    folder("verification", "verify", {"verification.json": verification}, engine=engine)
    return run


@pytest.fixture(scope="session")
def passed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose gates were all passed. Not to be changed."""
    return make_run(tmp_path_factory.mktemp("runs") / "passed", Case())


@pytest.fixture(scope="session")
def passed_page(passed_run: Path) -> str:
    return page_from_run(passed_run)


@pytest.fixture
def new_run(tmp_path: Path) -> NewRun:
    """Make a run of the test's own: `new_run(latency=False)`."""
    return lambda **changes: make_run(tmp_path / "run", Case(**changes))
