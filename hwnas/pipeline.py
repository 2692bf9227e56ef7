"""`hwnas run`: the stages composed; resumable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from hwnas.search.budget import Budgets
    from hwnas.space.chain_space import ChainSpace
    from hwnas.stages.config import RunConfig
    from hwnas.stages.verify import VerifyResult
    from hwnas.verify.verification import Verification
    from hwnas_profilers.table import LatencyTable

TABLE_FILE = "table.jsonl"
TEACHER = "teacher"
SEARCH = "search"
GENOTYPE_FILE = "genotype.json"
NETWORK = "network"
ENGINE = "engine"
VERIFIED = "verification"
OTHERS_FILE = "others.json"
SUMMARY_FILE = "summary.json"
CONFIG_FILE = "config.json"
BUNDLE = "bundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfTwinAndEngine:
    """One figure of the PyTorch twin and of the engine."""

    twin: float
    engine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ParitySummary:
    """Agreement of engine and twin on the test images."""

    max_abs_diff: float | None
    agreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The result of a run: the content of `summary.json`.

    Attributes:
        budget_ms: Bound on the latency.
        predicted_ms: Latency that the table predicted.
        measured_ms: Latency of the engine as `verify` measured it (median).
        params: Trained parameters.
        macs: Multiply-accumulates per image.
        clean_accuracy: On the test images.
        robust_accuracy: On adversarial examples crafted on the twin.
        black_box_accuracy: Of the engine, worst case per sample over replay and Square.
        n: Test images.
        eps: Size of the perturbation in pixel units.
        parity: Agreement of engine and twin.
        gates: Whether each gate was passed.
        blocks: What each searched block is: a name, or its output width where that alone is
            searched.
        bundle: Folder of the bundle.
        report: The HTML page.
    """

    budget_ms: float
    predicted_ms: float
    measured_ms: float
    params: int
    macs: int
    clean_accuracy: OfTwinAndEngine
    robust_accuracy: OfTwinAndEngine
    black_box_accuracy: float
    n: int
    eps: float
    parity: ParitySummary
    gates: dict[str, bool]
    blocks: tuple[int | str, ...]
    bundle: str
    report: str


def run(config: Path, out: Path, *, progress: Progress = SILENT) -> Summary:
    """Go from a device to a verified bundle: all stages, resumed where they stopped.

    Profile, calibrate, teacher, search, derive, train, export, verify, bundle. Interrupted at any
    moment and run again, it repeats no finished stage and goes on with the running one.

    Args:
        config: TOML file of settings.
        out: Folder of the run.
        progress: Where to report.

    Returns:
        The run's figures, also in `summary.json`.

    Raises:
        ConfigError: A setting is unknown, of a wrong type or out of range.
        BudgetError: No network of the space meets the budget.
        GateFailedError: The engine failed a gate. Bundle, report and summary are written, and the
            summary is its `result`.
    """
    from hwnas.stages.config import load_config

    return _run(load_config(config), config, out, progress)


def _run(config: RunConfig, config_path: Path, out: Path, progress: Progress) -> Summary:
    from hwnas.core.artifacts import write_atomically
    from hwnas.core.decoding import encode_json
    from hwnas.core.errors import GateFailedError
    from hwnas.data.sources import load_data
    from hwnas.latency.resources import SpaceCosts
    from hwnas.search.derive import check_budgets
    from hwnas.space.registry import space_from_spec
    from hwnas.space.spec import space_spec
    from hwnas.stages.checks import check_deployable
    from hwnas.stages.export import make_engine
    from hwnas.stages.report import report
    from hwnas.stages.search import make_search
    from hwnas.stages.teacher import make_teacher
    from hwnas.stages.train import make_network
    from hwnas.verify.gates import require_each
    from hwnas_profilers.targets import require_target

    target = require_target(config.target.name)
    check_deployable(config.target.name)
    data = load_data(config.data)
    spec = space_spec(
        config.space.name, image_shape=data.image_shape, classes=len(data.class_names)
    )
    space = space_from_spec(spec, dtype=target.runtime.precision)
    table = _table(config, space, out, progress)
    costs = SpaceCosts(space, table)
    budgets = config.budget.resolve(costs)
    check_budgets(costs, budgets)  # before hours are spent on training
    write_atomically(out / CONFIG_FILE, encode_json(config, indent=2))

    make_teacher(config, out / TEACHER, progress=progress)
    make_search(config, table.path, out / TEACHER, out / SEARCH, progress=progress)
    _derive(config, table.path, budgets, out, progress)
    make_network(
        config, out / GENOTYPE_FILE, out / TEACHER, out / SEARCH, out / NETWORK, progress=progress
    )
    make_engine(
        out / NETWORK, out / ENGINE, verify=config.verify, settings=config.export, progress=progress
    )
    found = _verify(out, progress)
    page = Path(report(out).report)
    bundle = _bundle(config_path, config, out, found, page, progress)
    summary = _summary(next(iter(found.values())), out, bundle, page)
    write_atomically(out / SUMMARY_FILE, encode_json(summary, indent=2))
    try:
        require_each({target: each.gates for target, each in found.items()})
    except GateFailedError as error:
        error.result = summary
        raise
    return summary


def _table(config: RunConfig, space: ChainSpace, out: Path, progress: Progress) -> LatencyTable:
    """Measure and calibrate the table, or check the one that was given."""
    from hwnas.core.environment import this_device
    from hwnas.stages.spaces import say_if_uncalibrated
    from hwnas_profilers.table import LatencyTable

    if config.table.path:
        target, threads = config.target.name, config.target.threads
        table = LatencyTable.read(Path(config.table.path))
        table.require(
            target=target,
            threads=threads,
            space_fingerprint=space.spec.fingerprint,
            device=this_device().name,
        )
        say_if_uncalibrated(table, progress)
        return table
    return calibrated_table(config, space, out / TABLE_FILE, progress)


def calibrated_table(
    config: RunConfig, space: ChainSpace, path: Path, progress: Progress
) -> LatencyTable:
    """Measure and calibrate a table by a run's settings, going on with one that is there."""
    from hwnas.stages.calibrate import make_calibration
    from hwnas.stages.profile import make_table
    from hwnas_profilers.table import LatencyTable

    target, threads = config.target.name, config.target.threads
    table = make_table(
        space, target, path, threads=threads, settings=config.table.timing, progress=progress
    )
    if table.calibration is None:
        make_calibration(
            path,
            networks=config.table.networks,
            holdout=config.table.holdout,
            settings=config.table.network_timing,
            seed=config.seed,
            progress=progress,
        )
        table = LatencyTable.read(path)
    else:
        progress.say(f"{path} is calibrated already")
    return table


def _derive(
    config: RunConfig, table: Path, budgets: Budgets, out: Path, progress: Progress
) -> None:
    """Derive, or find it done: a genotype of the same search, table and budgets is kept."""
    from hwnas.core.artifacts import sha256_of_file
    from hwnas.search.records import read_derivation
    from hwnas.stages.derive import make_derivation
    from hwnas.stages.search import SEARCH_FILE

    path = out / GENOTYPE_FILE
    if path.is_file():
        before = read_derivation(path)
        now = (sha256_of_file(table), sha256_of_file(out / SEARCH / SEARCH_FILE), budgets)
        if (before.table_sha256, before.search_sha256, before.budgets) == now:
            progress.say(f"derive: {path} is finished already")
            return
    make_derivation(
        out / SEARCH,
        table,
        budgets,
        path,
        measure=True,
        settings=config.table.network_timing,
        progress=progress,
    )


def _verify(out: Path, progress: Progress) -> dict[str, Verification]:
    """Verify the engines, or find them verified: by target, the network's own first.

    A failed gate is data here, and is tried again.
    """
    from hwnas.core.artifacts import MANIFEST, ManifestDraft, new_artifact, sha256_of_file
    from hwnas.core.decoding import encode_json, read_json
    from hwnas.core.errors import GateFailedError
    from hwnas.stages.artifacts import is_current
    from hwnas.stages.bundle import VERIFICATION_FILE
    from hwnas.stages.verify import verify
    from hwnas.verify.verification import Verification

    folder = out / VERIFIED
    inputs = {"engine": sha256_of_file(out / ENGINE / MANIFEST)}
    if is_current(folder, kind="verify", settings={}, inputs=inputs):
        own = read_json(folder / VERIFICATION_FILE, Verification)
        before = {own.engine: own, **read_json(folder / OTHERS_FILE, dict[str, Verification])}
        if all(each.passed for each in before.values()):
            progress.say(f"verify: {folder} is finished already")
            return before
        # A latency gate may have met a busy machine, and a repeat costs little beside a search.
        progress.say(f"verify: {folder} failed a gate; verifying once more")
    try:
        result = verify(out / ENGINE, progress=progress)
    except GateFailedError as error:
        result = cast("VerifyResult", error.result)
    with new_artifact(folder, ManifestDraft(kind="verify", inputs=inputs)) as new:
        (new / VERIFICATION_FILE).write_bytes(encode_json(result.verification, indent=2))
        (new / OTHERS_FILE).write_bytes(encode_json(result.others, indent=2))
    return result.engines


def _bundle(
    config_path: Path,
    config: RunConfig,
    out: Path,
    found: dict[str, Verification],
    page: Path,
    progress: Progress,
) -> Path:
    """Gather what is handed over, or find it gathered: engines, verification and report."""
    import shutil

    from hwnas.core.artifacts import (
        CHECKSUMS,
        MANIFEST,
        ManifestDraft,
        new_artifact,
        sha256_of_file,
    )
    from hwnas.core.decoding import encode_json, read_json
    from hwnas.deploy.engines import engine_card
    from hwnas.deploy.figures import with_figures
    from hwnas.deploy.records import ENGINES_FOLDER, SIDECAR_FILE
    from hwnas.stages import bundle as files
    from hwnas.stages.artifacts import is_current
    from hwnas.stages.calls import call_text
    from hwnas.stages.engines import finish_bundle

    inputs = {
        "engine": sha256_of_file(out / ENGINE / MANIFEST),
        "verification": sha256_of_file(out / VERIFIED / MANIFEST),
        "report": sha256_of_file(page),
    }
    if is_current(out / BUNDLE, kind="export", settings={}, inputs=inputs):
        progress.say(f"bundle: {out / BUNDLE} is finished already")
        return out / BUNDLE
    draft = ManifestDraft(
        kind="export", call=call_text("run", config=config_path, out=out), inputs=inputs
    )
    # Written anew: they list or copy what changes.
    anew = shutil.ignore_patterns(MANIFEST, CHECKSUMS, files.SBOM_FILE, files.TRITON_FOLDER)
    with new_artifact(out / BUNDLE, draft, checksums=True) as folder:
        shutil.copytree(out / ENGINE, folder, ignore=anew, dirs_exist_ok=True)
        main = read_json(folder / files.CARD_FILE, files.ModelCard).target
        for target, verification in found.items():
            card = with_figures(engine_card(folder, target), verification)
            sidecar = folder / ENGINES_FOLDER / target / SIDECAR_FILE
            sidecar.write_bytes(encode_json(card, indent=2))
        shutil.copyfile(out / VERIFIED / files.VERIFICATION_FILE, folder / files.VERIFICATION_FILE)
        shutil.copyfile(page, folder / files.REPORT_FILE)
        finish_bundle(folder, engine_card(folder, main), triton=config.export.triton)
    return out / BUNDLE


def _summary(verification: Verification, out: Path, bundle: Path, page: Path) -> Summary:
    from hwnas.search.records import read_derivation

    derivation = read_derivation(out / GENOTYPE_FILE)
    assert verification.latency is not None
    clean, robust = verification.clean_accuracy, verification.robust_accuracy
    return Summary(
        budget_ms=derivation.budget_ms,
        predicted_ms=derivation.predicted_ms,
        measured_ms=verification.latency.median_us / 1e3,
        params=derivation.params,
        macs=derivation.macs,
        clean_accuracy=OfTwinAndEngine(twin=clean.twin.value, engine=clean.engine.value),
        robust_accuracy=OfTwinAndEngine(twin=robust.twin.value, engine=robust.engine.value),
        black_box_accuracy=verification.black_box.worst_case.value,
        n=clean.engine.n,
        eps=verification.threat.eps_pixels,
        parity=ParitySummary(
            max_abs_diff=verification.parity.max_abs_diff,
            agreement=verification.parity.agreement,
        ),
        gates={gate.name: gate.passed for gate in verification.gates},
        blocks=derivation.genotype.options,
        bundle=str(bundle),
        report=str(page),
    )
