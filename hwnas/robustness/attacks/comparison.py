"""Attacks beside each other: what the samples that each broke say of the others.

It costs nothing, as nothing is attacked for it, so every table of attacks holds it.

References:
    Carlini et al., "On Evaluating Adversarial Robustness", 2019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hwnas.robustness.attacks.registry import ATTACKS
from hwnas.robustness.criteria import black_box_check, iterative_check, slack_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from hwnas.robustness.criteria import Check

SINGLE_STEP = "fgsm"
ITERATIVE = ("pgd", "mi-fgsm", "apgd-ce")
"""Attacks that do what FGSM does, in many steps; those of another loss may be weaker on some."""


def attack_comparisons(
    flags: Mapping[str, NDArray[np.bool_]], parts: Mapping[str, NDArray[np.bool_]]
) -> tuple[Check, ...]:
    """Check that no step is worth more than many, and no black box more than gradients.

    Args:
        flags: By the name of each attack, (N,): which samples it broke.
        parts: Likewise of the parts of ensembles: what each broke of the samples it was given,
            which are all for the first one (`apgd-ce`), and what those before left for another.

    Returns:
        The checks that these attacks allow, passed or not; of one attack alone, none.
    """
    # An ensemble counts by its parts: the standard set holds both gradients and a black box.
    singles = {**parts, **{name: row for name, row in flags.items() if not ATTACKS[name].parts}}
    found = []
    iterative = {name: _accuracy(singles[name]) for name in ITERATIVE if name in singles}
    if iterative and SINGLE_STEP in singles:
        step = singles[SINGLE_STEP]
        found.append(iterative_check(iterative, _accuracy(step), slack_of(len(step))))
    white = [broken for name, broken in singles.items() if not ATTACKS[name].black_box]
    black = [broken for name, broken in singles.items() if ATTACKS[name].black_box]
    if white and black:
        by_gradients, by_scores = np.logical_or.reduce(white), np.logical_or.reduce(black)
        found.append(black_box_check(by_gradients, by_scores, slack_of(len(by_scores))))
    return tuple(found)


def _accuracy(broken: NDArray[np.bool_]) -> float:
    return 1.0 - float(np.mean(broken))
