"""The gates of an engine, from what was found on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.robustness.criteria import slack_of
from hwnas.verify.gates import Gate, at_least, at_most

if TYPE_CHECKING:
    from hwnas.robustness.evaluate import Accuracy
    from hwnas.search.budget import Budgets
    from hwnas.verify.parity import Parity
    from hwnas.verify.records import Adaptive, BlackBox, TwinAndEngine
    from hwnas.verify.tolerances import Tolerances
    from hwnas_export.memory import ModelMemory
    from hwnas_profilers.records import EnergyStatistics, Statistics


def parity_gates(parity: Parity, tolerances: Tolerances) -> tuple[Gate, ...]:
    """Judge parity on the clean images."""
    return (
        at_most(
            "finite_logits",
            parity.nonfinite,
            0,
            unit="images",
            meaning="the engine gives NaN or infinity",
        ),
        at_most(
            "max_abs_diff",
            parity.max_abs_diff,
            tolerances.max_abs_diff,
            unit="logits",
            meaning="the engine computes other numbers than its twin",
        ),
        at_most(
            "relative_l2",
            parity.relative_l2,
            tolerances.relative_l2,
            unit="of the logits' norm",
            meaning="the engine computes other numbers than its twin",
        ),
        at_most(
            "margin_drift",
            parity.margin_drift,
            tolerances.margin_drift,
            unit="of the median margin",
            meaning="the distance between the two top logits moved: what an attack must bridge is "
            "another one than on the twin",
        ),
        at_least(
            "agreement",
            parity.agreement,
            tolerances.agreement,
            unit="of clean images",
            meaning="the engine decides otherwise than its twin",
        ),
        at_most(
            "tie_rate",
            parity.tie_rate,
            tolerances.tie_rate,
            unit="of clean images",
            meaning="top logits tie: the output is constant or coarsely quantized, which blinds "
            "attacks that follow scores",
        ),
        at_least(
            "distinct_logits",
            parity.distinct_share,
            tolerances.distinct_logits,
            unit="of the twin's different values",
            meaning=f"the engine gives only {parity.distinct_logits_engine} different values: its "
            "output is quantized, which blinds attacks that follow scores; keep the last layer in "
            "float",
        ),
    )


def accuracy_gates(
    clean: TwinAndEngine,
    robust: TwinAndEngine,
    agreement: float,
    black_box: BlackBox,
    tolerances: Tolerances,
) -> tuple[Gate, ...]:
    """Judge accuracies, clean and under the replayed examples, and what a black box adds."""
    return (
        at_most(
            "clean_drop",
            points_between(clean.twin, clean.engine),
            tolerances.clean_drop_points,
            unit="points",
            meaning="the engine lost clean accuracy against its twin",
        ),
        at_most(
            "robust_drop",
            points_between(robust.twin, robust.engine),
            tolerances.robust_drop_points,
            unit="points",
            meaning="the engine lost robust accuracy against its twin",
        ),
        at_most(
            "replay_gain",
            points_between(robust.engine, robust.twin),
            tolerances.replay_gain_points,
            unit="points",
            meaning="the engine resists examples that break its twin: they no longer fit it, so "
            "this is no robustness",
        ),
        at_least(
            "adversarial_agreement",
            agreement,
            tolerances.adversarial_agreement,
            unit="of adversarial images",
            meaning="under attack the engine decides otherwise than its twin",
        ),
        at_most(
            "black_box_gap",
            points_between(black_box.replay, black_box.worst_case),
            tolerances.black_box_gap_points,
            unit="points",
            meaning="a black box breaks what the white-box attack did not: the twin's gradients "
            "are masked, or do not fit the engine",
        ),
    )


def adaptive_gates(found: Adaptive, tolerances: Tolerances) -> tuple[Gate, ...]:
    """Judge the attacks that were made for the engine itself.

    Of few samples, two may fall either way by another random start.
    """
    n = found.worst_case.n
    return (
        at_most(
            "square_gap",
            100 * found.square_alone,
            slack_of(n, tolerances.square_gap_points),
            unit="points",
            meaning="a black box breaks what no attack by gradients does, not even by those of "
            f"{found.gradients}: the gradients are masked, and robust accuracy is too high",
        ),
        at_most(
            "adaptive_gap",
            points_between(found.replay, found.worst_case),
            slack_of(n, tolerances.adaptive_gap_points),
            unit="points",
            meaning="attacks made for the engine break what the replayed examples of its twin did "
            "not: replay overstates its robustness",
        ),
        at_most(
            "adaptive_drop",
            points_between(found.twin, found.worst_case),
            slack_of(n, tolerances.robust_drop_points),
            unit="points",
            meaning="under attacks made for each of them the engine is less robust than its twin",
        ),
    )


def points_between(higher: Accuracy, lower: Accuracy) -> float:
    """Return how many percentage points the first is above the second, on the same samples."""
    return 100 * (higher.correct - lower.correct) / higher.n


def latency_gate(budget_ms: float, latency: Statistics, tolerances: Tolerances) -> Gate:
    """Judge the median latency against its budget."""
    return at_most(
        "latency",
        latency.median_us / 1000 / budget_ms - 1,
        tolerances.latency_over_budget,
        unit="of the budget above it",
        meaning=f"the engine takes {latency.median_us / 1000:.4g} ms; the budget is "
        f"{budget_ms:.4g} ms",
    )


def resource_gates(
    budgets: Budgets,
    memory: ModelMemory | None,
    energy: EnergyStatistics | None,
    tolerances: Tolerances,
) -> tuple[Gate, ...]:
    """Judge what the engine takes besides time; what was not counted or metered fails."""
    gates = []
    if budgets.memory_kib is not None:
        gates.append(
            at_most(
                "memory",
                memory.peak_activation_bytes / 1024 if memory else None,
                budgets.memory_kib,
                unit="KiB",
                meaning="more activations are alive at once than the budget has room for"
                + (f", at {memory.peak_node}" if memory else ": they were not counted"),
            )
        )
    if budgets.weights_kib is not None:
        gates.append(
            at_most(
                "weights",
                memory.weights_bytes / 1024 if memory else None,
                budgets.weights_kib,
                unit="KiB",
                meaning="the engine's weights are larger than their budget"
                if memory
                else "the engine's weights were not counted",
            )
        )
    if budgets.energy_mj is not None:
        taken = f"{energy.median_uj / 1e3:.4g} mJ" if energy else "an amount that was not metered"
        gates.append(
            at_most(
                "energy",
                energy.median_uj / 1e3 / budgets.energy_mj - 1 if energy else None,
                tolerances.energy_over_budget,
                unit="of the budget above it",
                meaning=f"a call takes {taken}; the budget is {budgets.energy_mj:.4g} mJ",
            )
        )
    return tuple(gates)
