"""Whole networks correct what a table says of single operators: a prior and its posterior.

Before any network is timed, a table and its seams say what each operator takes within a network
(`hwnas_profilers.pairs`). That is the prior, and it is good. A few timed networks move it, by

    total   = intercept + sum over operators k of
              [ prior_k (1 + scale + groups_k + own_k) + cost + weights * bytes_k ]
    latency = total + curvature * total^2

where all but the priors, the bytes and the curvature are normal variables around zero:

| term | stands for | standard deviation |
|---|---|---|
| intercept | what no operator accounts for | 3 % of a mean network, or 30 % |
| scale | a machine that is faster or slower than when the table was measured | 10 %, or 100 % |
| cost | what each operator costs beside, or the seams left out | some % of a mean operator |
| weights | reading weights that do not stay in the cache | some % of a mean network |
| groups | what operators of one shape, kernel, expansion or variant share | some % |
| own | what one operator has to itself | some % |
| noise | what none of these explains | some % of the network |

Called again and again alone, an operator finds its weights in the cache; within a network that
is larger than the cache it does not. Seen on a processor with 1 MiB a core: 290 us for 4.6 MB.

"Some" and "or" are not chosen: all combinations of a small grid are fit, and their posteriors are
averaged with their evidence (marginal likelihood) as weights. So few networks move little, and many
say for themselves whether single operators are worth correcting; nothing is switched on or off by a
threshold. Each posterior mean is linear, so their average is again one number per operator.

Of a few curvatures the one of greatest evidence is taken, as an average over them would be no sum
of operators that is bent once; half of the prior is on none. It says the same as the weights' term,
and more: that tensors and weights leave the cache together, which of a network's operators is large
mattering less than how large all of them are. See `hwnas.latency.curvature`.

References:
    C. E. Rasmussen and C. K. I. Williams, Gaussian Processes for Machine Learning (2006), sections
    2.1 (the posterior, in the space of networks) and 5.2 (the evidence). We average over the grid
    where they maximize: with a dozen networks the maximum is itself noisy.
    J. A. Hoeting et al., Bayesian model averaging: a tutorial, Statistical Science 14 (1999).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.errors import DataError
from hwnas.latency.curvature import bent, straight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hwnas_profilers.workload import OperatorKey

    Floats = NDArray[np.float64]

# Of intercept and scale. The second is for a table without seams, or a board in another power mode.
AFFINE_SDS = ((0.03, 0.10), (0.30, 1.00))
COST_SDS = (0.01, 0.03, 0.10)
WEIGHTS_SDS = (0.0, 0.05, 0.20)
GROUP_SDS = (0.0, 0.003, 0.01, 0.03)
OWN_SDS = (0.0, 0.01, 0.03)
NOISE_SDS = (0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
# Share by which a network of the mean latency takes longer than its total, before the bend.
CURVATURES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
NAMES = ("intercept", "scale", "cost", "weights", "groups", "own", "noise")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """total = intercept + counts @ operators; latency = total + curvature * total^2.

    Attributes:
        intercept_us: Cost that no operator accounts for.
        scale: Mean factor on the prior.
        per_operator_us: Mean cost that every operator has beside.
        operators_us: What each operator adds to the total, (K,), never below zero.
        curvature_per_us: Not negative.
        noise_percent: Standard deviation of what is left unexplained, the mean over the grid.
    """

    intercept_us: float
    scale: float
    per_operator_us: float
    operators_us: Floats
    curvature_per_us: float
    noise_percent: float

    def predict(self, counts: Floats) -> Floats:
        """Return latencies in microseconds, (N,), of networks with these counts, (N, K)."""
        return bent(self.intercept_us + counts @ self.operators_us, self.curvature_per_us)


def fit_latency(
    keys: Sequence[OperatorKey],
    prior_us: Floats,
    weights_bytes: Floats,
    counts: Floats,
    measured_us: Floats,
    *,
    curvatures: Sequence[float] = CURVATURES,
) -> Fit:
    """Fit networks' latencies, starting from what the table says.

    Args:
        keys: The operators, K of them.
        prior_us: What the table says of each within a network, (K,), not negative.
        weights_bytes: Size of each one's weights, (K,).
        counts: How often each network has each operator, (N, K).
        measured_us: Measured latency of each network, (N,), positive.
        curvatures: Those to choose from, C of them, as shares that a network of the mean latency
            takes longer for it; the first, which should be none, has half of the prior.

    Raises:
        DataError: There is no network, the shapes do not fit, or a latency is not positive.
    """
    _check(keys, prior_us, counts, measured_us)
    expected_us = counts @ prior_us  # (N, K) @ (K,) -> (N,)
    mean_us = float(measured_us.mean())
    curvatures_per_us = np.array(curvatures) / mean_us  # (C,)
    totals_us = straight(measured_us[:, None], curvatures_per_us)  # (N, C)
    residuals = totals_us / expected_us[:, None] - 1
    # Effects of unit standard deviation on each network, relative to what is expected of it.
    relative = counts * prior_us / expected_us[:, None]  # (N, K)
    groups = _groups_of(keys)  # (K, G)
    operator_us = float(expected_us.sum() / counts.sum())
    # A mean network has a sum of one.
    weights_share = weights_bytes / max(float((counts @ weights_bytes).mean()), 1.0)
    effects = {
        "intercept": (mean_us / expected_us)[:, None],
        "scale": np.ones((len(measured_us), 1)),
        "cost": (operator_us * counts.sum(axis=1) / expected_us)[:, None],
        "weights": (mean_us * (counts @ weights_share) / expected_us)[:, None],
        "groups": relative @ groups,  # (N, K) @ (K, G) -> (N, G)
        "own": relative,
    }
    covariances = {name: effect @ effect.T for name, effect in effects.items()}

    grid = [
        dict(zip(NAMES, (intercept, scale, *others), strict=True))
        for (intercept, scale), *others in itertools.product(
            AFFINE_SDS, COST_SDS, WEIGHTS_SDS, GROUP_SDS, OWN_SDS, NOISE_SDS
        )
    ]
    evidences: list[Floats] = []  # logarithms, less what is the same for all; of each curvature
    duals: list[Floats] = []  # what the residuals are worth once their covariance is taken off
    for sds in grid:
        covariance = sds["noise"] ** 2 * np.eye(len(measured_us))
        for name, own_covariance in covariances.items():
            covariance += sds[name] ** 2 * own_covariance
        lower = np.linalg.cholesky(covariance)
        whitened = np.linalg.solve(lower, residuals)
        duals.append(np.linalg.solve(lower.T, whitened))
        evidences.append(-0.5 * (whitened**2).sum(axis=0) - np.log(np.diag(lower)).sum())
    best_of_grid = np.max(evidences, axis=0)
    shares = np.exp(np.array(evidences) - best_of_grid)  # (grid, C)
    # Totals are denser than latencies where these are bent: the evidence is that of the latencies.
    stretch = 1.0 / (1.0 + 2.0 * curvatures_per_us * totals_us)  # d total / d latency, (N, C)
    posterior = best_of_grid + np.log(shares.sum(axis=0)) + np.log(stretch).sum(axis=0)
    posterior[1:] -= np.log(max(len(curvatures) - 1, 1))  # they share the other half of the prior
    best = int(np.argmax(posterior))
    share = shares[:, best] / shares[:, best].sum()
    dual = np.array(duals)[:, :, best]

    def mean_of(name: str) -> Floats:
        """Average the posterior means of an effect: sd^2 effect.T @ dual, over the grid."""
        variances = np.array([sds[name] ** 2 for sds in grid])
        averaged: Floats = effects[name].T @ ((share * variances) @ dual)
        return averaged

    intercept, scale, cost, weights = (float(mean_of(name)[0]) for name in NAMES[:4])
    corrections = scale + groups @ mean_of("groups") + mean_of("own")
    operators_us = prior_us * (1 + corrections) + cost * operator_us
    operators_us += weights * mean_us * weights_share
    return Fit(
        intercept_us=intercept * mean_us,
        scale=1 + scale,
        per_operator_us=cost * operator_us,
        operators_us=np.maximum(operators_us, 0.0),
        curvature_per_us=float(curvatures_per_us[best]),
        noise_percent=float(100 * share @ np.array([sds["noise"] for sds in grid])),
    )


def _groups_of(keys: Sequence[OperatorKey]) -> Floats:
    """Return which groups each operator is in, (K, G), ones and zeros."""
    names = [
        (
            ("input", key.in_shape),
            ("kind", key.kind, key.variant),
            ("kernel", key.kind, key.kernel),
            ("expansion", key.kind, round(key.hidden / key.in_shape[0], 2)),
            ("shortcut", key.kind, key.stride == 1 and key.in_shape == key.out_shape),
        )
        for key in keys
    ]
    columns = {name: index for index, name in enumerate(dict.fromkeys(itertools.chain(*names)))}
    groups = np.zeros((len(keys), len(columns)))
    for row, own in zip(groups, names, strict=True):
        row[[columns[name] for name in own]] = 1.0
    return groups


def _check(
    keys: Sequence[OperatorKey], prior_us: Floats, counts: Floats, measured_us: Floats
) -> None:
    if not len(measured_us):
        raise DataError("there is no network to fit a latency to")
    if counts.shape != (len(measured_us), len(keys)) or prior_us.shape != (len(keys),):
        raise DataError(
            f"counts have shape {counts.shape}, not ({len(measured_us)} networks, "
            f"{len(keys)} operators)"
        )
    if not (np.isfinite(prior_us).all() and (prior_us >= 0).all()):
        raise DataError("an operator's latency is negative or not finite")
    if not (np.isfinite(measured_us).all() and (measured_us > 0).all()):
        raise DataError("a network's latency is not a positive number")
    if not (counts @ prior_us > 0).all():
        raise DataError("a network has no operator that takes any time")
