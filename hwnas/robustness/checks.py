"""Checks of an evaluation: its attacks against each other, and varied on a few samples.

A robust accuracy is an upper bound, and a weak attack makes it a meaningless one. Nothing here
proves that an attack is strong; each check finds one way in which attacks are known to fail, and
says which figures mean nothing then (`hwnas.robustness.criteria`).

References:
    Athalye et al., "Obfuscated Gradients Give a False Sense of Security", 2018, section 3.1.
    Carlini et al., "On Evaluating Adversarial Robustness", 2019.
    Croce et al., "RobustBench", 2021, and the flags that AutoAttack's code raises.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from hwnas.core.progress import SILENT
from hwnas.robustness import criteria
from hwnas.robustness.attacks.table import run_attacks
from hwnas.robustness.evaluate import logits_from_module, predictions_of
from hwnas.robustness.signs import (
    majority_of,
    noisy_images,
    with_larger_eps,
    without_bound,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from hwnas.core.progress import Progress
    from hwnas.robustness.attacks.table import AttackOutcome
    from hwnas.robustness.criteria import Check
    from hwnas.robustness.square import Predict
    from hwnas.robustness.threat import ThreatModel

_DRAWS = 10
"""Noise is tried so often on each sample: an attack that it beats follows nothing."""


def evaluation_checks(
    model: nn.Module | Predict,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    threat: ThreatModel,
    outcome: AttackOutcome,
    *,
    batch: int,
    seed: int,
    samples: int = 128,
    queries: int = 1000,
    state: Path | None = None,
    progress: Progress = SILENT,
) -> tuple[Check, ...]:
    """Check the evaluation of one model under one threat model.

    Its attacks have been compared with each other over all samples. On a few, PGD (Square where
    there are no gradients) is made stronger, and noise takes its place, and a black box where none
    was among them.

    Args:
        model: What was attacked: a module, or an array function that gives its scores alone.
        images: float32, (N, channels, height, width), pixels in [0, 1].
        labels: int64, (N,)
        threat: The threat model. With an eps of 0 there is nothing to check.
        outcome: What its attacks left of it.
        batch: Images per call.
        seed: Seed of the draws and of the attacks.
        samples: How many samples the attack is varied on.
        queries: Queries of Square per sample.
        state: A folder that keeps finished batches: see `run_attacks`.
        progress: Told of each step.

    Returns:
        The checks that this model, this threat model and these attacks allow, passed or not.
    """
    if not threat.eps_pixels > 0:
        return ()
    chosen = np.random.default_rng(seed).permutation(len(images))[:samples]
    few, few_labels = images[chosen], labels[chosen]
    slack = criteria.slack_of(len(chosen))
    own = "pgd" if isinstance(model, nn.Module) else "square"

    def broken_by(name: str, varied: ThreatModel, what: str, times: int = 1) -> NDArray[np.bool_]:
        return run_attacks(
            model, few, few_labels, varied, attacks=(name,), seed=seed, batch=batch,
            queries=times * queries, state=state / what if state else None, progress=progress,
        ).flags[name]  # fmt: skip

    def accuracy(broken: NDArray[np.bool_]) -> float:
        return 1.0 - float(np.mean(broken))

    base = broken_by(own, threat, "base")
    doubled = replace(threat, steps=2 * threat.steps)
    size = images[0].size
    found = [
        criteria.more_steps_check(
            accuracy(base), accuracy(broken_by(own, doubled, "more-steps", 2)), slack
        ),
        criteria.larger_eps_check(
            accuracy(base), accuracy(broken_by(own, with_larger_eps(threat), "larger-eps")), slack
        ),
        criteria.unbounded_eps_check(
            accuracy(broken_by(own, without_bound(threat, size), "unbounded")),
            majority_of(few_labels),
        ),
    ]
    if threat.protocol == "pixel":
        attacked = {name: accuracy(broken[chosen]) for name, broken in outcome.flags.items()}
        noise = _accuracy_under_noise(model, few, few_labels, threat, batch, seed)
        found.append(criteria.noise_check(attacked or {own: accuracy(base)}, noise, slack))
    compared = outcome.table.comparisons
    found += compared
    without = all(check.name != criteria.BLACK_BOX_GAP for check in compared)
    if own == "pgd" and threat.protocol == "pixel" and without:
        white = [broken[chosen] for name, broken in outcome.flags.items() if name != "square"]
        union, square = np.logical_or.reduce([base, *white]), broken_by("square", threat, "square")
        found.append(criteria.black_box_check(union, square, slack))
    return tuple(found)


def _accuracy_under_noise(
    model: nn.Module | Predict,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    threat: ThreatModel,
    batch: int,
    seed: int,
) -> float:
    generator = np.random.default_rng(seed)
    right = np.ones(len(labels), dtype=np.bool_)
    for _ in range(_DRAWS):
        right &= predictions_of(_logits(model, noisy_images(images, threat, generator), batch)) == (
            labels
        )
    return float(np.mean(right))


def _logits(
    model: nn.Module | Predict, images: NDArray[np.float32], batch: int
) -> NDArray[np.float32]:
    if isinstance(model, nn.Module):
        return logits_from_module(model, images, batch=batch)
    parts = [model(images[start : start + batch]) for start in range(0, len(images), batch)]
    return np.concatenate(parts)
