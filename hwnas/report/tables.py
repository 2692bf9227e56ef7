"""The page's tables as rows of text, for the template to lay out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.artifacts import MANIFEST, sha256_of_file
from hwnas.report.numbers import DASH, count, fixed, interval, large, number, percent
from hwnas.report.run_files import GENOTYPE_FILE

if TYPE_CHECKING:
    from hwnas.report.numbers import TimeUnit
    from hwnas.report.run_files import RunFiles
    from hwnas.robustness.evaluate import Accuracy
    from hwnas.robustness.threat import ThreatModel
    from hwnas.search.records import Derivation
    from hwnas.space.genotype import Genotype
    from hwnas.verify.gates import Gate
    from hwnas.verify.records import Verification
    from hwnas_profilers.records import ErrorFigures

PREDICTORS = {
    "sum": "plain sum",
    "seams": "sum less seams",
    "sum_affine": "sum, affine fit",
    "sum_count_affine": "sum and count, affine fit",
    "macs_affine": "MACs, affine fit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A figure with its name and what else must be known of it."""

    name: str
    value: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """A gate as shown."""

    name: str
    passed: bool
    figure: str
    bound: str
    unit: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyRow:
    """An accuracy of twin and engine as shown."""

    name: str
    n: int
    twin: str
    twin_interval: str
    engine: str
    engine_interval: str


def facts(run: RunFiles, unit: TimeUnit) -> list[Fact]:
    """Return the figures that go before all others."""
    derivation, found = run.derivation, run.verification
    budget_ms, latency = derivation.budget_ms, found.latency
    clean, robust, box = found.clean_accuracy.engine, found.robust_accuracy.engine, found.black_box
    measured = Fact(name="Measured latency", value=DASH, note="not measured when verified")
    if latency is not None:
        over = latency.median_us / 1e3 / budget_ms - 1
        measured = Fact(
            name="Measured latency",
            value=unit.text_us(latency.median_us),
            note=f"95 % interval {fixed(unit.value_us(latency.low_us), 1)}{DASH}"
            f"{unit.text_us(latency.high_us)}, n = {latency.n}; "
            f"{percent(abs(over))} {'over' if over > 0 else 'under'} budget"
            f"{_tail_and_throughput(found, unit)}",
        )
    return [
        measured,
        Fact(
            name="Budget",
            value=unit.text_ms(budget_ms),
            note=f"predicted by the table{_estimated(derivation)}: "
            f"{unit.text_ms(derivation.predicted_ms)}; "
            f"measured when derived: {unit.text_ms(derivation.measured_ms)}",
        ),
        Fact(
            name="Clean accuracy",
            value=percent(clean.value),
            note=f"95 % interval {interval(clean)}, n = {clean.n}",
        ),
        Fact(
            name="Robust accuracy",
            value=percent(robust.value),
            note=f"PGD-{found.threat.steps} at eps {eps_text(found.threat)}: {interval(robust)}, "
            f"n = {robust.n}",
        ),
        Fact(
            name="Black-box worst case",
            value=percent(box.worst_case.value),
            note=f"replay and Square on the engine: {interval(box.worst_case)}, "
            f"n = {box.worst_case.n}",
        ),
        Fact(
            name="Size",
            value=f"{large(derivation.params)} parameters",
            note=_size(derivation),
        ),
    ]


def _tail_and_throughput(found: Verification, unit: TimeUnit) -> str:
    if found.speed is None:
        return ""
    tail, batches = found.speed.tail, found.speed.throughput
    rates = ", ".join(f"{large(round(each.images_per_s))} ({each.batch})" for each in batches)
    return (
        f"; 99 % of {tail.n} single calls within {unit.text_us(tail.p99_us)}; images per second "
        f"(batch): {rates}"
    )


def _estimated(derivation: Derivation) -> str:
    used = derivation.estimated
    return f" (with {used.operators} operators estimated, not measured)" if used else ""


def _size(derivation: Derivation) -> str:
    """Say what the network takes besides time, each beside its budget where it has one."""
    budgets, found = derivation.budgets, derivation.resources
    said = [f"{large(derivation.macs)} multiply-accumulates per image"]
    if budgets.macs_m is not None:
        said[0] += f" of {large(round(1e6 * budgets.macs_m))}"
    if budgets.params_k is not None:
        said.insert(0, f"of {large(round(1e3 * budgets.params_k))} parameters allowed")
    if found is not None:
        rows = (
            ("weights", found.weights_kib, budgets.weights_kib, "KiB"),
            ("peak of activations", found.memory_kib, budgets.memory_kib, "KiB"),
            ("energy, uncalibrated sum", found.uncalibrated_energy_mj, budgets.energy_mj, "mJ"),
        )
        said += [
            f"{name} {number(value)} {unit}"
            + (f" of {number(budget)} {unit}" if budget is not None else "")
            for name, value, budget, unit in rows
            if value is not None
        ]
    return "; ".join(said)


def eps_text(threat: ThreatModel) -> str:
    """Write the bound as it was configured, and in pixel units where that is something else."""
    pixels = number(threat.eps_pixels)
    return pixels if isinstance(threat.eps, float) else f"{threat.eps} ({pixels})"


def accuracy_rows(run: RunFiles) -> list[AccuracyRow]:
    """Return the accuracies of twin and engine."""
    found = run.verification
    threat, box = found.threat, found.black_box
    attack = f"PGD-{threat.steps}, {threat.restarts} restart{'s' * (threat.restarts > 1)}"
    queries = found.settings.square_queries
    rows = [
        _accuracy_row("clean", found.clean_accuracy.twin, found.clean_accuracy.engine),
        _accuracy_row(
            f"{attack}: crafted on the twin, replayed on the engine",
            found.robust_accuracy.twin,
            found.robust_accuracy.engine,
        ),
        _accuracy_row(f"Square, up to {queries} queries per image", None, box.square),
        _accuracy_row("worst case over replay and Square", None, box.worst_case),
    ]
    if found.adaptive is not None:
        own = found.adaptive
        made = f"replay, then APGD-{own.steps} made for each, by the gradients of {own.gradients}"
        rows += [
            _accuracy_row(made, own.twin, own.adaptive),
            _accuracy_row("worst case over all attacks", None, own.worst_case),
        ]
    return rows


def _accuracy_row(name: str, twin: Accuracy | None, engine: Accuracy) -> AccuracyRow:
    return AccuracyRow(
        name=name,
        n=engine.n,
        twin=DASH if twin is None else percent(twin.value),
        twin_interval="" if twin is None else interval(twin),
        engine=percent(engine.value),
        engine_interval=interval(engine),
    )


def gate_rows(run: RunFiles) -> list[GateRow]:
    """Return the gates, failed ones first."""
    gates = sorted(run.verification.gates, key=lambda gate: gate.passed)
    return [_gate_row(gate) for gate in gates]


def _gate_row(gate: Gate) -> GateRow:
    # Shares near 1 are read as percents; tiny ones, such as a relative norm, are not.
    is_share = gate.unit.startswith("of ") and gate.tolerance >= 1e-3
    text = percent if is_share else number
    return GateRow(
        name=gate.name.replace("_", " "),
        passed=gate.passed,
        figure=text(gate.figure),
        bound=f"{'≤' if gate.relation == 'at most' else '≥'} {text(gate.tolerance)}",
        unit=gate.unit,
        meaning=gate.meaning,
    )


def predictor_rows(run: RunFiles) -> list[tuple[str, ...]]:
    """Return the held-out errors of our predictor and of the simpler ones."""
    calibration = run.table.calibration
    if calibration is None:
        return []
    return [
        _error_row("calibrated (used)", calibration.holdout),
        *(
            _error_row(PREDICTORS.get(name, name), errors)
            for name, errors in sorted(
                calibration.baselines.items(), key=lambda item: item[1].mape_percent
            )
        ),
    ]


def _error_row(name: str, errors: ErrorFigures) -> tuple[str, ...]:
    return (
        name,
        fixed(errors.mape_percent, 2),
        fixed(errors.spearman, 3),
        fixed(errors.kendall, 3),
        fixed(errors.within_5_percent, 0),
        fixed(errors.within_10_percent, 0),
    )


def masking_rows(run: RunFiles) -> list[tuple[str, str, str]]:
    """Return the checks of the attack itself: what was varied, the figure, what it must do."""
    signs = run.verification.masking
    if signs is None:
        return []
    steps = run.verification.threat.steps
    return [
        (f"the attack itself, {steps} steps", percent(signs.attacked), "the reference"),
        (f"{2 * steps} steps", percent(signs.more_steps), "must not rise"),
        ("twice the eps", percent(signs.larger_eps), "must not rise"),
        ("eps 0.5", percent(signs.unbounded), f"at most {percent(signs.majority)} (guessing)"),
        ("loss under attack", fixed(signs.attacked_loss, 3), "must exceed that of noise"),
        ("loss under random noise", fixed(signs.noise_loss, 3), "the reference"),
    ]


def device_rows(run: RunFiles) -> list[tuple[str, str]]:
    """Return where and with what the run was made."""
    made = run.manifests["verification"].provenance
    device, header = made.device, run.table.header
    measured = header.provenance
    code = made.git_commit[:12] + (" (edited)" if made.git_dirty else "")
    memory = f", {device.memory_mib / 1024:.0f} GiB" if device.memory_mib else ""
    threads = f"{header.threads} thread{'s' * (header.threads > 1)}"
    channels, height, width = run.card.image_shape
    classes = ", ".join(run.card.class_names[:20])
    more = len(run.card.class_names) - 20
    return [
        ("Device", f"{device.name}, {device.machine}, {device.cores} cores{memory}"),
        ("System", f"{device.system}, frequency governor {device.governor or 'not readable'}"),
        ("Target", f"{header.target}, {threads}, batch {header.batch}, {header.dtype}"),
        ("Table measured", f"{measured.utc} on {measured.device.name}"),
        ("Engine verified", made.utc),
        ("hwnas", f"{made.hwnas}{f', commit {code}' if code else ''}"),
        (
            "Libraries",
            ", ".join([f"Python {made.python}", *(f"{k} {v}" for k, v in made.packages.items())]),
        ),
        ("ONNX opset", str(run.card.opset)),
        (
            "Data",
            f"{run.card.data.source}, {channels}×{height}×{width} pixels, "  # noqa: RUF001
            f"{len(run.card.class_names)} classes: {classes}{f' and {more} more' * (more > 0)}",
        ),
        ("Space", f"{header.space}, {_network_text(run.derivation.genotype)}"),
        ("Teacher", f"{count(run.teacher.params)} parameters"),
        ("Seed", str(run.card.seed)),
    ]


def _network_text(genotype: Genotype) -> str:
    """Say what each block is."""
    return f"{'blocks' if genotype.blocks else 'widths'} {genotype.label}"


def hash_rows(run: RunFiles) -> list[tuple[str, str]]:
    """Return the SHA-256 of what the figures stand on."""
    engine = run.manifests["engine"].outputs
    return [
        *((f"engine/{name}", engine[name]) for name in sorted(engine)),
        (run.table.path.name, run.derivation.table_sha256),
        (GENOTYPE_FILE, sha256_of_file(run.path / GENOTYPE_FILE)),
        *(
            (f"{name}/{MANIFEST}", sha256_of_file(run.path / name / MANIFEST))
            for name in run.manifests
        ),
    ]


def unchecked(run: RunFiles) -> list[str]:
    """Say, in short, what this page's figures do not tell."""
    found, header = run.verification, run.table.header
    threat, box = found.threat, found.black_box
    lines = [
        f"One target on one machine: {header.target}, batch {header.batch}, "
        f"{header.threads} thread{'s' * (header.threads > 1)}, on {header.provenance.device.name}. "
        "Latency elsewhere is not known.",
        f"Robustness is an upper bound: {threat.norm} only, PGD-{threat.steps} on the twin, "
        f"Square with up to {count(found.settings.square_queries)} queries on {box.square.n} "
        f"images ({count(box.queries)} asked in all). No AutoAttack, no other norm, no attack "
        "made for this network.",
        f"One seed ({run.card.seed}): how far another one would come out is not known. Intervals "
        "are over test images, not over trainings.",
    ]
    derived_ms = run.derivation.measured_ms
    if derived_ms is not None and found.latency is not None:
        gap = found.latency.median_us / 1e3 / derived_ms - 1
        lines.append(
            f"Latency drifts: the network took {percent(abs(gap))} {'more' if gap > 0 else 'less'} "
            "when verified than when derived. An interval holds within its own session only."
        )
    if not header.provenance.device.governor:
        lines.append("The processor's clock could not be read, so it may have changed on the way.")
    if run.table.calibration is None:
        lines.append(
            "The table is not calibrated: predictions are plain sums of operators, "
            "of unknown error."
        )
    if found.masking is None:
        lines.append("The attack was not checked for gradient masking.")
    return lines
