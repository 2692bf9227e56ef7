"""`hwnas search`: the supernet, its choices and its tutors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.core.metrics import MetricLog
    from hwnas.search.budget import Budgets
    from hwnas.stages.config import RunConfig

SEARCH_FILE = "search.json"
SUPERNET_FILE = "supernet.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search ended with.

    Attributes:
        search: Its folder.
        budget_ms: Bound on the latency.
        expected_ms: Expected latency of the supernet at the end.
        epochs: Epochs run.
        most_likely: Most likely option of each searched block, the budgets aside: its width, or its
            name.
        tutors: How tutors were selected.
        objective: What the choices were to raise besides: a robustness objective, or none.
        robust: How the supernet's weights were trained against perturbations.
        expected_objective: Mean of the objective over the last epoch that had it; None without one.
        memory_budget_kib: Bound on the peak of live activations; None without one.
        weights_budget_kib: Bound on the weights; None without one.
        energy_budget_mj: Bound on the energy; None without one.
        expected_weights_kib: Expected weights of the supernet at the end, where they are bounded.
        expected_uncalibrated_energy_mj: Expected sum of the operators' energies, each run alone,
            where energy is bounded.
        expected_forbidden_operators: Expected number of operators of a network that exceed the
            memory or that the runtime refuses; None where none does.
        macs_budget_m: Bound on the multiply-accumulates, in millions; None without one.
        params_budget_k: Bound on the parameters, in thousands; None without one.
        expected_macs_m: Expected multiply-accumulates at the end, where they are bounded.
        expected_params_k: Expected parameters at the end, where they are bounded.
        estimated_operators: Operators of the space whose latency is an estimate.
    """

    search: str
    budget_ms: float
    expected_ms: float
    epochs: int
    most_likely: tuple[int | str, ...]
    tutors: str
    objective: str = "none"
    robust: str = "none"
    expected_objective: float | None = None
    memory_budget_kib: float | None = None
    weights_budget_kib: float | None = None
    energy_budget_mj: float | None = None
    expected_weights_kib: float | None = None
    expected_uncalibrated_energy_mj: float | None = None
    expected_forbidden_operators: float | None = None
    macs_budget_m: float | None = None
    params_budget_k: float | None = None
    expected_macs_m: float | None = None
    expected_params_k: float | None = None
    estimated_operators: int = 0


def search(
    table: Path,
    teacher: Path,
    out: Path,
    *,
    budget_ms: float | None = None,
    memory_kib: float | None = None,
    weights_kib: float | None = None,
    energy_mj: float | None = None,
    macs_m: float | None = None,
    params_k: float | None = None,
    estimate: bool = False,
    config: Path | None = None,
    data: str | None = None,
    epochs: int | None = None,
    tutors: Literal["searched", "none", "uniform", "random", "depth", "last"] | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    objective: Literal["none", "jacobian", "certified", "combined"] | None = None,
    objective_weight: float | None = None,
    robust: Literal["none", "fast-at", "pgd-at", "trades", "ard", "rslad"] | None = None,
    seed: int | None = None,
    tensorboard: Path | None = None,
    log: MetricLog | None = None,
    progress: Progress = SILENT,
) -> SearchResult:
    """Search the space for a robust network within a latency budget.

    Trains the supernet of the table's space by RNAS-CL: cross-entropy, KL to the teacher,
    cross-layer attention with Gumbel tutor selection, and the expected latency and other costs,
    each held under its budget by a multiplier. Interrupted, it goes on after the last finished
    epoch. Under torchrun several processes share every batch, with the same result.

    Args:
        table: Latency table of the space on the target.
        teacher: Folder of a teacher.
        out: Folder of the search.
        budget_ms: Bound on the latency, in milliseconds; by default the [budget] of the config.
        memory_kib: Bound on the peak of live activations, in KiB; by default as for budget_ms.
        weights_kib: Bound on the size of the weights, in KiB; by default as for budget_ms.
        energy_mj: Bound on the energy of a call, in millijoules, held against the uncalibrated sum
            of the operators' energies; by default as for budget_ms.
        macs_m: Bound on the multiply-accumulates per image, in millions; by default as for
            budget_ms.
        params_k: Bound on the trained parameters, in thousands; by default as for budget_ms.
        estimate: Estimate operators that the table lacks from those that it has. The result says
            how much of it is estimated.
        config: TOML file of `hwnas run`; its [data], [budget] and [search] are used.
        data: Images: digits, cifar10:FOLDER, cifar10-torchvision:FOLDER or npz:FILE.
        epochs: Epochs of the search.
        tutors: How the tutors of each layer are selected: searched, or a baseline.
        precision: Of the supernet's computation: fp32, or bf16 by autocast.
        objective: What the choices are to raise besides: how slowly logits change around an image
            (jacobian), a lower bound of its margin (certified), or both (combined).
        objective_weight: Weight of the objective in the loss of the choices.
        robust: How the supernet's weights are trained against perturbations of the [threat] of the
            config.
        seed: Seed of everything that is drawn.
        tensorboard: Folder for TensorBoard's event files.
        log: Where each epoch's figures go besides.
        progress: Where to report.

    Returns:
        What the search ended with.

    Raises:
        BudgetError: No network of the space meets the budgets.
        ConfigError: A setting is unknown or out of range, or teacher and data do not fit.
        LatencyTableError: The table cannot be used, or does not tell what a budget bounds.
        UnboundedOperationError: The objective needs bounds of an operation that has none.
        TrainingDivergedError: The loss is not finite; the last good checkpoint is kept.
        ProcessError: Of several processes one has ended; the last checkpoint is kept.
    """
    from hwnas.stages.config import load_config

    given_search = {
        "epochs": epochs,
        "tutors": tutors,
        "precision": precision,
        "objective": objective,
        "objective_weight": objective_weight,
        "robust": robust,
    }
    settings = load_config(config, data=data, seed=seed, search=given_search)
    bounds = {
        "memory_kib": memory_kib,
        "weights_kib": weights_kib,
        "energy_mj": energy_mj,
        "macs_m": macs_m,
        "params_k": params_k,
    }
    given: dict[str, Any] = {name: bound for name, bound in bounds.items() if bound is not None}
    if budget_ms is not None:
        given |= {"ms": budget_ms, "fraction": None}
    settings = replace(settings, budget=replace(settings.budget, **given))
    if tensorboard is not None:
        settings = replace(settings, tensorboard=str(tensorboard))
    return make_search(settings, table, teacher, out, estimate=estimate, log=log, progress=progress)


def search_settings(config: RunConfig, budgets: Budgets) -> dict[str, Any]:
    """Return what a search depends on, besides its inputs."""
    import msgspec

    from hwnas.search.rnas_cl import attacked_eps

    return {
        "seed": config.seed,
        "budget_ms": budgets.latency_ms,
        "memory_kib": budgets.memory_kib,
        "weights_kib": budgets.weights_kib,
        "energy_mj": budgets.energy_mj,
        "macs_m": budgets.macs_m,
        "params_k": budgets.params_k,
        "data": msgspec.to_builtins(config.data),
        "search": msgspec.to_builtins(config.search),
        # What robust training is against; without it no threat changes a search.
        "eps": attacked_eps(config.search, config.threat),
    }


def make_search(
    config: RunConfig,
    table_path: Path,
    teacher_path: Path,
    out: Path,
    *,
    estimate: bool = False,
    log: MetricLog | None = None,
    progress: Progress = SILENT,
) -> SearchResult:
    """Search, or find the search done. Raises as `search`."""
    from hwnas.core.artifacts import MANIFEST, ManifestDraft, new_artifact, sha256_of_file
    from hwnas.core.decoding import encode_json, read_json
    from hwnas.core.threads import torch_threads
    from hwnas.core.weights import write_weights
    from hwnas.data.sources import load_data
    from hwnas.distill.teacher import load_teacher
    from hwnas.latency.resources import SpaceCosts
    from hwnas.search.records import SearchRecord
    from hwnas.search.rnas_cl import search_supernet
    from hwnas.stages.artifacts import checkpoint_beside, data_inputs, is_current
    from hwnas.stages.budgets import say_what_is_out
    from hwnas.stages.calls import call_text
    from hwnas.stages.checks import check_images_fit
    from hwnas.stages.logs import logs_of
    from hwnas.stages.spaces import (
        estimates_in,
        say_if_uncalibrated,
        space_of_table,
        with_estimates,
    )
    from hwnas.training.processes import Processes
    from hwnas_profilers.table import LatencyTable

    table = LatencyTable.read(table_path)
    space = space_of_table(table)
    if estimate:
        table = with_estimates(table, space, progress)
    estimated = estimates_in(table, (operator.key for operator in space.operators()))
    costs = SpaceCosts(space, table)
    say_if_uncalibrated(table, progress)
    budgets = config.budget.resolve(costs)
    say_what_is_out(costs, budgets, progress)
    attention_size = config.search.attention_size
    teacher = load_teacher(teacher_path, attention_size=attention_size)
    settings = search_settings(config, budgets)
    inputs = data_inputs(config.data) | {
        "table": sha256_of_file(table_path),
        "teacher": sha256_of_file(teacher_path / MANIFEST),
    }
    processes = Processes(accelerator=config.accelerator)
    # One process looks and answers for all: by the next one's look the artifact may be there.
    is_done = processes.is_first and is_current(
        out, kind="search", settings=settings, inputs=inputs
    )
    if processes.same(is_done):
        progress.say(f"search: {out} is finished already")
        return read_json(out / "result.json", SearchResult)
    data = load_data(config.data)
    check_images_fit(data, space.spec.image_shape, space.spec.classes, what="the table's space")
    check_images_fit(data, teacher.image_shape, teacher.classes, what="the teacher")
    checkpoint = checkpoint_beside(out)
    with torch_threads(config.training_threads), logs_of(config.tensorboard, log) as logs:
        outcome = search_supernet(
            space,
            costs,
            teacher,
            data,
            config.data,
            config.search,
            budgets=budgets,
            seed=config.seed,
            checkpoint=checkpoint,
            inputs=inputs,
            processes=processes,
            log=logs,
            threat=config.threat,
            progress=progress,
        )
    expected = outcome.expected
    record = SearchRecord(
        space=space.spec,
        target=table.header.target,
        budget_ms=budgets.latency_ms,
        expected_ms=outcome.expected_ms,
        budgets=budgets,
        expected_weights_kib=expected.get("expected_weights_kib"),
        expected_uncalibrated_energy_mj=expected.get("expected_uncalibrated_energy_mj"),
        expected_forbidden_operators=expected.get("expected_forbidden_operators"),
        estimated=estimated,
        log_probabilities=outcome.log_probabilities,
        tutor_probabilities=outcome.tutor_probabilities,
        student_layers=outcome.supernet.tap_names,
        teacher_layers=teacher.layers,
        attention_size=attention_size,
        seed=config.seed,
        selection=config.search.tutors,
        objective=config.search.objective,
        robust=config.search.robust,
    )
    rated = [figures["objective"] for figures in outcome.history if "objective" in figures]
    result = SearchResult(
        search=str(out),
        budget_ms=budgets.latency_ms,
        memory_budget_kib=budgets.memory_kib,
        weights_budget_kib=budgets.weights_kib,
        energy_budget_mj=budgets.energy_mj,
        expected_ms=outcome.expected_ms,
        expected_weights_kib=expected.get("expected_weights_kib"),
        expected_uncalibrated_energy_mj=expected.get("expected_uncalibrated_energy_mj"),
        expected_forbidden_operators=expected.get("expected_forbidden_operators"),
        macs_budget_m=budgets.macs_m,
        params_budget_k=budgets.params_k,
        expected_macs_m=expected.get("expected_macs_m"),
        expected_params_k=expected.get("expected_params_k"),
        estimated_operators=estimated.operators if estimated else 0,
        tutors=config.search.tutors,
        objective=config.search.objective,
        robust=config.search.robust,
        expected_objective=rated[-1] if rated else None,
        epochs=len(outcome.history),
        most_likely=tuple(
            options[row.index(max(row))]
            for options, row in zip(space.options, outcome.log_probabilities, strict=True)
        ),
    )
    draft = ManifestDraft(
        kind="search",
        call=call_text(
            "search",
            table=table_path,
            teacher=teacher_path,
            out=out,
            budget_ms=budgets.latency_ms,
            memory_kib=budgets.memory_kib,
            weights_kib=budgets.weights_kib,
            energy_mj=budgets.energy_mj,
            macs_m=budgets.macs_m,
            params_k=budgets.params_k,
            estimate=estimate or None,
            seed=config.seed,
        ),
        settings=settings,
        inputs=inputs,
    )
    if processes.is_first:
        with new_artifact(out, draft) as folder:
            write_weights(folder / SUPERNET_FILE, outcome.supernet)
            (folder / SEARCH_FILE).write_bytes(encode_json(record, indent=2))
            (folder / "history.json").write_bytes(encode_json(outcome.history, indent=2))
            (folder / "result.json").write_bytes(encode_json(result, indent=2))
        checkpoint.unlink(missing_ok=True)
    processes.wait()
    return result
