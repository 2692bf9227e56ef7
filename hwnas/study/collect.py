"""The figures of one arm in one seed, from what its work has left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.core.artifacts import sha256_of
from hwnas.core.decoding import encode_json, read_json
from hwnas.robustness.attacks.table import AttackTable
from hwnas.robustness.hrs import harmonic_robustness
from hwnas.search.records import read_derivation, read_search
from hwnas.stages.search import SEARCH_FILE
from hwnas.study.engines import JudgedEngine, engine_figures, judged_path
from hwnas.study.figures import CLEAN, HRS, WORST
from hwnas.study.handcrafted import read_card
from hwnas.study.judge import RESULT_FILE
from hwnas.study.records import ArmSeed
from hwnas.study.watch import spent_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hwnas.study.workshop import Goal

_SECONDS_PER_MINUTE = 60.0


def arm_figures(goal: Goal, store: Path, *, train_images: int, names: Mapping[str, str]) -> ArmSeed:
    """Gather the figures of an arm in a seed, whose work is done; its latency is measured later.

    Args:
        goal: The arm and seed.
        store: Folder of the pieces of work.
        train_images: Images that an epoch of its training goes through.
        names: What engines are called, by target.
    """
    tables = {
        threat: read_json(work.path / RESULT_FILE, AttackTable)
        for threat, work in goal.attacks.items()
    }
    figures, network = _network_figures(goal)
    engines = judged_engines(goal)
    stages = {
        **goal.stages,
        **{f"attacks {name}": work for name, work in goal.attacks.items()},
        **{f"engine {names[target]}": work for target, work in goal.engines.items()},
    }
    return ArmSeed(
        arm=goal.arm.name,
        seed=goal.seed,
        figures={
            **accuracies(tables),
            **figures,
            **_search_figures(goal),
            **_training_figures(goal, train_images=train_images),
            **engine_figures(engines, names),
        },
        images=next(iter(tables.values())).n,
        network=network,
        artifacts={
            stage: work.path.relative_to(store).as_posix() for stage, work in stages.items()
        },
        minutes={
            stage: spent_of(work.spent_path).wall_s / _SECONDS_PER_MINUTE
            for stage, work in stages.items()
        },
        architecture=architecture_of(goal),
        key=goal.key,
        checks={threat: table.comparisons for threat, table in tables.items()},
        engine_images=max((each.verification.parity.n for each in engines.values()), default=0),
    )


def judged_engines(goal: Goal) -> dict[str, JudgedEngine]:
    """Read what was found on an arm's engines, by target."""
    return {
        target: read_json(judged_path(work.path), JudgedEngine)
        for target, work in goal.engines.items()
    }


def accuracies(tables: Mapping[str, AttackTable]) -> dict[str, float]:
    """Return every share of images, by the figures' names.

    Args:
        tables: What attacks left, by threat; at least one. Clean accuracy is that of the first.
    """
    shares = {CLEAN: next(iter(tables.values())).clean.value}
    for threat, table in tables.items():
        shares |= {f"{threat}.{row.attack}": row.accuracy.value for row in table.rows}
        shares[f"{threat}.{WORST}"] = table.worst_case.value
        shares[f"{threat}.{HRS}"] = harmonic_robustness(table.clean.value, table.worst_case.value)
    return shares


def architecture_of(goal: Goal) -> str:
    """Return what tells a network that is to be measured, and what it runs on, from others."""
    target = goal.config.target
    if goal.genotype is not None:
        derivation = read_derivation(goal.genotype.path)
        what: object = {"space": derivation.space.fingerprint, "genotype": derivation.genotype}
    elif goal.arm.kind == "handcrafted":
        card = read_card(goal.trained.path)
        what = {"name": card.name, "width": card.width, "images": card.image_shape}
    else:
        return ""  # a teacher is not what is deployed
    digest = sha256_of(encode_json({"what": what, "target": target}))
    return f"{target.name} {target.threads} {digest[:12]}"


def _network_figures(goal: Goal) -> tuple[dict[str, float], str]:
    """Return size and predicted latency, and the network in one line."""
    if goal.genotype is not None:
        derivation = read_derivation(goal.genotype.path)
        figures = {
            "params": float(derivation.params),
            "macs": float(derivation.macs),
            "predicted_ms": derivation.predicted_ms,
        }
        return figures, derivation.genotype.label
    if goal.arm.kind == "handcrafted":
        card = read_card(goal.trained.path)
        times = "" if card.width == 1.0 else f" x {card.width:g}"
        return {"params": float(card.params), "macs": float(card.macs)}, f"{card.name}{times}"
    from hwnas.stages.teacher import TeacherResult

    result = read_json(goal.trained.path / "result.json", TeacherResult)
    return {"params": float(result.params)}, result.source or "our own teacher"


def _search_figures(goal: Goal) -> dict[str, float]:
    """Return how far its search had chosen; nothing where it takes nothing from one."""
    search = goal.stages.get("search")
    if search is None:
        return {}
    record = read_search(search.path / SEARCH_FILE)
    figures = {}
    if goal.arm.kind == "search":
        figures["choice_evenness"] = record.choice_evenness
    if record.selection == "searched":
        figures["tutor_evenness"] = record.tutor_evenness
    return figures


def _training_figures(goal: Goal, *, train_images: int) -> dict[str, float]:
    """Return how long its own training took, by the time of an epoch; nothing where there was none.

    What a killed run did and lost is no epoch of the training, but counts in the time of one.
    """
    spent = spent_of(goal.trained.spent_path)
    epochs = len(read_json(goal.trained.path / "history.json", list[object]))
    if not (spent.epochs and epochs):
        return {}
    epoch_s = spent.epochs_s / spent.epochs
    return {
        "train_minutes": epochs * epoch_s / _SECONDS_PER_MINUTE,
        "images_per_s": train_images / epoch_s,
    }
