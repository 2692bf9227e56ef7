"""Architectures that no search chose: the controls that a searched one must beat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.errors import BudgetError, ConfigError, nearest
from hwnas.search.feasible import meets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from hwnas.latency.costs import LinkFloats
    from hwnas.latency.resources import SpaceCosts
    from hwnas.search.budget import Budgets
    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.genotype import Genotype

    Maker = Callable[[SpaceCosts, Budgets, np.random.Generator], Genotype]

PUBLISHED: Mapping[str, tuple[int, ...]] = {
    "rnas-cl-s7": (*[16] * 7, *[20] * 7, 52, 52, 52, 52, 56, 56, 52),
}
"""By space, the network that the released code of RNAS-CL trains: 0.323 M parameters there, which
has biases that batch normalization cancels."""

SLACK = 0.05
"""Share of the budget that a network of equal latency may leave, as `derive` does."""
_MAX_DRAWS = 20_000
_BISECTIONS = 40


def check_architecture(wanted: str | Sequence[int | str], space: ChainSpace) -> None:
    """Refuse what names no architecture of a space, before anything is trained.

    Raises:
        ConfigError: A name is unknown, or options are not those of the space's blocks.
    """
    if not isinstance(wanted, str):
        genotype_of_options(space, wanted)
    elif wanted == "published":
        _published(space)
    elif wanted not in MAKERS:
        similar = nearest(wanted, [*MAKERS, "published"])
        known = f"known: {', '.join([*MAKERS, 'published'])}"
        raise ConfigError(
            f"there is no architecture `{wanted}`",
            hint=f"did you mean `{similar[0]}`?" if similar else known,
        )


def architecture(
    wanted: str | Sequence[int | str],
    costs: SpaceCosts,
    budgets: Budgets,
    generator: np.random.Generator,
) -> Genotype:
    """Return the architecture that a study's arm names.

    Args:
        wanted: One option per searched block, or `published`, or one of `MAKERS`.
        costs: What the networks of the space take on the target.
        budgets: What `random` and `uniform` are within.
        generator: What `random` draws from.

    Raises:
        ConfigError: There is no such architecture.
        BudgetError: No network of the kind meets the budgets.
    """
    check_architecture(wanted, costs.space)
    if not isinstance(wanted, str):
        return genotype_of_options(costs.space, wanted)
    if wanted == "published":
        return _published(costs.space)
    return MAKERS[wanted](costs, budgets, generator)


def genotype_of_options(space: ChainSpace, options: Sequence[int | str]) -> Genotype:
    """Return the network of given options: widths, or names where blocks differ in more.

    Raises:
        ConfigError: They are too few or many, or a block has no such option.
    """
    if len(options) != len(space.options):
        raise ConfigError(
            f"{space.spec.name} has {len(space.options)} searched blocks, the genotype "
            f"{len(options)}"
        )
    choices = []
    for block, (wanted, known) in enumerate(zip(options, space.options, strict=True)):
        if wanted not in known:
            raise ConfigError(
                f"block {block + 1} of {space.spec.name} has no option {wanted!r}",
                hint=f"it has {', '.join(map(str, known))}",
            )
        choices.append(list(known).index(wanted))
    return space.genotype_of_choices(choices)


def smallest(costs: SpaceCosts, _: Budgets, __: np.random.Generator) -> Genotype:
    """Return the network of the fewest parameters that runs: the narrowest."""
    return _of_end(costs, costs.params.cheapest(costs.allowed()))


def largest(costs: SpaceCosts, _: Budgets, __: np.random.Generator) -> Genotype:
    """Return the network of the most parameters that runs: the widest."""
    return _of_end(costs, costs.params.dearest(costs.allowed()))


def uniform(costs: SpaceCosts, budgets: Budgets, _: np.random.Generator) -> Genotype:
    """Scale all blocks alike: the slowest within the budgets of those at one relative size.

    Each block's options are ranked by their parameters; at relative size f, every block takes the
    option nearest to f of the way up its ranks.

    Raises:
        BudgetError: None of them meets the budgets.
    """
    ranks = [
        np.argsort(link.mean(axis=0), kind="stable") for link in costs.params.links[1:-1]
    ]  # (options,) per searched block, by rising parameters
    sizes = {0.0, *((place + 0.5) / (len(r) - 1) for r in ranks for place in range(len(r) - 1))}
    networks = [
        costs.space.genotype_of_choices(
            [
                int(rank[min(math.floor(size * (len(rank) - 1) + 0.5), len(rank) - 1)])
                for rank in ranks
            ]
        )
        for size in sorted(sizes)
    ]
    within = [network for network in networks if meets(costs, network, budgets)]
    if not within:
        raise BudgetError(
            f"no uniform scaling of {costs.space.spec.name} meets the budgets: the fastest takes "
            f"{min(map(costs.latency.predict_ms, networks)):.4g} ms, the budget is "
            f"{budgets.latency_ms:.4g} ms",
            hint="raise the budget",
        )
    return max(within, key=costs.latency.predict_ms)


def random_at_latency(
    costs: SpaceCosts, budgets: Budgets, generator: np.random.Generator
) -> Genotype:
    """Draw a network, each as likely as any other, whose predicted latency nearly is the budget.

    Networks near one latency can be too rare to be met by plain draws. They are drawn with
    probability proportional to exp(-rate * sum), exactly, where the sum is that of their operators,
    along the chain, with the rate that puts the mean into the window; accepted with probability
    proportional to exp(rate * sum), they are uniform over the window again.

    Raises:
        BudgetError: None was met in the window, from 95 % of the budget on, that meets the others.
    """
    low, high = (1.0 - SLACK) * budgets.latency_ms, budgets.latency_ms
    cost_us = costs.latency.cost_us
    span = costs.latency.range_ms()
    if low <= span[1] and high >= span[0]:
        middle = (max(low, span[0]) + min(high, span[1])) / 2
        tilted = tilted_to(cost_us.links, cost_us.sum_within(middle * 1e3))
        end_us = cost_us.sum_within(1e3 * (high if tilted.rate > 0 else low))
        for _ in range(_MAX_DRAWS):
            choices = tilted.draw(generator)
            sum_us = cost_us.sum_of(choices)
            if not low <= cost_us.of_sums(sum_us) / 1e3 <= high:
                continue
            if generator.random() < math.exp(tilted.rate * (sum_us - end_us)):
                genotype = costs.space.genotype_of_choices(choices)
                if meets(costs, genotype, budgets):
                    return genotype
    raise BudgetError(
        f"no random network of {costs.space.spec.name} was met between {low:.4g} and {high:.4g} ms "
        f"that keeps the other budgets; its networks take {span[0]:.4g} to {span[1]:.4g} ms",
        hint="choose a budget in between",
    )


MAKERS: Mapping[str, Maker] = {
    "smallest": smallest,
    "largest": largest,
    "random": random_at_latency,
    "uniform": uniform,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tilted:
    """Networks of a chain with probability proportional to exp(-rate * cost).

    Attributes:
        rate: Per unit of the cost; negative prefers the dear.
        mean: Mean cost.
        steps: Probability of each option given that before, per link, (before, here).
    """

    rate: float
    mean: float
    steps: LinkFloats

    def draw(self, generator: np.random.Generator) -> list[int]:
        """Draw the options of the searched blocks."""
        choices: list[int] = []
        before = 0
        for step in self.steps[1:-1]:
            before = int(generator.choice(step.shape[1], p=step[before]))
            choices.append(before)
        return choices


def tilted(links: LinkFloats, rate: float) -> Tilted:
    """Return the distribution of a rate, by one pass backward over the chain.

    Args:
        links: Cost of each link, (options before, options here); infinite where nothing runs.
        rate: Per unit of the cost.
    """
    log_mass = np.zeros(links[-1].shape[1])
    mean = np.zeros(links[-1].shape[1])
    steps: list[NDArray[np.float64]] = []
    for link in reversed(links):
        runs = np.isfinite(link)
        cost = np.where(runs, link, 0.0)
        logits = np.where(runs, -rate * cost + log_mass, -np.inf)  # (before, here)
        peak = logits.max(axis=1, keepdims=True)
        peak = np.where(np.isfinite(peak), peak, 0.0)  # no way on from there: no mass
        mass = np.exp(logits - peak)
        total = mass.sum(axis=1, keepdims=True)
        step = np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)
        with np.errstate(divide="ignore"):
            log_mass = (peak + np.log(total))[:, 0]
        mean = (step * (cost + mean)).sum(axis=1)
        steps.append(step)
    return Tilted(rate=rate, mean=float(mean[0]), steps=tuple(reversed(steps)))


def tilted_to(links: LinkFloats, mean: float) -> Tilted:
    """Return the distribution of a mean cost, or of the nearest that there is, by bisection.

    Args:
        links: As in `tilted`.
        mean: The mean cost.
    """
    largest_cost = max(float(np.abs(link[np.isfinite(link)]).max(initial=0.0)) for link in links)
    # At this rate the cheapest network has nearly all of the mass, or the dearest.
    bound = 1e4 / (largest_cost or 1.0)
    low, high = -bound, bound  # the mean falls as the rate rises
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if tilted(links, middle).mean > mean:
            low = middle
        else:
            high = middle
    return tilted(links, (low + high) / 2)


def _of_end(costs: SpaceCosts, choices: tuple[int, ...] | None) -> Genotype:
    assert choices is not None  # the latency model has seen to it that a network runs
    return costs.space.genotype_of_choices(choices)


def _published(space: ChainSpace) -> Genotype:
    name = space.spec.name
    if name not in PUBLISHED:
        raise ConfigError(
            f"no network of {name} is published", hint=f"there is one of {', '.join(PUBLISHED)}"
        )
    return genotype_of_options(space, PUBLISHED[name])
